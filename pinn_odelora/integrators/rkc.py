"""Runge–Kutta–Chebyshev: explicit schemes with s stages, stable for h λ up to about s².

Y_0 = y, Y_1 = y + μ̃_1 h F_0 and, for j = 2 … s, with F_j = f(Y_j),

    Y_j = (1 - μ_j - ν_j) y + μ_j Y_{j-1} + ν_j Y_{j-2} + μ̃_j h F_{j-1} + γ̃_j h F_0 ,       y⁺ = Y_s .

On y' = λ y, with z = h λ, the stages are shifted and scaled Chebyshev polynomials of z. The damping ε > 0 in
w₀ = 1 + ε/s² keeps |P_s| below one on [-β, 0), β = (w₀ + 1)/w₁ (van der Houwen and Sommeijer, 1980):

    order 1    P_s(z) = T_s(w₀ + w₁ z)/T_s(w₀),                    w₁ = T_s/T_s',     β ≈ (2 - 4ε/3) s²
    order 2    P_s(z) = 1 + b_s (T_s(w₀ + w₁ z) - T_s(w₀)),        w₁ = T_s'/T_s'',   β ≈ ⅔ (s² - 1)(1 - 2ε/15)

with b_s = T_s''/T_s'² and all T evaluated at w₀. Per evaluation the scheme advances s times as far along a stiff flow
as Euler's, or a third of that with order 2. The number of stages is chosen from h and an estimate of the largest
eigenvalue, or h from the number of stages.

The second-order scheme has an error estimate at no extra cost, (4/5)(y - y⁺) + (2/5) h (f(y) + f(y⁺)), the defect of
the trapezoidal rule (Sommeijer, Shampine and Verwer, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from pinn_odelora.errors import InputError
from pinn_odelora.integrators.base import Flow, Report, Step, Velocity
from pinn_odelora.integrators.control import TRIALS, controlled, error_norm, first_step
from pinn_odelora.integrators.runge_kutta import ExplicitState
from pinn_odelora.integrators.stability import kept_eigenvalue, norm
from pinn_odelora.manifolds.space import FLAT, Point, Slope, Space
from pinn_odelora.rules import check, null, number, one_of, whole

DAMPING = {1: 0.05, 2: 2 / 13}
"""The usual ε of the two orders; the second-order polynomial oscillates around ⅔ and needs more damping."""

MOST = 1000
"""Most stages of a step of fixed size."""

FASTER = 2.0
"""Factor of the velocity over a step above which the step counts as unstable."""


class StageCoefficients(NamedTuple):
    """μ_j, ν_j, 1 - μ_j - ν_j, μ̃_j and γ̃_j of one stage."""

    mu: float
    nu: float
    rest: float
    slope: float
    first: float


class Recurrence(NamedTuple):
    """The coefficients of an s-stage scheme: μ̃_1, those of the stages j = 2 … s, and the stability limit β."""

    start: float
    rows: tuple[StageCoefficients, ...]
    limit: float


def chebyshev(s: int, x: float) -> tuple[list[float], list[float], list[float]]:
    """T_j, T_j' and T_j'' at x for j = 0 … s, as three lists."""
    T, D, DD = [1.0, x], [0.0, 1.0], [0.0, 0.0]
    for _ in range(s - 1):
        DD.append(2 * x * DD[-1] + 4 * D[-1] - DD[-2])
        D.append(2 * x * D[-1] + 2 * T[-1] - D[-2])
        T.append(2 * x * T[-1] - T[-2])
    return T, D, DD


@cache
def rkc1(s: int, damping: float = DAMPING[1]) -> Recurrence:
    """The first-order scheme of s ≥ 1 stages; s = 1 is Euler's."""
    w0 = 1 + damping / s**2
    T, D, _ = chebyshev(s, w0)
    w1 = T[s] / D[s]
    b = [1 / x for x in T]
    rows = tuple(
        StageCoefficients(2 * w0 * b[j] / b[j - 1], -b[j] / b[j - 2], 0.0, 2 * w1 * b[j] / b[j - 1], 0.0)
        for j in range(2, s + 1)
    )
    return Recurrence(w1 / w0, rows, (w0 + 1) / w1)


@cache
def rkc2(s: int, damping: float = DAMPING[2]) -> Recurrence:
    """The second-order scheme of s ≥ 2 stages."""
    w0 = 1 + damping / s**2
    T, D, DD = chebyshev(s, w0)
    w1 = D[s] / DD[s]
    b = [x / y**2 for x, y in zip(DD[2:], D[2:], strict=True)]
    b = [b[0], b[0], *b]
    rows = []
    for j in range(2, s + 1):
        mu, nu, slope = 2 * w0 * b[j] / b[j - 1], -b[j] / b[j - 2], 2 * w1 * b[j] / b[j - 1]
        rows.append(StageCoefficients(mu, nu, 1 - mu - nu, slope, -(1 - b[j - 1] * T[j - 1]) * slope))
    return Recurrence(b[1] * w1, tuple(rows), (w0 + 1) / w1)


SCHEMES = {1: rkc1, 2: rkc2}


def rkc_step(
    f: Callable[[Point], Slope], y: Point, h: float, scheme: Recurrence, first: Slope, space: Space = FLAT
) -> Point:
    """One step of fixed size.

    Args:
        f: the velocity, y -> f(y).
        y: the starting point.
        h: the step size.
        scheme: coefficients of the stages.
        first: f(y).
        space: the space of y; lists of tensors by default.

    Raises:
        FloatingPointError: if the velocity at a stage is not finite.
    """
    before, now = y, space.combine([(1.0, y)], [(h * scheme.start, first)])
    for row in scheme.rows:
        points = [(row.mu, now), (row.nu, before), (row.rest, y)]
        slopes = [(h * row.slope, f(now)), (h * row.first, first)]
        before, now = now, space.combine(points if row.rest else points[:2], slopes if row.first else slopes[:1])
    return now


@dataclass(frozen=True)
class RKC:
    """A damped Runge–Kutta–Chebyshev integrator.

    Args:
        order: 1 or 2.
        h: the step size in units of flow time, with as many stages as stability requires. If None, the first-order
            scheme takes the largest h that is stable with ``stages`` stages; the second-order one controls h by its
            error estimate, with at most ``stages`` stages.
        stages: most stages of a step of adaptive size.
        damping: ε; None for the usual value.
        rtol, atol: tolerances of the error estimate, as in ``RungeKutta``.
        safety: the fraction of the stability interval that is used, since λ is estimated from below.
        renew: most steps between two estimates of λ.

    Raises:
        InputError: if the order is not 1 or 2, there are fewer stages than the order, or a number is not positive.
    """

    order: int = 1
    h: float | None = None
    stages: int = 30
    damping: float | None = None
    rtol: float = 1e-3
    atol: float = 1e-5
    safety: float = 0.5
    renew: int = 50

    linearises = False
    stabilised = True

    def __post_init__(self) -> None:
        positive = number(above=0)
        check(self, order=one_of(*SCHEMES), h=positive | null, damping=positive | null, rtol=positive, atol=positive)
        check(self, safety=positive, renew=whole(1), stages=whole(self.order, MOST))

    def scheme(self, s: int) -> Recurrence:
        """The coefficients of the s-stage scheme."""
        return SCHEMES[self.order](s, self.damping or DAMPING[self.order])

    def fewest(self, reach: float) -> int:
        """The smallest number of stages with stability limit β ≥ ``reach`` = h λ / safety.

        Raises:
            InputError: if it exceeds ``MOST``.
        """
        # β < 2 s² for both orders.
        s = max(self.order, math.ceil(min(math.sqrt(reach / 2), MOST)))
        while s <= MOST and self.scheme(s).limit < reach:
            s += 1
        if s > MOST:
            raise InputError(
                f"h times the largest eigenvalue is {reach * self.safety:.3g} here, for which stability requires more "
                f"than {MOST} stages; h must be smaller."
            )
        return s

    def init(self) -> ExplicitState:
        """The state before the first step."""
        return ExplicitState()

    def step(self, flow: Flow, y: Point, state: ExplicitState, h: float | None = None) -> Step:
        """One accepted step from y; arguments and errors as for ``integrators.base.Integrator.step``."""
        h = self.h if h is None else h
        first = flow.velocity(y)
        estimate = kept_eigenvalue(flow, y, first, state.estimate, self.renew)
        state = replace(state, **estimate._asdict())
        if h is None:
            return (self._controlled if self.order == 2 else self._stable)(flow, y, first, state)
        scheme = self.scheme(self.fewest(h * estimate.eigenvalue / self.safety))
        f = lambda y: flow.velocity(y).slope
        return Step(rkc_step(f, y, h, scheme, first.slope, flow.space), state, Report(h, first.loss))

    def _stable(self, flow: Flow, y: Point, first: Velocity, state: ExplicitState) -> Step:
        """The largest stable step with ``stages`` stages.

        It is reduced to a quarter as long as it increases the loss or more than doubles the velocity: a sign that the
        largest eigenvalue, which can vary tenfold along a trajectory, has grown on the way, where the first-order
        scheme has no error estimate to detect it. With fixed points the velocity at the end costs nothing, since it is
        the first one of the next step.
        """
        space, f = flow.space, lambda y: flow.velocity(y).slope
        scheme, eigenvalue, speed = self.scheme(self.stages), state.eigenvalue, norm(space.entries(first.slope))
        for rejected in range(TRIALS):
            h = self.safety * scheme.limit / eigenvalue
            try:
                new = rkc_step(f, y, h, scheme, first.slope, space)
                end = flow.velocity(new)
                if norm(space.entries(end.slope)) <= FASTER * speed and not end.loss > first.loss:
                    state = replace(state, eigenvalue=eigenvalue)
                    return Step(new, state, Report(h, first.loss, rejected=rejected))
            except FloatingPointError:
                pass
            eigenvalue *= 4
        raise FloatingPointError(f"No step down to h = {h:.1e} prevents the loss and the velocity from growing.")

    def _controlled(self, flow: Flow, y: Point, first: Velocity, state: ExplicitState) -> Step:
        """A step with h reduced until the error estimate is within tolerance."""
        space, f = flow.space, lambda y: flow.velocity(y).slope
        size = space.entries(space.element(y))
        unit = self.safety / state.eigenvalue  # the h that needs β = 1

        def attempt(h: float) -> tuple[Point, float]:
            scheme = self.scheme(min(self.fewest(h / unit), self.stages))
            new = rkc_step(f, y, h, scheme, first.slope, space)
            reached = space.element(new)
            terms = [(0.8, space.element(y)), (-0.8, reached), (0.4 * h, first.slope), (0.4 * h, f(new))]
            defect = space.entries(space.total(terms))
            return new, error_norm(defect, size, space.entries(reached), self.rtol, self.atol)

        h = state.h or first_step(size, space.entries(first.slope), self.rtol, self.atol)
        found = controlled(attempt, h, state.error, 1 / 3, longest=unit * self.scheme(self.stages).limit)
        state = replace(state, h=found.next_h, error=found.error)
        return Step(found.result, state, Report(found.h, first.loss, rejected=found.rejected))

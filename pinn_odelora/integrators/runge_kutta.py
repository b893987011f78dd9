"""Explicit Runge–Kutta steps of dy/dt = f(y), in a flat space or on a manifold (``manifolds.space``).

    k_i = f(y + h Σ_{j<i} a_ij k_j),    y⁺ = y + h Σ_i b_i k_i

The step size h is fixed, controlled by the error estimate of an embedded pair, or, for a scheme without one, chosen
from the stability limit and an estimate of the largest eigenvalue. On a stiff flow the step size of an explicit scheme
is limited by stability, so a manually chosen one is right for a single problem only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pinn_odelora.integrators.base import Flow, Report, Step, Velocity
from pinn_odelora.integrators.control import controlled, error_norm, first_step
from pinn_odelora.integrators.stability import Estimate, kept_eigenvalue
from pinn_odelora.integrators.tableau import EULER, Tableau
from pinn_odelora.manifolds.space import FLAT, Point, Slope, Space, Sum
from pinn_odelora.rules import check, null, number, whole


@dataclass(frozen=True)
class ExplicitState:
    """The state of an explicit scheme between steps.

    Attributes:
        h: the step size suggested by the error control; None before the first step, and without error control.
        error: error of the last accepted step, in units of the tolerance.
        eigenvalue, age, speed, loss: as in ``Estimate``; the eigenvalue is None if there is no estimate yet.
    """

    h: float | None = None
    error: float = 1.0
    eigenvalue: float | None = None
    age: int = 0
    speed: float = math.nan
    loss: float = math.nan

    @property
    def estimate(self) -> Estimate | None:
        """The estimate of the largest eigenvalue; None if there is none yet."""
        return None if self.eigenvalue is None else Estimate(self.eigenvalue, self.age, self.speed, self.loss)


def weighted(h: float, weights: Sequence[float], slopes: Sequence[Slope]) -> Sum:
    """The terms of  h Σ_i weights_i · slopes_i  with nonzero weights."""
    return [(h * w, k) for w, k in zip(weights, slopes, strict=False) if w != 0]


def stages(
    f: Callable[[Point], Slope], y: Point, h: float, tableau: Tableau, first: Slope, space: Space = FLAT
) -> list[Slope]:
    """The slopes k_1 … k_s; arguments as for ``rk_step``."""
    slopes = [first]
    for row in tableau.a[1:]:
        slopes.append(f(space.combine([(1.0, y)], weighted(h, row, slopes))))
    return slopes


def rk_step(
    f: Callable[[Point], Slope], y: Point, h: float, tableau: Tableau, first: Slope, space: Space = FLAT
) -> Point:
    """One step of fixed size.

    Args:
        f: the velocity, y -> f(y).
        y: the starting point.
        h: the step size.
        tableau: the scheme.
        first: f(y).
        space: the space of y; lists of tensors by default.

    Raises:
        FloatingPointError: if the velocity at a stage is not finite.
    """
    return space.combine([(1.0, y)], weighted(h, tableau.b, stages(f, y, h, tableau, first, space)))


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge–Kutta integrator.

    Args:
        tableau: the scheme.
        h: the step size in units of flow time. If None, it is controlled by the error estimate of an embedded pair, or
            else chosen from the stability limit.
        rtol, atol: relative and absolute tolerance of an embedded pair, for each entry of the state.
        safety: the fraction of the stability limit used by a scheme without error estimate.
        renew: most steps between two estimates of the largest eigenvalue.

    Raises:
        InputError: if a step size, tolerance or safety is not positive.
    """

    tableau: Tableau = EULER
    h: float | None = None
    rtol: float = 1e-3
    atol: float = 1e-5
    safety: float = 0.5
    renew: int = 50

    linearises = False

    def __post_init__(self) -> None:
        positive = number(above=0)
        check(self, h=positive | null, rtol=positive, atol=positive, safety=positive, renew=whole(1))

    @property
    def stages(self) -> int:
        """Evaluations of the velocity in a step of fixed size."""
        return self.tableau.stages

    def init(self) -> ExplicitState:
        """The state before the first step."""
        return ExplicitState()

    def step(self, flow: Flow, y: Point, state: ExplicitState, h: float | None = None) -> Step:
        """One accepted step from y; arguments and errors as for ``integrators.base.Integrator.step``."""
        h = self.h if h is None else h
        first = flow.velocity(y)
        if h is None and self.tableau.embedded is not None:
            return self._controlled(flow, y, first, state)
        if h is None:
            estimate = kept_eigenvalue(flow, y, first, state.estimate, self.renew)
            state = replace(state, **estimate._asdict())
            h = self.safety * self.tableau.real_stability / estimate.eigenvalue
        f = lambda y: flow.velocity(y).slope
        return Step(rk_step(f, y, h, self.tableau, first.slope, flow.space), state, Report(h, first.loss))

    def _controlled(self, flow: Flow, y: Point, first: Velocity, state: ExplicitState) -> Step:
        """A step with h reduced until the difference of the two embedded solutions is within tolerance."""
        space, f = flow.space, lambda y: flow.velocity(y).slope
        size = space.entries(space.element(y))
        difference = [b - c for b, c in zip(self.tableau.b, self.tableau.embedded, strict=True)]

        def attempt(h: float) -> tuple[Point, float]:
            slopes = stages(f, y, h, self.tableau, first.slope, space)
            new = space.combine([(1.0, y)], weighted(h, self.tableau.b, slopes))
            defect = space.entries(space.total(weighted(h, difference, slopes)))
            return new, error_norm(defect, size, space.entries(space.element(new)), self.rtol, self.atol)

        h = state.h or first_step(size, space.entries(first.slope), self.rtol, self.atol)
        found = controlled(attempt, h, state.error, 1 / (1 + self.tableau.embedded_order))
        state = replace(state, h=found.next_h, error=found.error)
        return Step(found.result, state, Report(found.h, first.loss, rejected=found.rejected))

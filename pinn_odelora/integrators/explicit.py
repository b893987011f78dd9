"""Explicit Runge–Kutta steps of dy/dt = f(y), in a flat space or on a manifold (``integrators.space``).

    k_i = f(y + h Σ_{j<i} a_ij k_j),    y⁺ = y + h Σ_i b_i k_i

The step size h is given, or follows the error estimate of an embedded pair, or, for a scheme without one, is taken
from the stability limit and an estimate of the largest eigenvalue: explicit schemes on a stiff flow are bounded by
stability, so a step that is chosen by hand is right for one problem only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pinn_odelora.integrators.control import check_positive, error_norm, first_step, next_step
from pinn_odelora.integrators.stability import kept_eigenvalue
from pinn_odelora.integrators.tableau import Tableau
from pinn_odelora.manifolds.space import FLAT, Slope, Space, State, Sum

Velocity = Callable[[State], Slope]


class Descent:
    """The velocity of a flow that decreases a loss, and the loss at the point that was asked last.

    Args:
        evaluate: y -> (velocity, loss).
    """

    def __init__(self, evaluate: Callable[[State], tuple[Slope, float]]) -> None:
        self.evaluate = evaluate
        self.loss = math.nan

    def __call__(self, y: State) -> Slope:
        velocity, self.loss = self.evaluate(y)
        return velocity


def loss_of(f: Velocity) -> float:
    """The loss where f was asked last, NaN for a field that knows none."""
    return f.loss if isinstance(f, Descent) else math.nan


class Step(NamedTuple):
    """A step taken: the new state, the h that led to it, and what the next step must be told."""

    y: State
    h: float
    memory: dict[str, Any]


def weighted(h: float, weights: Sequence[float], slopes: Sequence[Slope]) -> Sum:
    """The terms of  h Σ_i weights_i · slopes_i, leaving out zero weights."""
    return [(h * w, k) for w, k in zip(weights, slopes, strict=False) if w != 0]


def stages(f: Velocity, y: State, h: float, tableau: Tableau, first: Slope, space: Space = FLAT) -> list[Slope]:
    """k_1 … k_s, with k_1 = f(y) given."""
    slopes = [first]
    for row in tableau.a[1:]:
        slopes.append(f(space.combine([(1.0, y)], weighted(h, row, slopes))))
    return slopes


def rk_step(f: Velocity, y: State, h: float, tableau: Tableau, space: Space = FLAT) -> State:
    """One step of fixed size h."""
    return space.combine([(1.0, y)], weighted(h, tableau.b, stages(f, y, h, tableau, f(y), space)))


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge–Kutta integrator.

    Args:
        tableau: the scheme.
        h: the step size in units of flow time; absent, it is chosen as the file's docstring says.
        rtol, atol: tolerances of an embedded pair, relative to each entry of the state, and absolute.
        safety: the part of the stability limit that a scheme without error estimate uses.
        renew: steps after which its estimate of the largest eigenvalue is made anew, at the latest.
        chart: whether an optimiser integrates the factors or their product on its manifold; its own choice if absent.

    Raises:
        InputError: for a step size or tolerance that is not positive.
    """

    tableau: Tableau
    h: float | None = None
    rtol: float = 1e-3
    atol: float = 1e-5
    safety: float = 0.5
    renew: int = 50
    chart: Literal["factors", "manifold"] | None = None

    def __post_init__(self) -> None:
        check_positive(self, "h", "rtol", "atol", "safety", "renew")

    @property
    def stages(self) -> int:
        """Evaluations of the velocity in a step of given size."""
        return self.tableau.stages

    def step(self, f: Velocity, y: State, h: float | None, memory: dict[str, Any], space: Space = FLAT) -> Step:
        """One accepted step from y.

        Args:
            f: the velocity; it may raise ``FloatingPointError`` where it is not finite.
            y: the state; not changed.
            h: a fixed step size, or None to choose it.
            memory: what the previous step returned, empty at first; plain numbers only, so that it can be saved.
            space: where the state lives.

        Raises:
            FloatingPointError: if the velocity at y itself, or at every trial step, is not finite.
        """
        first = f(y)
        if h is not None:
            return Step(self._advance(f, y, h, first, space), h, memory)
        if self.tableau.embedded is not None:
            return self._controlled(f, y, first, memory, space)
        eigenvalue, memory = kept_eigenvalue(f, y, first, memory, self.renew, space, loss_of(f))
        h = self.safety * self.tableau.real_stability / eigenvalue
        return Step(self._advance(f, y, h, first, space), h, memory)

    def _advance(self, f: Velocity, y: State, h: float, first: Slope, space: Space) -> State:
        slopes = stages(f, y, h, self.tableau, first, space)
        return space.combine([(1.0, y)], weighted(h, self.tableau.b, slopes))

    def _controlled(self, f: Velocity, y: State, first: Slope, memory: dict[str, Any], space: Space) -> Step:
        """Shrink h until the difference of the two embedded solutions is within tolerance; then suggest the next h."""
        size = space.entries(space.element(y))
        h = memory.get("h") or first_step(size, space.entries(first), self.rtol, self.atol)
        previous = memory.get("error", 1.0)
        difference = [b - c for b, c in zip(self.tableau.b, self.tableau.embedded, strict=True)]
        exponent = 1 / (1 + self.tableau.embedded_order)
        while True:
            try:
                slopes = stages(f, y, h, self.tableau, first, space)
                new = space.combine([(1.0, y)], weighted(h, self.tableau.b, slopes))
                defect = space.entries(space.total(weighted(h, difference, slopes)))
                error = error_norm(defect, size, space.entries(space.element(new)), self.rtol, self.atol)
            except FloatingPointError:
                if h < 1e-12 * memory.get("h", h / 1e-3):
                    raise
                error = math.inf
            if error <= 1:
                return Step(new, h, {"h": next_step(h, error, previous, exponent), "error": max(error, 1e-4)})
            h = min(next_step(h, error, 1.0, exponent), 0.9 * h)

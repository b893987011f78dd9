"""Explicit Runge–Kutta steps of dy/dt = f(y) for a state that is a list of tensors.

    k_i = f(y + h Σ_{j<i} a_ij k_j),    y⁺ = y + h Σ_i b_i k_i

The step size h is given, or follows the error estimate of an embedded pair, or, for a scheme without one, is taken
from the stability limit and an estimate of the largest eigenvalue: explicit schemes on a stiff flow are bounded by
stability, so a step that is chosen by hand is right for one problem only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.integrators.control import error_norm, first_step, next_step
from pinn_odelora.integrators.stability import largest_eigenvalue, norm
from pinn_odelora.integrators.tableau import Tableau

GROWTH = 1.1
"""Growth of the velocity after which the largest eigenvalue is estimated anew."""

State = list[Tensor]
Velocity = Callable[[State], State]


class Step(NamedTuple):
    """A step taken: the new state, the h that led to it, and what the next step must be told."""

    y: State
    h: float
    memory: dict[str, Any]


def combine(y: State, h: float, weights: Sequence[float], slopes: Sequence[State]) -> State:
    """y + h Σ_i weights_i · slopes_i, leaving out zero weights."""
    used = [(h * w, k) for w, k in zip(weights, slopes, strict=False) if w != 0]
    return [sum((c * k[i] for c, k in used), start=x) for i, x in enumerate(y)]


def stages(f: Velocity, y: State, h: float, tableau: Tableau, first: State) -> list[State]:
    """k_1 … k_s, with k_1 = f(y) given."""
    slopes = [first]
    for row in tableau.a[1:]:
        slopes.append(f(combine(y, h, row, slopes)))
    return slopes


def rk_step(f: Velocity, y: State, h: float, tableau: Tableau) -> State:
    """One step of fixed size h."""
    return combine(y, h, tableau.b, stages(f, y, h, tableau, f(y)))


@dataclass(frozen=True)
class RungeKutta:
    """An explicit Runge–Kutta integrator.

    Args:
        tableau: the scheme.
        h: the step size in units of flow time; absent, it is chosen as the file's docstring says.
        rtol, atol: tolerances of an embedded pair, relative to each entry of the state, and absolute.
        safety: the part of the stability limit that a scheme without error estimate uses.
        renew: steps after which its estimate of the largest eigenvalue is made anew, at the latest.

    Raises:
        InputError: for a step size or tolerance that is not positive.
    """

    tableau: Tableau
    h: float | None = None
    rtol: float = 1e-3
    atol: float = 1e-5
    safety: float = 0.5
    renew: int = 50

    def __post_init__(self) -> None:
        for name in ("h", "rtol", "atol", "safety", "renew"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"integrator.{name} is {value!r}, but it must be a positive number.")

    def step(self, f: Velocity, y: State, h: float | None, memory: dict[str, Any]) -> Step:
        """One accepted step from y.

        Args:
            f: the velocity; it may raise ``FloatingPointError`` where it is not finite.
            y: the state; not changed.
            h: a fixed step size, or None to choose it.
            memory: what the previous step returned, empty at first; plain numbers only, so that it can be saved.

        Raises:
            FloatingPointError: if the velocity at y itself, or at every trial step, is not finite.
        """
        first = f(y)
        if h is not None:
            return Step(combine(y, h, self.tableau.b, stages(f, y, h, self.tableau, first)), h, memory)
        if self.tableau.embedded is not None:
            return self._controlled(f, y, first, memory)
        return self._stable(f, y, first, memory)

    def _controlled(self, f: Velocity, y: State, first: State, memory: dict[str, Any]) -> Step:
        """Shrink h until the difference of the two embedded solutions is within tolerance; then suggest the next h."""
        h = memory.get("h") or first_step(y, first, self.rtol, self.atol)
        previous = memory.get("error", 1.0)
        difference = [b - c for b, c in zip(self.tableau.b, self.tableau.embedded, strict=True)]
        exponent = 1 / (1 + self.tableau.embedded_order)
        while True:
            try:
                slopes = stages(f, y, h, self.tableau, first)
                new = combine(y, h, self.tableau.b, slopes)
                zero = [torch.zeros_like(x) for x in y]
                error = error_norm(combine(zero, h, difference, slopes), y, new, self.rtol, self.atol)
            except FloatingPointError:
                if h < 1e-12 * memory.get("h", h / 1e-3):
                    raise
                error = math.inf
            if error <= 1:
                return Step(new, h, {"h": next_step(h, error, previous, exponent), "error": max(error, 1e-4)})
            h = min(next_step(h, error, 1.0, exponent), 0.9 * h)

    def _stable(self, f: Velocity, y: State, first: State, memory: dict[str, Any]) -> Step:
        """A step inside the stability interval of the scheme, from an estimate of the largest eigenvalue.

        It is made anew after a number of steps, and when the velocity has grown: on a gradient flow that is the first
        sign of a mode that the step amplifies.
        """
        age, speed = memory.get("age", self.renew), norm(first)
        least = min(speed, memory.get("speed", speed))
        h = memory.get("h")
        if age >= self.renew or speed > GROWTH * least:
            h, age = self.safety * self.tableau.real_stability / largest_eigenvalue(f, y, first), 0
            least = speed
        new = combine(y, h, self.tableau.b, stages(f, y, h, self.tableau, first))
        return Step(new, h, {"h": h, "age": age + 1, "speed": least})

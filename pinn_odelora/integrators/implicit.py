"""Linearly implicit steps of the projected gradient flow of L = ½‖r‖² on a manifold.

In orthonormal coordinates z of the tangent space at y the flow is dz/dt = -Jᵀr, J = ∂r/∂z, and its Jacobian at a small
residual is -JᵀJ (Gauss-Newton). The linearly implicit Euler scheme, the first Rosenbrock method, takes

    (JᵀJ + 1/h) d = -Jᵀ r ,        y⁺ = R_y(d) ,

R_y the retraction: the flow itself as h → 0, the Gauss-Newton step of minimal norm as h → ∞. It is stable for every h,
and costs one Jacobian and one factorisation. As an optimiser it is the Levenberg-Marquardt method on the manifold; the
control of h is pseudo-transient continuation (Kelley and Keyes, 1998).

With ``correction`` the same factorisation serves once more. The second derivative of r along d, by one residual more,

    r_dd = (2/e) ((r(R_y(e d)) - r)/e - J d) ,     a = -½ (JᵀJ + 1/h)⁻¹ Jᵀ r_dd ,     y⁺ = R_y(d + a) ,

is the geodesic acceleration of Transtrum and Sethna (2012, arXiv 1201.5885), carried to the manifold by its retraction;
taken where ‖a‖ < ¾‖d‖ and it does not do worse than d.

h follows the ratio of the loss's decrease to the one that the linearisation promises, both at the step's own points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.integrators.damped import Damped


class Local(NamedTuple):
    """The system around a point y.

    Args:
        r: rows, (R,).
        J: their Jacobian in orthonormal coordinates of the tangent space, (R, P).
        retract: z (P,) -> the point R_y(z).
        vector: z (P,) -> the tangent vector as an element of the space around the manifold.
        coordinates: such an element -> the coordinates of its projection on the tangent space at y.
    """

    r: Tensor
    J: Tensor
    retract: Callable[[Tensor], Any]
    vector: Callable[[Tensor], Any]
    coordinates: Callable[[Any], Tensor]


class Residual(Protocol):
    """What is integrated: the rows r of a least-squares loss on a manifold."""

    def linearise(self, y: Any) -> Local:
        """The system around y."""

    def rows(self, y: Any) -> Tensor:
        """r at y, (R,), with entries that are not finite where it has no value."""


class Taken(NamedTuple):
    """A step taken: the point, h, the memory for the next step, and whether the correction was used."""

    y: Any
    h: float
    memory: dict[str, Any]
    corrected: bool = False


@dataclass(frozen=True)
class LinearlyImplicit:
    """Linearly implicit Euler.

    Args:
        h: the step size in units of flow time; absent, it follows the gain ratio.
        correction: whether to use the second-order correction.
        first: 1/h of the first step, as a part of the largest diagonal entry of JᵀJ.

    Raises:
        InputError: for a number that is not positive.
    """

    h: float | None = None
    correction: bool = True
    first: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("h", "first"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"integrator.{name} is {value!r}, but it must be a positive number.")

    def step(self, system: Residual, y: Any, memory: dict[str, Any]) -> Taken:
        """One accepted step from y.

        Args:
            memory: what the previous step returned, empty at first; plain numbers only.

        Raises:
            FloatingPointError: if no step, however small, leads to finite rows and a smaller loss.
        """
        local = system.linearise(y)
        solver = Damped(local.J)
        if self.h is not None:
            d = -solver(local.r, 1 / self.h)
            moved = self._trial(system, local, solver, d, 1 / self.h)
            return Taken(moved.y, self.h, {}, moved.corrected)
        mu = memory.get("mu") or self.first * solver.largest
        growth = 2.0
        for _ in range(TRIALS):
            d = -solver(local.r, mu)
            promised = half_square(local.r) - half_square(local.r + local.J @ d)
            trial = self._trial(system, local, solver, d, mu)
            gain = (half_square(local.r) - trial.loss) / promised if promised > 0 else 0.0
            if gain > ACCEPTED:
                return Taken(trial.y, 1 / mu, {"mu": mu * _factor(gain)}, trial.corrected)
            mu, growth = mu * growth, 2 * growth
        return Taken(y, 1 / mu, {"mu": mu})

    def _trial(self, system: Residual, local: Local, solver: Damped, d: Tensor, mu: float) -> Trial:
        plain = _Once(system, local, d)
        if not self.correction:
            return plain.trial()
        a = second_order(system, local, solver, d, mu)
        if a is None:
            return plain.trial()
        corrected = _Once(system, local, d + a).trial(corrected=True)
        before = half_square(local.r)
        # With most of the loss gone there is no need to ask whether d alone would have done better.
        if corrected.loss < 0.25 * before:
            return corrected
        return min(corrected, plain.trial(), key=lambda t: t.loss)


TRIALS = 30
ACCEPTED = 1e-4
E = 0.1


class Trial(NamedTuple):
    y: Any
    loss: float
    corrected: bool


class _Once:
    def __init__(self, system: Residual, local: Local, z: Tensor) -> None:
        self.system, self.local, self.z = system, local, z

    def trial(self, corrected: bool = False) -> Trial:
        y = self.local.retract(self.z)
        loss = half_square(self.system.rows(y))
        return Trial(y, loss if math.isfinite(loss) else math.inf, corrected)


def second_order(system: Residual, local: Local, solver: Damped, d: Tensor, mu: float) -> Tensor | None:
    """The correction a, or None where it is not finite or not small against d."""
    ahead = system.rows(local.retract(E * d))
    r_dd = (2 / E) * ((ahead - local.r) / E - local.J @ d)
    a = -solver(r_dd, mu) / 2
    size = float(a.norm())
    return a if math.isfinite(size) and size < 0.75 * float(d.norm()) else None


def half_square(r: Tensor) -> float:
    return float(r @ r) / 2


def _factor(gain: float) -> float:
    """What 1/h is multiplied by after a step with this gain ratio (Nielsen, 1999)."""
    return max(1 / 5, 1 - (2 * min(gain, 1.0) - 1) ** 3)

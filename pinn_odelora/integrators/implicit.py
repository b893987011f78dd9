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
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from pinn_odelora.integrators.control import check_positive
from pinn_odelora.integrators.damped import Operator, Solver
from pinn_odelora.integrators.solvers import solver_for

TRIALS = 30
ACCEPTED = 1e-4
"""The least gain ratio of a step that is taken."""
MOSTLY_GONE = 0.25
E = 0.1
"""e: how far ahead the second derivative looks, as a part of the step."""


class Local(NamedTuple):
    """The system around a point y.

    Args:
        r: rows, (R,).
        J: their Jacobian in orthonormal coordinates of the tangent space, (R, P); an operator where it is not formed.
        retract: z (P,) -> the point R_y(z).
        vector: z (P,) -> the tangent vector as an element of the space around the manifold.
        coordinates: such an element -> the coordinates of its projection on the tangent space at y.
    """

    r: Tensor
    J: Tensor | Operator
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
    """A step taken: the point, h, the memory for the next step, whether the correction was used, and ½‖r‖² at y on the
    step's own points, None where the scheme has not formed it.
    """

    y: Any
    h: float
    memory: dict[str, Any]
    corrected: bool = False
    loss: float | None = None


@dataclass(frozen=True)
class LinearlyImplicit:
    """Linearly implicit Euler.

    Args:
        h: the step size in units of flow time; absent, it follows the gain ratio.
        correction: whether to use the second-order correction.
        first: 1/h of the first step, as a part of the largest diagonal entry of JᵀJ.
        metric: whether an optimiser follows the flow of the product or that of the factors; its own choice if absent.
        memory: bytes that the linear algebra of a step may take, see ``plan``.

    Raises:
        InputError: for a number that is not positive.
    """

    h: float | None = None
    correction: bool = True
    first: float = 1e-3
    metric: Literal["weights", "factors"] | None = None
    memory: float = 2.0**29

    def __post_init__(self) -> None:
        check_positive(self, "h", "first", "memory")

    def step(self, system: Residual, y: Any, memory: dict[str, Any]) -> Taken:
        """One step from y; y itself where no step, however small, makes the loss smaller.

        Args:
            memory: what the previous step returned, empty at first; plain numbers only.

        Raises:
            FloatingPointError: if the rows at y are not finite.
        """
        local = system.linearise(y)
        before = half_square(local.r)
        if not math.isfinite(before):
            raise FloatingPointError("The rows where the step starts are not finite.")
        solver = solver_for(local.J)
        if self.h is not None:
            trial = self._trial(system, local, solver, 1 / self.h)
            return Taken(trial.y, self.h, {}, trial.corrected, trial.loss)
        mu, growth = memory.get("mu") or self.first * solver.largest, 2.0
        for _ in range(TRIALS):
            trial = self._trial(system, local, solver, mu)
            gain = (before - trial.loss) / trial.promised if trial.promised > 0 else 0.0
            if gain > ACCEPTED:
                return Taken(trial.y, 1 / mu, {"mu": mu * _factor(gain)}, trial.corrected, trial.loss)
            mu, growth = mu * growth, 2 * growth
        return Taken(y, 1 / mu, {"mu": solver.largest}, loss=before)

    def _trial(self, system: Residual, local: Local, solver: Solver, mu: float) -> Trial:
        """Where the step with damping μ leads: with the correction, or without it where that does better."""
        d = -solver(local.r, mu)
        Jd = local.J @ d
        before = half_square(local.r)
        promised = before - half_square(local.r + Jd)
        a = second_order(system, local, solver, d, Jd, mu) if self.correction else None
        if a is None:
            return trial_at(system, local, d, promised)
        corrected = trial_at(system, local, d + a, promised, corrected=True)
        # With most of the loss gone there is no need to ask whether d alone would have done better.
        if corrected.loss < MOSTLY_GONE * before:
            return corrected
        return min(corrected, trial_at(system, local, d, promised), key=lambda trial: trial.loss)


class Trial(NamedTuple):
    """A point, its loss (infinite where it has none), and the decrease that the linearisation promised."""

    y: Any
    loss: float
    promised: float
    corrected: bool


def trial_at(system: Residual, local: Local, z: Tensor, promised: float, corrected: bool = False) -> Trial:
    """The trial at R_y(z)."""
    y = local.retract(z)
    loss = half_square(system.rows(y))
    return Trial(y, loss if math.isfinite(loss) else math.inf, promised, corrected)


def second_order(system: Residual, local: Local, solver: Solver, d: Tensor, Jd: Tensor, mu: float) -> Tensor | None:
    """The correction a, or None where it is not finite or not small against d."""
    ahead = system.rows(local.retract(E * d))
    r_dd = (2 / E) * ((ahead - local.r) / E - Jd)
    a = -solver(r_dd, mu) / 2
    size = float(a.norm())
    return a if math.isfinite(size) and size < 0.75 * float(d.norm()) else None


def half_square(r: Tensor) -> float:
    return float(r @ r) / 2


def _factor(gain: float) -> float:
    """What 1/h is multiplied by after a step with this gain ratio (Nielsen, 1999)."""
    return max(1 / 5, 1 - (2 * min(gain, 1.0) - 1) ** 3)

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
taken where ‖a‖ < ¾‖d‖, and it leaves less than a quarter of the loss or does not do worse than d.

With ``momentum`` β a step starts from β times the last one, c = β P_T(d_last + a_last) in the tangent space at y:

    d  minimises  ½‖r + J d‖² + (1/2h) ‖d - c‖² ,      d = c - (JᵀJ + 1/h)⁻¹ Jᵀ (r + J c) .

Along stiff directions it is the same step; along soft ones, which 1/h holds back, d = c - h Jᵀr is that of the heavy
ball (Polyak, 1964), up to 1/(1-β) times as fast. Where rows are drawn anew for every step and are fewer than columns,
it keeps of the last step what these rows do not see: the accelerated Kaczmarz method, SPRING (Goldshlager, Abrahamsen
and Lin, 2024, arXiv 2401.10190; for PINNs Guzmán-Cordero, Dangel, Goldshlager and Zeinhofer, 2025, arXiv 2505.12149),
here on a manifold. As 1/h grows d tends to c, not to 0, so a step that is refused three times goes on without it. The
path is then no longer that of the flow, and a fixed h, which is there to follow it, has no momentum unless asked to.

h follows the ratio of the loss's decrease to the one that the linearisation promises, both at the step's own points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.integrators.control import check_positive, check_precision
from pinn_odelora.linalg.damped import Operator, Solver, Way
from pinn_odelora.linalg.solvers import solver_for

TRIALS = 30
ACCEPTED = 1e-4
"""The least gain ratio of a step that is taken."""
MOSTLY_GONE = 0.25
E = 0.1
"""e: how far ahead the second derivative looks, as a part of the step."""
MOMENTUM, PATIENCE = 0.7, 3
"""β, and how often a step with momentum may be refused before it goes on without."""


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
    """A step taken: the point, h, the memory for the next step, whether the correction was used, ½‖r‖² at y on the
    step's own points, None where the scheme has not formed it, and how its linear systems were solved.
    """

    y: Any
    h: float
    memory: dict[str, Any]
    corrected: bool = False
    loss: float | None = None
    way: Way | None = None


@dataclass(frozen=True)
class LinearlyImplicit:
    """Linearly implicit Euler.

    Args:
        h: the step size in units of flow time; absent, it follows the gain ratio.
        correction: whether to use the second-order correction.
        momentum: β; absent, 0.7 where h follows the gain ratio and 0 where it is fixed. With a fixed h no step is
            refused, so that it is never dropped.
        first: 1/h of the first step, as a part of the largest diagonal entry of JᵀJ.
        metric: whether an optimiser follows the flow of the product or that of the factors; its own choice if absent.
        memory: bytes that the linear algebra of a step may take, see ``plan``.
        gram_dtype: the least precision of a factored Gram matrix; float32 is used where it is safe, see ``damped``.

    Raises:
        InputError: for a number that is not positive, a momentum outside of [0, 1), or an unknown precision.
    """

    h: float | None = None
    correction: bool = True
    momentum: float | None = None
    first: float = 1e-3
    metric: Literal["weights", "factors"] | None = None
    memory: float = 2.0**29
    gram_dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "h", "first", "memory")
        check_precision(self.gram_dtype)
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise InputError(f"integrator.momentum is {self.momentum!r}, but it must be at least 0 and below 1.")

    @property
    def beta(self) -> float:
        """β, chosen where it is not given."""
        return (MOMENTUM if self.h is None else 0.0) if self.momentum is None else self.momentum

    def step(self, system: Residual, y: Any, memory: dict[str, Any]) -> Taken:
        """One step from y; y itself where no step, however small, makes the loss smaller.

        Args:
            memory: what the previous step returned, empty at first: numbers, and ``last``, the last step as an element
                of the space around the manifold.

        Raises:
            FloatingPointError: if the rows at y are not finite.
        """
        local = system.linearise(y)
        before = half_square(local.r)
        if not math.isfinite(before):
            raise FloatingPointError("The rows where the step starts are not finite.")
        solver = solver_for(local.J, self.gram_dtype == "float32")
        carried = self._carried(local, memory)
        if self.h is not None:
            trial = self._trial(system, local, solver, 1 / self.h, carried)
            return self._taken(local, solver, trial, self.h, {})
        mu, growth = memory.get("mu") or self.first * solver.largest, 2.0
        for refused in range(TRIALS):
            trial = self._trial(system, local, solver, mu, carried if refused < PATIENCE else None)
            gain = (before - trial.loss) / trial.promised if trial.promised > 0 else 0.0
            if gain > ACCEPTED:
                return self._taken(local, solver, trial, 1 / mu, {"mu": mu * _factor(gain)})
            mu, growth = mu * growth, 2 * growth
        return Taken(y, 1 / mu, {"mu": solver.largest}, loss=before, way=solver.used)

    def _carried(self, local: Local, memory: dict[str, Any]) -> Tensor | None:
        """c, or None where there is nothing to carry on."""
        last = memory.get("last")
        return None if last is None or not self.beta else self.beta * local.coordinates(last)

    def _taken(self, local: Local, solver: Solver, trial: Trial, h: float, memory: dict[str, Any]) -> Taken:
        if self.beta:
            memory = memory | {"last": local.vector(trial.z)}
        return Taken(trial.y, h, memory, trial.corrected, trial.loss, solver.used)

    def _trial(self, system: Residual, local: Local, solver: Solver, mu: float, carried: Tensor | None) -> Trial:
        """Where the step with damping μ leads: with the correction, or without it where that does better."""
        d = -solver(local.r, mu) if carried is None else carried - solver(local.r + local.J @ carried, mu)
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
    """A point, its loss (infinite where it has none), the decrease that the linearisation promised, and its coordinates
    z in the tangent space where the step starts.
    """

    y: Any
    z: Tensor
    loss: float
    promised: float
    corrected: bool


def trial_at(system: Residual, local: Local, z: Tensor, promised: float, corrected: bool = False) -> Trial:
    """The trial at R_y(z)."""
    y = local.retract(z)
    loss = half_square(system.rows(y))
    return Trial(y, z, loss if math.isfinite(loss) else math.inf, promised, corrected)


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
    return max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3)

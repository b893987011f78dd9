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
ball (Polyak, 1964), up to 1/(1-β) times as fast. Where every step draws new residuals, fewer than there are
coordinates, it keeps of the last step what these residuals do not determine: the accelerated Kaczmarz method, SPRING
(Goldshlager, Abrahamsen and Lin, 2024, arXiv 2401.10190; for PINNs Guzmán-Cordero, Dangel, Goldshlager and Zeinhofer,
2025, arXiv 2505.12149), here on a manifold. As 1/h grows d tends to c, not to 0, so a step that has been rejected three
times continues without it. The path is then no longer that of the flow, and a fixed h, which is there to follow it, has
no momentum by default.

h follows the ratio of the loss's decrease to the one that the linearisation predicts, both at the step's own points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from pinn_odelora.integrators.base import Local, Report, ResidualFlow, Step
from pinn_odelora.linalg.damped import Solver
from pinn_odelora.linalg.solvers import solver_for
from pinn_odelora.rules import below_one, check, null, number, one_of

TRIALS = 30
ACCEPTED = 1e-4
"""The least gain ratio of a step that is taken."""
MOSTLY_GONE = 0.25
E = 0.1
"""e: how far ahead the second derivative looks, as a part of the step."""
MOMENTUM, PATIENCE = 0.7, 3
"""β, and how often a step with momentum may be refused before it goes on without."""
MEMORY = 2.0**29


@dataclass(frozen=True)
class ImplicitState:
    """What a linearly implicit step hands to the next one.

    Attributes:
        mu: damping 1/h to start from; None before the first step, and where h is fixed.
        last: the last step as an element of the ambient space, for the momentum; None where there is none.
    """

    mu: float | None = None
    last: Any = None


@dataclass(frozen=True)
class LinearlyImplicit:
    """Linearly implicit Euler.

    Args:
        h: the step size in units of flow time; absent, it follows the gain ratio.
        correction: whether to use the second-order correction.
        momentum: β; absent, 0.7 where h follows the gain ratio and 0 where it is fixed. With a fixed h no step is
            refused, so that it is never dropped.
        initial_damping: 1/h of the first step, as a part of the largest diagonal entry of JᵀJ.
        memory: bytes that the linear algebra of a step may take, see ``linalg.plan``.
        gram_dtype: the least precision of a factored Gram matrix; float32 is used where it is safe, see
            ``linalg.damped``.

    Raises:
        InputError: for a number that is not positive, a momentum outside of [0, 1), or an unknown precision.
    """

    h: float | None = None
    correction: bool = True
    momentum: float | None = None
    initial_damping: float = 1e-3
    memory: float = MEMORY
    gram_dtype: Literal["float32", "float64"] = "float32"

    linearises = True
    stages = 1

    def __post_init__(self) -> None:
        positive = number(above=0)
        check(self, h=positive | null, initial_damping=positive, memory=positive, momentum=below_one | null)
        check(self, gram_dtype=one_of("float32", "float64"))

    def init(self) -> ImplicitState:
        """The state before the first step."""
        return ImplicitState()

    def restored(self, saved: dict[str, Any]) -> ImplicitState:
        """The state that ``vars(state)`` was."""
        return ImplicitState(**saved)

    def step(self, flow: ResidualFlow, y: Any, state: ImplicitState, h: float | None = None) -> Step:
        """One step from y; y itself where no step, however small, makes the loss smaller.

        See ``integrators.base.Integrator``.
        """
        h = self.h if h is None else h
        local = flow.linearise(y)
        before = half_square(local.r)
        if not math.isfinite(before):
            raise FloatingPointError("The residuals where the step starts are not finite.")
        beta = (MOMENTUM if h is None else 0.0) if self.momentum is None else self.momentum
        here = _Here(flow, local, solver_for(local.J, self.gram_dtype == "float32"), before, self.correction)
        carried = None if state.last is None or not beta else beta * local.coordinates(state.last)
        if h is not None:
            trial = here.trial(1 / h, carried)
            return here.step(trial, ImplicitState(None, local.vector(trial.z) if beta else None), h)
        mu, factor = state.mu or self.initial_damping * here.solver.largest, 2.0
        for refused in range(TRIALS):
            trial = here.trial(mu, carried if refused < PATIENCE else None)
            gain = (before - trial.loss) / trial.predicted if trial.predicted > 0 else 0.0
            if gain > ACCEPTED:
                last = local.vector(trial.z) if beta else None
                return here.step(trial, ImplicitState(mu * _factor(gain), last), 1 / mu, refused)
            mu, factor = mu * factor, 2 * factor
        report = Report(1 / mu, before, before, TRIALS, solver=here.solver.used, dimension=local.J.shape[1])
        return Step(y, ImplicitState(here.solver.largest), report)


class Trial(NamedTuple):
    """A point, its coordinates z in the tangent space where the step starts, its loss (infinite where it has none), and
    the decrease that the linearisation predicted.
    """

    y: Any
    z: Tensor
    loss: float
    predicted: float
    corrected: bool


@dataclass
class _Here:
    """A step in progress: the loss around y, and the solver of its damped systems."""

    flow: ResidualFlow
    local: Local
    solver: Solver
    before: float
    correction: bool

    def trial(self, mu: float, carried: Tensor | None) -> Trial:
        """Where the step with damping μ leads: with the correction, or without it where that does better."""
        local, solver = self.local, self.solver
        d = -solver(local.r, mu) if carried is None else carried - solver(local.r + local.J @ carried, mu)
        Jd = local.J @ d
        predicted = self.before - half_square(local.r + Jd)
        a = self.second_order(d, Jd, mu) if self.correction else None
        if a is None:
            return self.at(d, predicted)
        corrected = self.at(d + a, predicted, corrected=True)
        # With most of the loss gone there is no need to ask whether d alone would have done better.
        if corrected.loss < MOSTLY_GONE * self.before:
            return corrected
        return min(corrected, self.at(d, predicted), key=lambda trial: trial.loss)

    def at(self, z: Tensor, predicted: float, corrected: bool = False) -> Trial:
        """The trial at R_y(z)."""
        y = self.local.retract(z)
        loss = half_square(self.flow.residuals(y))
        return Trial(y, z, loss if math.isfinite(loss) else math.inf, predicted, corrected)

    def second_order(self, d: Tensor, Jd: Tensor, mu: float) -> Tensor | None:
        """The correction a, or None where it is not finite or not small against d."""
        ahead = self.flow.residuals(self.local.retract(E * d))
        r_dd = (2 / E) * ((ahead - self.local.r) / E - Jd)
        a = -self.solver(r_dd, mu) / 2
        size = float(a.norm())
        return a if math.isfinite(size) and size < 0.75 * float(d.norm()) else None

    def step(self, trial: Trial, state: ImplicitState, h: float, rejected: int = 0) -> Step:
        report = Report(
            h,
            self.before,
            trial.loss,
            rejected,
            trial.corrected,
            solver=self.solver.used,
            dimension=self.local.J.shape[1],
        )
        return Step(trial.y, state, report)


def half_square(r: Tensor) -> float:
    """½‖r‖²."""
    return float(r @ r) / 2


def _factor(gain: float) -> float:
    """What 1/h is multiplied by after a step with this gain ratio (Nielsen, 1999)."""
    return max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3)

"""Linearly implicit steps of the projected gradient flow of L = ½‖r‖² on a manifold.

In orthonormal coordinates z of the tangent space at y the flow is dz/dt = -Jᵀr, J = ∂r/∂z, and for small residuals its
Jacobian is approximately -JᵀJ (Gauss–Newton). The linearly implicit Euler scheme, the simplest Rosenbrock method, is

    (JᵀJ + 1/h) d = -Jᵀ r ,        y⁺ = R_y(d) ,

with the retraction R_y. It follows the flow as h → 0, and takes the minimum-norm Gauss–Newton step as h → ∞. It is
stable for every h, and costs one Jacobian and one factorisation. As an optimiser it is the Levenberg–Marquardt method
on the manifold; the control of h is pseudo-transient continuation (Kelley and Keyes, 1998).

With ``correction`` the factorisation is used a second time. The second derivative of r along d takes one further
evaluation of the residuals,

    r_dd = (2/e) ((r(R_y(e d)) - r)/e - J d) ,     a = -½ (JᵀJ + 1/h)⁻¹ Jᵀ r_dd ,     y⁺ = R_y(d + a) ,

and a is the geodesic acceleration of Transtrum and Sethna (2012, arXiv 1201.5885), extended to the manifold by its
retraction. It is used if ‖a‖ < ¾‖d‖.

What remains is of third order in d, and along the soft directions, in which a step is long, it is what bounds h. Its
part in the stiff directions can be removed, since there J determines it: with z₀ = d + a and the residual that the
linearisation promises, r + J d, up to four simplified Newton iterations

    z_{k+1} = z_k - (JᵀJ + 100/h)⁻¹ Jᵀ (r(R_y(z_k)) - (r + J d)) ,     y⁺ = R_y(z_k) ,

bring the residual to that promise. Each takes one evaluation, all of them one more factor, and the iteration ends where
nine tenths of the predicted decrease are reached or the loss no longer falls. The damping, a hundred times that of the
step, keeps them out of soft directions, where J changes along the step (docs/results/defaults.md). In the terms of
continuation d + a is the predictor and this the corrector. The step is d if that has a smaller loss, unless iterations
have reached their end or three quarters of the loss are gone.

With ``momentum`` β the step is damped towards β times the last one, c = β P_T(d_last + a_last) in the tangent space
at y:

    d  minimises  ½‖r + J d‖² + (1/2h) ‖d - c‖² ,      d = c - (JᵀJ + 1/h)⁻¹ Jᵀ (r + J c) .

Along stiff directions the step is unchanged; along soft directions, dominated by the damping 1/h, d = c - h Jᵀr is the
heavy-ball step (Polyak, 1964), up to 1/(1-β) times as fast. If every step draws new residuals, fewer than there are
coordinates, momentum retains the components of the last step that these residuals do not determine. This is the
accelerated Kaczmarz method, SPRING (Goldshlager, Abrahamsen and Lin, 2024, arXiv 2401.10190; for PINNs Guzmán-Cordero,
Dangel, Goldshlager and Zeinhofer, 2025, arXiv 2505.12149), here on a manifold. As 1/h → ∞ d tends to c, not to 0, so
momentum is dropped after three rejected trials. With momentum the path is no longer that of the flow, so the default
for a fixed h, whose purpose is to follow the flow, is β = 0.

h is controlled by the gain ratio: the decrease of the loss over the decrease predicted by the linearisation, both at
the points of the step. It stays below the h at which rounding errors of JᵀJ exceed 1/h, and soft directions, with
eigenvalues of JᵀJ below that 1/h, are then all that is left: along them the loss falls by about a per cent a step.
There d is the proximal point of the linearised loss at y + c, so that after k steps in a row at the largest h, none of
them with a rejected trial,

    β_k = k / (k + 3)    where that is above β

makes the iteration the accelerated proximal point method (Güler, 1992, SIAM J. Optim. 2; β_k as in Su, Boyd and Candès,
2014, arXiv 1503.01243). For a linear r the part of the loss along soft directions falls like 1/k² in place of 1/k, at
the same cost (docs/results/floor.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from pinn_odelora.integrators.base import Local, Report, ResidualFlow, Step
from pinn_odelora.linalg.damped import Solver, SolverUsed
from pinn_odelora.linalg.solvers import solver_for
from pinn_odelora.rules import below_one, check, null, number, one_of

TRIALS = 30
ACCEPTED = 1e-4
"""The smallest gain ratio of an accepted step."""
MOSTLY_GONE, KEPT = 0.25, 0.9
"""A corrected step that reduces the loss below this fraction is accepted without comparing it with d, and so is one
that iterations have brought to this part of the predicted decrease, at which they end."""
ITERATIONS, STIFF = 4, 100.0
"""Simplified Newton iterations at most, and their damping relative to that of the step."""
E = 0.1
"""e, the step of the finite difference for the second derivative, relative to d."""
MOMENTUM, PATIENCE = 0.7, 3
"""The default β, and the number of rejected trials after which momentum is dropped."""
DELAY = 3
"""Of the momentum at the largest h, k / (k + 3)."""
MEMORY = 2.0**29
"""Default memory for the linear algebra of a step, in bytes."""


@dataclass(frozen=True)
class ImplicitState:
    """The state of a linearly implicit scheme between steps.

    Attributes:
        mu: damping 1/h of the first trial of the next step; None before the first step, and for a fixed h.
        last: the last step as an element of the ambient space, for the momentum; None without momentum.
        at_least: k, the steps in a row with the least damping and no rejected trial.
    """

    mu: float | None = None
    last: Any = None
    at_least: int = 0


@dataclass(frozen=True)
class LinearlyImplicit:
    """The linearly implicit Euler scheme with corrections and momentum.

    Args:
        h: the step size in units of flow time; None to control it by the gain ratio.
        correction: whether to use the second-order correction and the iterations after it.
        momentum: β; None for 0 if h is fixed, and if it is controlled for 0.7, which grows towards 1 while h is the
            largest for which a Cholesky factor serves. With a fixed h no step is rejected, so momentum is never
            dropped.
        initial_damping: 1/h of the first trial, relative to the largest diagonal entry of JᵀJ.
        memory: bytes available for the linear algebra of a step, see ``linalg.plan``.
        gram_dtype: lowest precision of a factored Gram matrix; float32 is used only where it is accurate enough, see
            ``linalg.damped``.

    Raises:
        InputError: if a number is not positive, momentum is outside [0, 1), or the precision is unknown.
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

    def step(self, flow: ResidualFlow, y: Any, state: ImplicitState, h: float | None = None) -> Step:
        """One step from y; y itself if no trial step, however small, decreases the loss.

        Arguments as for ``integrators.base.Integrator.step``.

        Raises:
            FloatingPointError: if the residuals at y are not finite.
        """
        h = self.h if h is None else h
        local = flow.linearise(y)
        before = half_square(local.r)
        if not math.isfinite(before):
            raise FloatingPointError("The residuals where the step starts are not finite.")
        solver = solver_for(local.J, self.gram_dtype == "float32")
        check_jacobian(solver)
        beta = self._momentum_after(state.at_least, h)
        here = _Here(flow, local, solver, before, self.correction)
        carried = None if state.last is None or not beta else beta * local.coordinates(state.last)
        if h is not None:
            trial = here.trial(1 / h, carried)
            return here.step(trial, ImplicitState(None, local.vector(trial.z) if beta else None), h)
        # If J vanishes, there is no natural scale.
        mu, factor = state.mu or self.initial_damping * solver.largest or 1.0, 2.0
        for refused in range(TRIALS):
            mu = max(mu, solver.trusted)
            trial = here.attempt(mu, carried if refused < PATIENCE else None)
            gain = here.gain(trial)
            if gain > ACCEPTED:
                last = local.vector(trial.z) if beta else None
                at_least = state.at_least + 1 if mu == solver.trusted and not refused else 0
                return here.step(trial, ImplicitState(mu * _factor(gain), last, at_least), 1 / mu, refused)
            mu, factor = mu * factor, 2 * factor
        report = Report(1 / mu, before, before, TRIALS, solver=here.solver.used, dimension=local.J.shape[1])
        return Step(y, ImplicitState(here.solver.largest), report)

    def _momentum_after(self, at_least: int, h: float | None) -> float:
        """β of a step after so many at the least damping; ``h`` is None where it is controlled."""
        if self.momentum is not None:
            return self.momentum
        return max(MOMENTUM, at_least / (at_least + DELAY)) if h is None else 0.0


class Trial(NamedTuple):
    """A trial step.

    Attributes:
        y: the point reached.
        z: its coordinates in the tangent space at the starting point, (P,).
        loss: at y; infinite if it is NaN.
        predicted: the decrease of the loss predicted by the linearisation.
        corrected: whether z contains the second-order correction.
        r: residuals at y, (R,).
        solver: how d was found; the corrector may have used another.
    """

    y: Any
    z: Tensor
    loss: float
    predicted: float
    corrected: bool
    r: Tensor
    solver: SolverUsed | None = None


@dataclass
class _Here:
    """A step in progress: the local model, and the solver of its damped systems."""

    flow: ResidualFlow
    local: Local
    solver: Solver
    before: float
    correction: bool

    def trial(self, mu: float, carried: Tensor | None) -> Trial:
        """The trial step with damping μ."""
        local, solver = self.local, self.solver
        d = -solver(local.r, mu) if carried is None else carried - solver(local.r + local.J @ carried, mu)
        used = solver.used
        return self.along(d, mu)._replace(solver=used)

    def attempt(self, mu: float, carried: Tensor | None) -> Trial:
        """The trial step, of infinite loss where it is so long that numbers overflow."""
        try:
            return self.trial(mu, carried)
        except FloatingPointError:
            return Trial(None, self.local.r.new_zeros(self.local.J.shape[1]), math.inf, 0.0, False, self.local.r)

    def along(self, d: Tensor, mu: float) -> Trial:
        """The trial step d, corrected unless that gains little and the plain one has a smaller loss."""
        local = self.local
        Jd = local.J @ d
        predicted = self.before - half_square(local.r + Jd)
        a = self.second_order(d, Jd, mu) if self.correction else None
        if a is None:
            return self.at(d, predicted)
        first = self.at(d + a, predicted, corrected=True)
        corrected = self.iterated(first, local.r + Jd, STIFF * mu)
        # With such a decrease the uncorrected step need not be evaluated, nor where it had to be brought back so far.
        if corrected.loss < MOSTLY_GONE * self.before or (corrected is not first and self.gain(corrected) > KEPT):
            return corrected
        return min(corrected, self.at(d, predicted), key=lambda trial: trial.loss)

    def iterated(self, trial: Trial, promised: Tensor, mu: float) -> Trial:
        """The trial moved towards the point where the residuals are ``promised``, (R,), while its loss falls."""
        for _ in range(ITERATIONS):
            if not math.isfinite(trial.loss) or self.gain(trial) > KEPT:
                break
            closer = self.at(trial.z - self.solver(trial.r - promised, mu), trial.predicted, corrected=True)
            if not closer.loss < trial.loss:
                break
            trial = closer
        return trial

    def gain(self, trial: Trial) -> float:
        """The gain ratio of a trial."""
        return (self.before - trial.loss) / trial.predicted if trial.predicted > 0 else 0.0

    def at(self, z: Tensor, predicted: float, corrected: bool = False) -> Trial:
        """The trial at R_y(z)."""
        y = self.local.retract(z)
        r = self.flow.residuals(y)
        loss = half_square(r)
        return Trial(y, z, loss if math.isfinite(loss) else math.inf, predicted, corrected, r)

    def second_order(self, d: Tensor, Jd: Tensor, mu: float) -> Tensor | None:
        """The correction a; None if it is not finite or not small compared with d."""
        ahead = self.flow.residuals(self.local.retract(E * d))
        r_dd = (2 / E) * ((ahead - self.local.r) / E - Jd)
        a = -self.solver(r_dd, mu) / 2
        size = float(a.norm())
        return a if math.isfinite(size) and size < 0.75 * float(d.norm()) else None

    def step(self, trial: Trial, state: ImplicitState, h: float, rejected: int = 0) -> Step:
        """The accepted trial as a step."""
        report = Report(
            h,
            self.before,
            trial.loss,
            rejected,
            trial.corrected,
            solver=trial.solver,
            dimension=self.local.J.shape[1],
        )
        return Step(trial.y, state, report)


def half_square(r: Tensor) -> float:
    """½‖r‖² for r (R,)."""
    return float(r @ r) / 2


def check_jacobian(solver: Solver) -> None:
    """Check that the Jacobian of a solver is finite, by the diagonal of JᵀJ.

    Raises:
        FloatingPointError: if it has NaN or infinite entries.
    """
    if not math.isfinite(solver.largest):
        raise FloatingPointError("The Jacobian of the residuals where the step starts is not finite.")


def _factor(gain: float) -> float:
    """The factor of 1/h after a step with this gain ratio (Nielsen, 1999)."""
    return max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3)

"""ROS2, a second-order linearly implicit scheme, for the projected gradient flow of L = ½‖r‖² on a manifold.

In orthonormal coordinates of the tangent space at y, with F(y) = -Jᵀr, Ĵ = -JᵀJ and retraction R_y,

    (I - γ h Ĵ) k₁ = F(y) ,
    (I - γ h Ĵ) k₂ = P_y F(R_y(h k₁)) - 2 k₁ ,        y⁺ = R_y(h (3 k₁ + k₂)/2) ,

where P_y projects the second velocity on the tangent space at y. The Gauss–Newton matrix Ĵ is not the Jacobian of F,
which would reduce a Rosenbrock method to order one; this scheme is a W-method, of order two for any matrix Ĵ (Verwer,
Spee, Blom and Hundsdorfer, 1999). It is L-stable for γ = 1 ± 1/√2, and A-stable for γ ≥ 1/4. On y' = λ y, z = h λ,

    y⁺ = (1 + (1 - 2γ) z + (½ - 2γ + γ²) z²)/(1 - γ z)² · y .

A step costs one factorisation and two linearisations. The embedded first-order solution is y + h k₁, so that
h (k₁ + k₂)/2 estimates the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.integrators.base import Local, Report, ResidualFlow, Step
from pinn_odelora.integrators.control import controlled
from pinn_odelora.integrators.linearly_implicit import MEMORY, check_jacobian, half_square
from pinn_odelora.linalg.damped import Solver
from pinn_odelora.linalg.solvers import solver_for
from pinn_odelora.rules import check, null, number, one_of


@dataclass(frozen=True)
class Ros2State:
    """The state between steps: the suggested h, None at first, and the error of the last step."""

    h: float | None = None
    error: float = 1.0


class Stages(NamedTuple):
    """k₁ and k₂ in coordinates at y, (P,)."""

    k1: Tensor
    k2: Tensor


def ros2_stages(flow: ResidualFlow, local: Local, solver: Solver, h: float, gamma: float) -> Stages:
    """Both stages of a step of size h from y.

    Args:
        flow: the gradient flow.
        local: its local model at y.
        solver: the solver for the J of ``local``.
        h: the step size.
        gamma: γ.

    Raises:
        FloatingPointError: if the velocity at the second stage is not finite.
    """
    mu = 1 / (gamma * h)
    k1 = -mu * solver(local.r, mu)
    second = flow.linearise(local.retract(h * k1))
    velocity = local.coordinates(second.vector(-(second.J.mT @ second.r)))
    if not bool(torch.isfinite(velocity).all()):
        raise FloatingPointError(f"The velocity at the second stage of a step of h = {h:.1e} is not finite.")
    b = velocity - 2 * k1
    # (JᵀJ/μ + I)⁻¹ b, also for b outside the range of Jᵀ.
    return Stages(k1, b - solver(local.J @ b, mu))


@dataclass(frozen=True)
class ROS2:
    """The two-stage W-method ROS2.

    Args:
        h: the step size in units of flow time; None to control it by the error estimate.
        gamma: γ ≥ 1/4, for A-stability.
        rtol, atol: tolerances of the error e, measured by the change of the residuals, ‖J e‖ ≤ rtol ‖r‖ + atol, since
            residuals have a natural scale on any manifold.
        memory: bytes available for the linear algebra of a step, see ``linalg.plan``.
        gram_dtype: as in ``LinearlyImplicit``.

    Raises:
        InputError: if a number is not positive, γ < 1/4, or the precision is unknown.
    """

    h: float | None = None
    gamma: float = 1 - 1 / math.sqrt(2)
    rtol: float = 0.1
    atol: float = 1e-12
    memory: float = MEMORY
    gram_dtype: Literal["float32", "float64"] = "float32"

    linearises = True
    stages = 2

    def __post_init__(self) -> None:
        positive = number(above=0)
        check(self, h=positive | null, rtol=positive, atol=positive, memory=positive)
        check(self, gamma=number(least=0.25), gram_dtype=one_of("float32", "float64"))

    def init(self) -> Ros2State:
        """The state before the first step."""
        return Ros2State()

    def step(self, flow: ResidualFlow, y: Any, state: Ros2State, h: float | None = None) -> Step:
        """One accepted step from y; arguments and errors as for ``integrators.base.Integrator.step``."""
        h = self.h if h is None else h
        local = flow.linearise(y)
        if not bool(torch.isfinite(local.r).all()):
            raise FloatingPointError("The residuals where the step starts are not finite.")
        solver, before = solver_for(local.J, self.gram_dtype == "float32"), half_square(local.r)
        check_jacobian(solver)
        if h is not None:
            k1, k2 = ros2_stages(flow, local, solver, h, self.gamma)
            report = Report(h, before, solver=solver.used, dimension=local.J.shape[1])
            return Step(local.retract(h * (3 * k1 + k2) / 2), state, report)

        def attempt(h: float) -> tuple[tuple[Any, float], float]:
            k1, k2 = ros2_stages(flow, local, solver, h, self.gamma)
            new = local.retract(h * (3 * k1 + k2) / 2)
            loss = half_square(flow.residuals(new))
            return (new, loss), self._error(local, h * (k1 + k2) / 2) if math.isfinite(loss) else math.inf

        # With a longer step μ would vanish beside the largest eigenvalue of JᵀJ, and rounding would decide the error.
        largest = solver.largest or 1.0
        longest = 1 / (self.gamma * torch.finfo(local.r.dtype).eps * largest)
        found = controlled(attempt, state.h or 1 / largest, state.error, 1 / 2, longest)
        new, loss = found.result
        report = Report(found.h, before, loss, found.rejected, solver=solver.used, dimension=local.J.shape[1])
        return Step(new, Ros2State(found.next_h, found.error), report)

    def _error(self, local: Local, e: Tensor) -> float:
        size = self.rtol * linalg.vector_norm(local.r) + self.atol
        error = float(linalg.vector_norm(local.J @ e) / size)
        return error if math.isfinite(error) else math.inf

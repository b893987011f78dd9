"""ROS2, the linearly implicit scheme of second order, for the projected gradient flow of L = ½‖r‖² on a manifold.

In orthonormal coordinates of the tangent space at y, with F(y) = -Jᵀr, Ĵ = -JᵀJ and retraction R_y,

    (I - γ h Ĵ) k₁ = F(y) ,
    (I - γ h Ĵ) k₂ = P_y F(R_y(h k₁)) - 2 k₁ ,        y⁺ = R_y(h (3 k₁ + k₂)/2) ,

P_y being the projection on the tangent space at y, which brings the second velocity home. The Gauss-Newton Ĵ is not
the Jacobian of F, and a Rosenbrock method would drop to order one; this is a W-method, of order two for any matrix Ĵ
(Verwer, Spee, Blom and Hundsdorfer, 1999). γ = 1 ± 1/√2 makes it L-stable, γ ≥ 1/4 A-stable. On y' = λ y, z = h λ,

    y⁺ = (1 + (1 - 2γ) z + (½ - 2γ + γ²) z²)/(1 - γ z)² · y .

One step costs one factorisation and two linearisations. y + h k₁ is the embedded first-order solution, so that
h (k₁ + k₂)/2 estimates the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.errors import InputError
from pinn_odelora.integrators.control import check_positive, check_precision, next_step
from pinn_odelora.integrators.implicit import Local, Residual, Taken, half_square
from pinn_odelora.linalg.damped import Solver
from pinn_odelora.linalg.solvers import solver_for

TRIALS = 40


class Stages(NamedTuple):
    """k₁ and k₂ in coordinates at y, (P,)."""

    k1: Tensor
    k2: Tensor


def ros2_stages(system: Residual, local: Local, solver: Solver, h: float, gamma: float) -> Stages:
    """Both stages of a step of size h from the point that ``local`` describes; ``solver`` is that of its J.

    Raises:
        FloatingPointError: if the velocity at the second stage is not finite.
    """
    mu = 1 / (gamma * h)
    k1 = -mu * solver(local.r, mu)
    second = system.linearise(local.retract(h * k1))
    velocity = local.coordinates(second.vector(-(second.J.mT @ second.r)))
    if not bool(torch.isfinite(velocity).all()):
        raise FloatingPointError(f"The velocity at the second stage of a step of h = {h:.1e} is not finite.")
    b = velocity - 2 * k1
    # (JᵀJ/μ + I)⁻¹ b, also where J has more columns than rows and b is not in the range of Jᵀ.
    return Stages(k1, b - solver(local.J @ b, mu))


@dataclass(frozen=True)
class ROS2:
    """The two-stage W-method.

    Args:
        h: the step size in units of flow time; absent, it follows the error estimate.
        gamma: γ.
        rtol, atol: tolerances of the error e, measured by the rows it changes: ‖J e‖ ≤ rtol ‖r‖ + atol. They are what
            has a natural scale on any manifold.
        metric: whether an optimiser follows the flow of the product or that of the factors; its own choice if absent.
        memory: bytes that the linear algebra of a step may take, see ``plan``.
        gram_dtype: as that of ``LinearlyImplicit``.

    Raises:
        InputError: for a number that is not positive, γ < 1/4, or an unknown precision.
    """

    h: float | None = None
    gamma: float = 1 - 1 / math.sqrt(2)
    rtol: float = 0.1
    atol: float = 1e-12
    metric: Literal["weights", "factors"] | None = None
    memory: float = 2.0**29
    gram_dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        check_positive(self, "h", "gamma", "rtol", "atol", "memory")
        check_precision(self.gram_dtype)
        if self.gamma < 0.25:
            raise InputError(f"integrator.gamma is {self.gamma!r}, but the scheme is A-stable from 0.25 on only.")

    def step(self, system: Residual, y: Any, memory: dict[str, Any]) -> Taken:
        """One accepted step from y.

        Args:
            memory: what the previous step returned, empty at first; plain numbers only.

        Raises:
            FloatingPointError: if the rows at y are not finite, or no step, however small, leads to finite rows within
                tolerance.
        """
        local = system.linearise(y)
        if not bool(torch.isfinite(local.r).all()):
            raise FloatingPointError("The rows where the step starts are not finite.")
        solver = solver_for(local.J, self.gram_dtype == "float32")
        if self.h is not None:
            k1, k2 = ros2_stages(system, local, solver, self.h, self.gamma)
            return Taken(local.retract(self.h * (3 * k1 + k2) / 2), self.h, {}, way=solver.used)
        return self._controlled(system, local, solver, memory)

    def _controlled(self, system: Residual, local: Local, solver: Solver, memory: dict[str, Any]) -> Taken:
        """Shrink h until the error estimate is within tolerance; then suggest the next h."""
        h, previous = memory.get("h") or 1 / solver.largest, memory.get("error", 1.0)
        for _ in range(TRIALS):
            try:
                k1, k2 = ros2_stages(system, local, solver, h, self.gamma)
                new = local.retract(h * (3 * k1 + k2) / 2)
                loss = half_square(system.rows(new))
                error = self._error(local, h * (k1 + k2) / 2) if math.isfinite(loss) else math.inf
            except FloatingPointError:
                error = math.inf
            if error <= 1:
                memory = {"h": next_step(h, error, previous, 1 / 2), "error": max(error, 1e-4)}
                return Taken(new, h, memory, loss=loss, way=solver.used)
            h = min(next_step(h, error, 1.0, 1 / 2), 0.9 * h)
        raise FloatingPointError(f"No step down to h = {h:.1e} meets the tolerance with finite rows.")

    def _error(self, local: Local, e: Tensor) -> float:
        size = self.rtol * linalg.vector_norm(local.r) + self.atol
        error = float(linalg.vector_norm(local.J @ e) / size)
        return error if math.isfinite(error) else math.inf

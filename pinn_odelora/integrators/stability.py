"""The largest eigenvalue of a flow's Jacobian, by power iteration on differences of velocities.

    v ← (f(y + ε v) - f(y)) / ε,   λ ≈ ‖v⁺‖ / ‖v‖          (Sommeijer, Shampine and Verwer, 1998, the RKC code)

Each iteration takes one evaluation of the velocity, as much as a product with the Gauss–Newton part JᵀJ alone, and
includes the curvature of the manifold. The initial vector is random with a fixed seed: f(y) has no stiff component left
once the stiff modes have decayed, which is when the estimate matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.manifolds.space import Point

if TYPE_CHECKING:
    from pinn_odelora.integrators.base import Flow, Velocity

INCREASE = 1.1
"""Factor of velocity or loss above which the largest eigenvalue is estimated again."""


class Estimate(NamedTuple):
    """The estimate |λ|_max, with the numbers that decide when it is renewed.

    Attributes:
        eigenvalue: |λ|_max, in units of 1/time.
        age: steps since it was estimated.
        speed: the smallest norm of the velocity since then.
        loss: the loss at the last step, NaN if unknown.
    """

    eigenvalue: float
    age: int
    speed: float
    loss: float


def kept_eigenvalue(flow: Flow, y: Point, here: Velocity, last: Estimate | None, renew: int) -> Estimate:
    """The last estimate, renewed after ``renew`` steps or if the velocity or the loss has grown.

    On a gradient flow a growing velocity is the first sign of an unstable mode, and a growing loss the last; if the
    points change between steps, they may also be the cause.

    Args:
        flow: the flow.
        y: the present point.
        here: velocity and loss at y.
        last: the estimate of the last step, or None.
        renew: most steps between two estimates.
    """
    speed = norm(flow.space.entries(here.slope))
    if last is None:
        return Estimate(largest_eigenvalue(flow, y, here), 1, speed, here.loss)
    least = min(speed, last.speed)
    if last.age >= renew or speed > INCREASE * least or here.loss > INCREASE * last.loss:
        return Estimate(largest_eigenvalue(flow, y, here), 1, speed, here.loss)
    return Estimate(last.eigenvalue, last.age + 1, least, here.loss)


def largest_eigenvalue(flow: Flow, y: Point, here: Velocity, iterations: int = 8) -> float:
    """|λ|_max of ∂f/∂y at y, estimated from below, in units of 1/time.

    Args:
        flow: the flow; on a manifold, the derivative of its tangent velocity along the manifold is meant.
        y: the point.
        here: velocity and loss at y.
        iterations: number of iterations, and of evaluations of the velocity.
    """
    space = flow.space
    size = space.entries(space.element(y))
    eps = torch.finfo(size[0].dtype).eps ** 0.5 * max(norm(size), 1.0)
    direction = space.random(y, torch.Generator().manual_seed(0))
    estimate = 0.0
    for _ in range(iterations):
        length = norm(space.entries(direction))
        if length == 0:
            break
        shifted = flow.velocity(space.combine([(1.0, y)], [(eps / length, direction)])).slope
        direction = space.quotient(y, here.slope, shifted, eps)
        estimate = max(estimate, norm(space.entries(direction)))
    return max(estimate, 1e-12)


def norm(state: list[Tensor]) -> float:
    """The Euclidean norm of a list of tensors."""
    return float(torch.sqrt(sum(x.double().square().sum() for x in state)))

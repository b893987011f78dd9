"""The largest eigenvalue of a flow's Jacobian, by power iteration on differences of velocities.

    v ← (f(y + ε v) - f(y)) / ε,   λ ≈ ‖v⁺‖ / ‖v‖          (Sommeijer, Shampine and Verwer, 1998, the RKC code)

Each iteration is one evaluation of the velocity, and sees the whole Jacobian, with the curvature of the manifold; a
product with the Gauss-Newton part JᵀJ alone would cost as much. The start is random from a fixed seed: a start such as
f(y) would hold no stiff component any more once the stiff modes have decayed, which is when the estimate matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.manifolds.space import FLAT, Slope, Space, State

GROWTH = 1.1
"""Growth of velocity or loss after which the largest eigenvalue is estimated anew."""


class Estimate(NamedTuple):
    """λ, and the memory from which the next step can tell whether it still holds; plain numbers only."""

    eigenvalue: float
    memory: dict[str, Any]


def kept_eigenvalue(
    f: Callable[[State], Slope],
    y: State,
    velocity: Slope,
    memory: dict[str, Any],
    renew: int,
    space: Space = FLAT,
    loss: float = math.nan,
) -> Estimate:
    """The estimate of earlier steps, made anew when it is old, or the velocity or the loss has grown.

    On a gradient flow a growing velocity is the first sign of a mode that the step amplifies, and a growing loss the
    last one; where points change it may also be the points.

    Args:
        memory: what the last step left; without an estimate one is made.
        renew: steps after which it is old.
        loss: at y, NaN where it is not known.
    """
    age, speed = memory.get("age", renew), norm(space.entries(velocity))
    least = min(speed, memory.get("speed", speed))
    eigenvalue = memory.get("eigenvalue")
    grown = speed > GROWTH * least or loss > GROWTH * memory.get("loss", math.inf)
    if eigenvalue is None or age >= renew or grown:
        eigenvalue, age, least = largest_eigenvalue(f, y, velocity, space=space), 0, speed
    return Estimate(eigenvalue, {"eigenvalue": eigenvalue, "age": age + 1, "speed": least, "loss": loss})


def largest_eigenvalue(
    f: Callable[[State], Slope], y: State, velocity: Slope, iterations: int = 8, space: Space = FLAT
) -> float:
    """|λ|_max of ∂f/∂y at y, estimated from below, in units of 1/time.

    Args:
        f: the velocity field.
        y: where.
        velocity: f(y), already known.
        iterations: evaluations to spend.
        space: where y lives; on a manifold the derivative is that of the tangent velocity along the manifold.
    """
    size = space.entries(space.element(y))
    eps = torch.finfo(size[0].dtype).eps ** 0.5 * max(norm(size), 1.0)
    direction = space.random(y, torch.Generator().manual_seed(0))
    estimate = 0.0
    for _ in range(iterations):
        length = norm(space.entries(direction))
        if length == 0:
            break
        shifted = f(space.combine([(1.0, y)], [(eps / length, direction)]))
        direction = space.quotient(y, velocity, shifted, eps)
        estimate = max(estimate, norm(space.entries(direction)))
    return max(estimate, 1e-12)


def norm(state: list[Tensor]) -> float:
    """The Euclidean norm of a list of tensors."""
    return float(torch.sqrt(sum(x.double().square().sum() for x in state)))

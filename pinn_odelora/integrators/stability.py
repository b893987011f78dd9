"""The largest eigenvalue of a flow's Jacobian, by power iteration on differences of velocities.

    v ← (f(y + ε v) - f(y)) / ε,   λ ≈ ‖v⁺‖ / ‖v‖          (Sommeijer, Shampine and Verwer, 1998, the RKC code)

Each iteration is one evaluation of the velocity. The start is random from a fixed seed: a start such as f(y) would
hold no stiff component any more once the stiff modes have decayed, which is when the estimate matters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def largest_eigenvalue(
    f: Callable[[list[Tensor]], list[Tensor]], y: list[Tensor], velocity: list[Tensor], iterations: int = 8
) -> float:
    """|λ|_max of ∂f/∂y at y, estimated from below, in units of 1/time.

    Args:
        f: the velocity field.
        y: where.
        velocity: f(y), already known.
        iterations: evaluations to spend.
    """
    eps = torch.finfo(y[0].dtype).eps ** 0.5 * max(norm(y), 1.0)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in y]
    estimate = 0.0
    for _ in range(iterations):
        length = norm(direction)
        if length == 0:
            break
        shifted = f([x + eps / length * v for x, v in zip(y, direction, strict=True)])
        direction = [(b - a) / eps for a, b in zip(velocity, shifted, strict=True)]
        estimate = max(estimate, norm(direction))
    return max(estimate, 1e-12)


def norm(state: list[Tensor]) -> float:
    """The Euclidean norm of a state."""
    return float(torch.sqrt(sum(x.double().square().sum() for x in state)))

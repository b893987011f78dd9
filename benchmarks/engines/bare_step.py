"""The step that one would write by hand, as a measure of what the loop costs: loss, gradient, torch's Adam."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from pinn_odelora.points import Points
from pinn_odelora.system import System


def adam(
    system: System, parameters: Sequence[torch.Tensor], points: Mapping[str, Points], lr: float
) -> Callable[[], None]:
    """A step on the same points at every call."""
    optimizer = torch.optim.Adam(parameters, lr=lr)

    def step() -> None:
        loss = system.loss(points).total
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        optimizer.step()

    return step

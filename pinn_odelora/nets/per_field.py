"""One network for each field:  N(x) = (N_1(x), …, N_k(x)), which share no weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import seeded, size
from pinn_odelora.nets.mlp import MLP


class PerField(nn.Module):
    """An ``MLP`` for each output, ``nets.<output>.linears.<layer>``.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width, depth, activation: of each MLP.
        generator: source of the initial weights, which differ; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, or the activation is unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 40,
        depth: int = 4,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width, self.depth, self.activation = width, depth, activation
        generator = seeded(generator)
        own = (MLP(inputs, 1, width, depth, activation, generator) for _ in range(size("outputs", outputs)))
        self.nets = nn.ModuleList(own)

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        return torch.cat([net(x) for net in self.nets], dim=-1)

"""A residual network:  h ← h + σ(V σ(W h + b) + c)  in each block.

Residual connections are those of He, Zhang, Ren and Sun (2016, arXiv 1512.03385), the block that of the deep Ritz
method (E and Yu, 2018, arXiv 1710.00211): two fully connected layers, each with its activation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import ACTIVATIONS, check_activation, linear, linears, seeded, size


class ResNet(nn.Module):
    """``first``, then the blocks ``blocks.<block>.0`` and ``blocks.<block>.1``, then ``last``.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width: units of a layer.
        depth: number of blocks, of two square layers each.
        activation: a key of ``ACTIVATIONS``.
        generator: source of the initial weights; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, or the activation is unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 40,
        depth: int = 2,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = check_activation(activation)
        self.width, self.depth = size("width", width), size("depth", depth)
        generator = seeded(generator)
        self.first = linear(size("inputs", inputs), self.width, generator)
        self.blocks = nn.ModuleList(linears([self.width] * 3, generator) for _ in range(self.depth))
        self.last = linear(self.width, size("outputs", outputs), generator)

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        h = activation(self.first(x))
        for inner, outer in self.blocks:
            h = h + activation(outer(activation(inner(h))))
        return self.last(h)

"""SIREN, an MLP with periodic activation:  h ← sin(ω (W h + b)).

The first layer has W uniform in ±1/n, the hidden ones and the last in ±√(6/n)/ω with their own ω, n the number of
inputs of the layer; then all hidden layers have the same distribution at the start, and the first ω sets the highest
frequency of the network (Sitzmann et al., 2020, arXiv 2006.09661). Biases are uniform in ±1/√n. The authors' ω = 30 is
made for images; a solution with a few waves needs a few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import linears, seeded, size
from pinn_odelora.rules import number


class SIREN(nn.Module):
    """A network with ``depth`` hidden layers, the linear layers ``linears.0`` … ``linears.<depth>``.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width: units of a hidden layer.
        depth: number of hidden layers.
        w0: ω of the first layer.
        w0_hidden: ω of the others. It cancels at the start, and makes gradient descent faster by its square.
        generator: source of the initial weights; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, or a frequency is not positive.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 40,
        depth: int = 4,
        w0: float = 3.0,
        w0_hidden: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.width, self.depth = size("width", width), size("depth", depth)
        self.w0, self.w0_hidden = number(above=0).check("w0", w0), number(above=0).check("w0_hidden", w0_hidden)
        generator = seeded(generator)
        sides = [size("inputs", inputs), *[self.width] * self.depth, size("outputs", outputs)]
        self.linears = linears(sides, generator)
        for layer in self.linears:
            n = layer.in_features
            bound = 1 / n if layer is self.linears[0] else math.sqrt(6 / n) / self.w0_hidden
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -1 / math.sqrt(n), 1 / math.sqrt(n), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        first, *hidden, last = self.linears
        x = torch.sin(self.w0 * first(x))
        for linear in hidden:
            z = linear(x)
            x = torch.sin(z if self.w0_hidden == 1 else self.w0_hidden * z)
        return last(x)

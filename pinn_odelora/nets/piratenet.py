"""PirateNet, a residual network that is linear at the start and finds its own depth:

    φ = (cos 2πBx, sin 2πBx),  U = σ(W_U φ + b_U),  V = σ(W_V φ + b_V),  h = φ,  and in each block

    f = σ(W_1 h + b_1),  z = (1 - f) ⊙ U + f ⊙ V,
    g = σ(W_2 z + b_2),  z = (1 - g) ⊙ U + g ⊙ V,
    h ← α σ(W_3 z + b_3) + (1 - α) h,     α = 0 at the start, trained,

then N(x) = W h + b (Wang, Li, Chen and Perdikaris, 2024, arXiv 2402.00326). The authors' frequencies have no factor 2π;
here σ is in waves per unit of length, as in ``FourierMLP``. They also fit W to data before training; natural gradient
does that in its first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.errors import RefusedValueError
from pinn_odelora.nets.fourier import FourierFeatures
from pinn_odelora.nets.layers import ACTIVATIONS, Activation, check_activation, linear, linears, seeded, size
from pinn_odelora.nets.modified_mlp import mixed


class Block(nn.Module):
    """Three square layers ``linears.0`` … ``linears.2`` and their weight ``alpha`` in the sum, a number."""

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linears = linears([width] * 4, generator)
        self.alpha = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, h: Tensor, U: Tensor, V: Tensor, activation: Activation) -> Tensor:
        """h after the block, (N, width)."""
        first, second, third = self.linears
        z = mixed(activation(first(h)), U, V)
        z = mixed(activation(second(z)), U, V)
        return h + self.alpha * (activation(third(z)) - h)


class PirateNet(nn.Module):
    """``features``, the encodings ``U`` and ``V``, ``blocks.<block>``, and ``last``.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width: units of a layer, even, since half as many random frequencies are its input.
        depth: number of blocks, of three square layers each.
        sigma: σ, the standard deviation of the frequencies, in waves per unit of length.
        activation: a key of ``ACTIVATIONS``.
        generator: source of the frequencies and the initial weights; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, the width is odd, σ is not positive, or the
            activation is unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 32,
        depth: int = 1,
        sigma: float = 0.5,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = check_activation(activation)
        self.width, self.depth, self.sigma = size("width", width), size("depth", depth), sigma
        if self.width % 2:
            raise RefusedValueError("width", width, "an even number, since each frequency gives a cosine and a sine")
        generator = seeded(generator)
        self.features = FourierFeatures(inputs, self.width // 2, sigma, generator)
        self.U, self.V = (linear(self.width, self.width, generator) for _ in range(2))
        self.blocks = nn.ModuleList(Block(self.width, generator) for _ in range(self.depth))
        self.last = linear(self.width, size("outputs", outputs), generator)

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        h = self.features(x)
        U, V = activation(self.U(h)), activation(self.V(h))
        for block in self.blocks:
            h = block(h, U, V, activation)
        return self.last(h)

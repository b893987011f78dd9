"""An MLP on random Fourier features of the coordinates, of one or several scales:

    φ_σ(x) = (cos 2πBx, sin 2πBx),  B ~ N(0, σ²) once and for all,   N(x) = W_D [h(φ_σ₁(x)), …, h(φ_σₛ(x))] + b_D ,

with the hidden layers h the same for all scales (Tancik et al., 2020, arXiv 2006.10739; several scales: Wang, Wang and
Perdikaris, 2021, arXiv 2012.10047). Features of scale σ vary over lengths of 1/(2πσ).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import ACTIVATIONS, check_activation, linear, linears, seeded, size
from pinn_odelora.rules import list_of, number


class FourierFeatures(nn.Module):
    """x ↦ (cos 2πBx, sin 2πBx), (N, inputs) -> (N, 2 · frequencies), with a fixed random B, a buffer.

    Args:
        inputs: number of columns of x.
        frequencies: number of rows of B.
        sigma: σ, their standard deviation, in waves per unit of length.
        generator: source of B.

    Raises:
        InputError: if a size is not a whole number of at least 1, or σ is not positive.
    """

    def __init__(self, inputs: int, frequencies: int, sigma: float, generator: torch.Generator) -> None:
        super().__init__()
        sigma = number(above=0).check("sigma", sigma)
        shape = size("frequencies", frequencies), size("inputs", inputs)
        self.register_buffer("B", sigma * torch.randn(shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """φ(x)."""
        phase = x @ (2 * math.pi * self.B.mT)
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


class FourierMLP(nn.Module):
    """``features.<scale>``, ``depth`` hidden layers ``linears.<layer>``, and the last layer ``last``.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width: units of a hidden layer.
        depth: number of hidden layers.
        frequencies: random frequencies of each scale; the first layer has twice as many inputs.
        sigma: σ, one scale or a list of them, in waves per unit of length. High ones fit detail, and noise.
        activation: a key of ``ACTIVATIONS``.
        generator: source of the frequencies and the initial weights; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, a scale is not positive, or the activation is
            unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 40,
        depth: int = 3,
        frequencies: int = 20,
        sigma: float | Sequence[float] = 0.5,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = check_activation(activation)
        self.width, self.depth = size("width", width), size("depth", depth)
        self.frequencies = size("frequencies", frequencies)
        positive = number(above=0)
        self.sigma = (positive | list_of(positive, "such numbers")).check("sigma", sigma)
        generator = seeded(generator)
        scales = self.sigma if isinstance(self.sigma, tuple) else (self.sigma,)
        self.features = nn.ModuleList(FourierFeatures(inputs, self.frequencies, s, generator) for s in scales)
        self.linears = linears([2 * self.frequencies, *[self.width] * self.depth], generator)
        self.last = linear(len(scales) * self.width, size("outputs", outputs), generator)

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation, hidden = ACTIVATIONS[self.activation], []
        for features in self.features:
            h = features(x)
            for layer in self.linears:
                h = activation(layer(h))
            hidden.append(h)
        return self.last(hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1))

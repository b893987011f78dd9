"""The modified MLP: every hidden layer mixes two encodings U, V of the input,

    U = σ(W_U x + b_U),  V = σ(W_V x + b_V),  h = σ(W_0 x + b_0),
    z = σ(W h + b),  h ← (1 - z) ⊙ U + z ⊙ V

(Wang, Teng and Perdikaris, 2021, arXiv 2001.04536).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import ACTIVATIONS, check_activation, linear, linears, seeded, size


class ModifiedMLP(nn.Module):
    """The encodings ``U`` and ``V``, the layers ``linears.0`` … ``linears.<depth>``, of which the last is the output.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width: units of a hidden layer.
        depth: number of hidden layers as in ``MLP``: the first, and depth - 1 square ones with gates.
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
        depth: int = 4,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = check_activation(activation)
        self.width, self.depth = size("width", width), size("depth", depth)
        n, generator = size("inputs", inputs), seeded(generator)
        self.U, self.V = (linear(n, self.width, generator) for _ in range(2))
        self.linears = linears([n, *[self.width] * self.depth, size("outputs", outputs)], generator)

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        first, *hidden, last = self.linears
        U, V, h = (activation(layer(x)) for layer in (self.U, self.V, first))
        for layer in hidden:
            h = mixed(activation(layer(h)), U, V)
        return last(h)


def mixed(z: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """(1 - z) ⊙ U + z ⊙ V, here as U + z ⊙ (V - U), which is one product."""
    return U + z * (V - U)

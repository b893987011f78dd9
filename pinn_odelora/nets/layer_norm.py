"""An MLP with normalised layers:  h ← σ(LN(W h + b)),  LN(z) = γ ⊙ (z - mean z) / √(var z + ε) + β.

Mean and variance are those over the units of one point, so that points stay independent (Ba, Kiros and Hinton, 2016,
arXiv 1607.06450).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import ACTIVATIONS
from pinn_odelora.nets.mlp import MLP


class LayerNormMLP(nn.Module):
    """The layers ``linears.0`` … ``linears.<depth>``, and the norms of the hidden ones, ``norms.<layer>``.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width, depth, activation: as of ``MLP``.
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
        mlp = MLP(inputs, outputs, width, depth, activation, generator)
        self.width, self.depth, self.activation = mlp.width, mlp.depth, mlp.activation
        self.linears = mlp.linears
        self.norms = nn.ModuleList(nn.LayerNorm(self.width, dtype=torch.float64) for _ in range(self.depth))

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        *hidden, last = self.linears
        for linear, norm in zip(hidden, self.norms, strict=True):
            x = activation(norm(linear(x)))
        return last(x)

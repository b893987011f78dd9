"""Random weight factorisation: an MLP with the weights  W = diag(exp s) V  of all layers, s and V trained.

s is normal at the start, and V such that W is Glorot-uniform (Wang, Wang, Seidman and Perdikaris, 2022, arXiv
2210.01274). The layer is computed as exp(s) ⊙ (V x + b), so that V is the weight of a linear layer, which can be
adapted; the bias is scaled too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import ACTIVATIONS
from pinn_odelora.nets.mlp import MLP
from pinn_odelora.rules import number


class FactorisedMLP(nn.Module):
    """The V of all layers as ``linears.0`` … ``linears.<depth>``, and their s as ``scales.0`` … ``scales.<depth>``.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width, depth, activation: as of ``MLP``.
        mean, std: of s at the start.
        generator: source of the initial weights; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, std is negative, or the activation is unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 40,
        depth: int = 4,
        activation: str = "tanh",
        mean: float = 0.5,
        std: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        generator = generator or torch.Generator().manual_seed(0)
        mlp = MLP(inputs, outputs, width, depth, activation, generator)
        self.width, self.depth, self.activation = mlp.width, mlp.depth, mlp.activation
        self.mean, self.std = number().check("mean", mean), number(least=0).check("std", std)
        self.linears = mlp.linears
        drawn = (torch.randn(len(x.bias), generator=generator, dtype=torch.float64) for x in self.linears)
        self.scales = nn.ParameterList(nn.Parameter(self.mean + self.std * s) for s in drawn)
        with torch.no_grad():
            for V, s in zip(self.linears, self.scales, strict=True):
                V.weight /= torch.exp(s)[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        *hidden, last = zip(self.linears, self.scales, strict=True)
        for V, s in hidden:
            x = activation(torch.exp(s) * V(x))
        V, s = last
        return torch.exp(s) * V(x)

    @torch.no_grad()
    def folded(self) -> MLP:
        """The same function as an ``MLP``, with the weights diag(exp s) V."""
        inputs, outputs = self.linears[0].in_features, self.linears[-1].out_features
        mlp = MLP(inputs, outputs, self.width, self.depth, self.activation).to(self.linears[0].weight)
        for W, V, s in zip(mlp.linears, self.linears, self.scales, strict=True):
            W.weight.copy_(torch.exp(s)[:, None] * V.weight)
            W.bias.copy_(torch.exp(s) * V.bias)
        return mlp

"""An MLP with trained slopes:  h ← σ(n a (W h + b)),  a a number for each hidden layer, n a constant, n a = 1 at first.

One slope for the whole network is due to Jagtap, Kawaguchi and Karniadakis (2020, arXiv 1906.01170), one for each layer
to the same authors (2020, arXiv 1909.12228). A larger n makes gradient descent change the slopes faster.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import ACTIVATIONS
from pinn_odelora.nets.mlp import MLP
from pinn_odelora.rules import number


class AdaptiveMLP(nn.Module):
    """The layers ``linears.0`` … ``linears.<depth>``, and the slopes a as ``slopes.0`` … ``slopes.<depth - 1>``.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width, depth, activation: as of ``MLP``.
        n: the constant n.
        generator: source of the initial weights; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, n is not positive, or the activation is unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 40,
        depth: int = 4,
        activation: str = "tanh",
        n: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        mlp = MLP(inputs, outputs, width, depth, activation, generator)
        self.width, self.depth, self.activation = mlp.width, mlp.depth, mlp.activation
        self.n = number(above=0).check("n", n)
        self.linears = mlp.linears
        a = torch.tensor(1 / self.n, dtype=torch.float64)
        self.slopes = nn.ParameterList(nn.Parameter(a.clone()) for _ in range(self.depth))

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        *hidden, last = self.linears
        for linear, a in zip(hidden, self.slopes, strict=True):
            x = activation(self.n * a * linear(x))
        return last(x)

"""The multilayer perceptron  N(x) = W_D σ(… σ(W_0 x + b_0) …) + b_D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import ACTIVATIONS, check_activation, linears, seeded, size


class MLP(nn.Module):
    """A network with ``depth`` hidden layers of ``width`` units, the linear layers ``linears.0`` … ``linears.<depth>``.

    Weights are Glorot-uniform (Glorot and Bengio, 2010), biases zero.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width: units of a hidden layer.
        depth: number of hidden layers; with depth 4 there are three square matrices between them.
        activation: a key of ``ACTIVATIONS``: tanh, sin, gelu, silu or softplus.
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
        # By their names and values, which tell how to make the network again (``runs.save.described``).
        self.activation = check_activation(activation)
        self.width, self.depth = size("width", width), size("depth", depth)
        sides = [size("inputs", inputs), *[self.width] * self.depth, size("outputs", outputs)]
        self.linears = linears(sides, seeded(generator))

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        *hidden, last = self.linears
        for linear in hidden:
            x = activation(linear(x))
        return last(x)

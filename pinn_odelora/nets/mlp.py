"""The multilayer perceptron  N(x) = W_D σ(… σ(W_0 x + b_0) …) + b_D."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pinn_odelora.errors import unknown
from pinn_odelora.rules import whole

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "tanh": torch.tanh,
        "sin": torch.sin,
        "gelu": nn.functional.gelu,
        "silu": nn.functional.silu,
        "softplus": nn.functional.softplus,
    }
)


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
        if activation not in ACTIVATIONS:
            raise unknown("activation", activation, ACTIVATIONS)
        # By their names and values, which tell how to make the network again (``runs.save.described``).
        self.activation = activation
        self.width, self.depth = whole(1).check("width", width), whole(1).check("depth", depth)
        sizes = [whole(1).check("inputs", inputs), *[self.width] * self.depth]
        sizes.append(whole(1).check("outputs", outputs))
        # torch initialises the weights first, which must not advance the global generator. (skip_init would avoid it,
        # but takes half a second to import.)
        with torch.random.fork_rng(devices=()):
            self.linears = nn.ModuleList(nn.Linear(n, m, dtype=torch.float64) for n, m in pairwise(sizes))
        generator = generator or torch.Generator().manual_seed(0)
        for linear in self.linears:
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        *hidden, last = self.linears
        for linear in hidden:
            x = activation(linear(x))
        return last(x)

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
    """``depth`` hidden layers of ``width`` units; layers are ``linears.0`` … ``linears.<depth>``.

    Weights are Glorot-uniform and biases zero, drawn from the generator (Glorot and Bengio, 2010).

    Args:
        inputs, outputs: columns in and out; (N, inputs) -> (N, outputs).
        width: units of a hidden layer.
        depth: number of hidden layers; depth 4 has three square matrices between them.
        activation: a key of ``ACTIVATIONS``.
        generator: source of the initial weights; a fresh one seeded with 0 if absent.

    Raises:
        InputError: if a number is not a whole number of at least 1, or there is no such activation.
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
        self.activation = ACTIVATIONS[activation]
        sizes = [whole(1).check("inputs", inputs), *[whole(1).check("width", width)] * whole(1).check("depth", depth)]
        sizes.append(whole(1).check("outputs", outputs))
        # torch draws weights of its own first; that must not move the global generator. (skip_init would load half a
        # second of torch's meta machinery for it.)
        with torch.random.fork_rng(devices=()):
            self.linears = nn.ModuleList(nn.Linear(n, m, dtype=torch.float64) for n, m in pairwise(sizes))
        generator = generator or torch.Generator().manual_seed(0)
        for linear in self.linears:
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.linears
        for linear in hidden:
            x = self.activation(linear(x))
        return last(x)

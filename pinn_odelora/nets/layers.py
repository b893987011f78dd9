"""What networks are made of: pointwise activations, and linear layers with Glorot-uniform weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pinn_odelora.errors import unknown
from pinn_odelora.rules import whole

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "tanh": torch.tanh,
        "sin": torch.sin,
        "gelu": nn.functional.gelu,
        "silu": nn.functional.silu,
        "softplus": nn.functional.softplus,
    }
)


def check_activation(name: str) -> str:
    """The name of an activation.

    Raises:
        InputError: if it is not a key of ``ACTIVATIONS``.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return name


def size(name: str, value: int) -> int:
    """A number of units, layers, inputs or outputs.

    Raises:
        InputError: if it is not a whole number of at least 1.
    """
    return whole(1).check(name, value)


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """The source of initial weights; one seeded with 0 where none is given."""
    return generator or torch.Generator().manual_seed(0)


def linear(n: int, m: int, generator: torch.Generator, bias: bool = True) -> nn.Linear:
    """A linear layer from n to m units, float64: weights Glorot-uniform (Glorot and Bengio, 2010), biases zero."""
    # torch initialises the weights first, which must not advance the global generator. (skip_init would avoid it,
    # but takes half a second to import.)
    with torch.random.fork_rng(devices=()):
        layer = nn.Linear(n, m, bias=bias, dtype=torch.float64)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def linears(sides: list[int], generator: torch.Generator) -> nn.ModuleList:
    """Linear layers, one after another: from ``sides[0]`` units to ``sides[1]``, and so on."""
    return nn.ModuleList(linear(n, m, generator) for n, m in pairwise(sides))

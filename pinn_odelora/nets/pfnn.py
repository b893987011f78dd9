"""Parallel networks on a common trunk:  N_i(x) = (branch i)(trunk(x)),  all of them tanh layers by default.

The parallel fully-connected network (PFNN) of DeepXDE (Lu, Meng, Mao and Karniadakis, 2021, arXiv 1907.04502): the
first hidden layers are shared by all outputs, the later ones belong to one output each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinn_odelora.nets.layers import ACTIVATIONS, check_activation, linears, seeded, size
from pinn_odelora.rules import whole


class PFNN(nn.Module):
    """``shared`` layers ``trunk.<layer>`` for all outputs, then ``branches.<output>.<layer>`` for each.

    Args:
        inputs, outputs: number of input and output columns; the network maps (N, inputs) to (N, outputs).
        width: units of a hidden layer, of the trunk and of each branch.
        depth: number of hidden layers between an input and an output.
        shared: how many of them are in the trunk.
        activation: a key of ``ACTIVATIONS``.
        generator: source of the initial weights; None for one seeded with 0.

    Raises:
        InputError: if a size is not a whole number of at least 1, ``shared`` is above ``depth``, or the activation is
            unknown.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int = 40,
        depth: int = 4,
        shared: int = 2,
        activation: str = "tanh",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.activation = check_activation(activation)
        self.width, self.depth = size("width", width), size("depth", depth)
        self.shared = whole(1, self.depth).check("shared", shared)
        generator = seeded(generator)
        self.trunk = linears([size("inputs", inputs), *[self.width] * self.shared], generator)
        own = [*[self.width] * (self.depth - self.shared + 1), 1]
        self.branches = nn.ModuleList(linears(own, generator) for _ in range(size("outputs", outputs)))

    def forward(self, x: Tensor) -> Tensor:
        """N(x), (N, inputs) -> (N, outputs)."""
        activation = ACTIVATIONS[self.activation]
        for linear in self.trunk:
            x = activation(linear(x))
        columns = []
        for *hidden, last in self.branches:
            z = x
            for linear in hidden:
                z = activation(linear(z))
            columns.append(last(z))
        return torch.cat(columns, dim=-1)

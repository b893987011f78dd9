"""Muon on the factors, and Adam on what is no factor, as one ``torch.optim.Optimizer``.

    M ← μ M + (1 − μ) g,    p ← p − η √max(1, rows/columns) · msign((1 − μ) g + μ M)

for p one of A (r, n) and B (m, r) by itself; msign(U Σ Vᵀ) = U Vᵀ, found approximately by five Newton–Schulz
iterations in 16 bits, which leave singular values between about 0.7 and 1.2 (Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/). It is for matrices inside of a network; last layers and biases go by Adam.
Both are those of torch. The weight decay is off: it would pull the factors, and not the change of W, to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.optim.groups import Group, is_pair, parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import POSITIVE
from pinn_odelora.rules import below_one


class FactorMuon(Optimizer):
    """Muon for groups that are pairs, Adam with the same learning rate for the others.

    Args:
        groups: pairs, as ``factor_pairs`` gives, and single tensors.
        lr: η.
        momentum: μ.
    """

    def __init__(self, groups: Sequence[Group], lr: float, momentum: float = 0.95) -> None:
        matrices, others = self.split(groups)
        self.parts: list[Optimizer] = [
            torch.optim.Muon(matrices, lr=lr, momentum=momentum, weight_decay=0.0),
            *([torch.optim.Adam(others, lr=lr)] if others else []),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @staticmethod
    def split(groups: Sequence[Group]) -> tuple[list[Tensor], list[Tensor]]:
        """What goes by Muon, and what by Adam."""
        return tuple(parameters([x for x in groups if is_pair(x) == whether]) for whether in (True, False))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Groups and memories are kept here, where state_dict and schedules find them; reading one in replaces them.
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        # torch keeps defaults, state and groups alone.
        return {**super().__getstate__(), "parts": self.parts}


def factor_muon(lr: float = 1e-2, momentum: float = 0.95) -> Method:
    """Muon on each factor by itself, Adam on what is no factor (Jordan et al., 2024).

    Args:
        lr: learning rate of both.
        momentum: of Muon, in [0, 1).
    """
    lr, momentum = POSITIVE.check("lr", lr), below_one.check("momentum", momentum)
    make = lambda groups: FactorMuon(groups, lr, momentum)
    return Method("factor_muon", "factors", make, settings={"lr": lr, "momentum": momentum})

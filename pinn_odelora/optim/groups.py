"""Parameter groups of one LoRA pair or one tensor each: how an optimiser on the manifold reads and writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pinn_odelora.lowrank.layer import LowRankLinear

Group = dict[str, Any]


def plain_name(name: str) -> str:
    """The name of a parameter or layer of a ``Solution`` as the user's own network has it."""
    return name.removeprefix("net.").replace("base_layer.", "")


def single_tensors(solution: nn.Module) -> list[Group]:
    """A group ``{"params": [x], "name": …}`` for every trained tensor that is no factor; a weight has its layer's name.

    ``above`` is the bound of a coefficient of the equation, see ``Solution``.
    """
    pairs = {id(x) for layer in solution.modules() if isinstance(layer, LowRankLinear) for x in layer.factors}
    weights = {id(x.weight): name for name, x in solution.named_modules() if isinstance(x, nn.Linear)}
    bounds = getattr(solution, "bounds", {})
    return [
        {
            "params": [p],
            "name": plain_name(weights.get(id(p), name)),
            "above": bounds.get(name),
        }
        for name, p in solution.named_parameters()
        if p.requires_grad and id(p) not in pairs
    ]


def parameters(groups: list[Group]) -> list[Tensor]:
    """The tensors of all groups in order."""
    return [p for group in groups for p in group["params"]]


def is_pair(group: Group) -> bool:
    """Whether a group is a LoRA pair rather than a single tensor."""
    return len(group["params"]) == 2


def at_rank(group: Group, rank: int) -> Group:
    """The same group with a pair of another rank, at most that of a whole matrix, without values; or itself."""
    if not is_pair(group):
        return group
    (_, n), (m, _) = (p.shape for p in group["params"])
    r = min(rank, m, n)
    return group | {"params": [torch.empty(r, n, device="meta"), torch.empty(m, r, device="meta")]}


def forget(groups: list[Group], *names: str) -> None:
    """Drop what is named of what the optimiser remembers of its last step."""
    for group in groups:
        group["memory"] = {k: x for k, x in group["memory"].items() if k not in names}


def forget_but(groups: list[Group], *names: str) -> None:
    """Drop all that the optimiser remembers of its last step but what is named."""
    for group in groups:
        group["memory"] = {k: x for k, x in group["memory"].items() if k in names}


@contextmanager
def unchanged_on_failure(groups: list[Group]) -> Iterator[None]:
    """Put the parameters back to what they were if what runs inside does not end well."""
    before = [p.detach().clone() for p in parameters(groups)]
    try:
        yield
    except BaseException:
        for p, x in zip(parameters(groups), before, strict=True):
            p.copy_(x)
        raise

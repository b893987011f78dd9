"""Parameter groups of one LoRA pair or one tensor each: how an optimiser on the manifold reads and writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.layer import LowRankLinear, adapters, plain_name

Group = dict[str, Any]
REFUSED = ("weight_decay", "momentum", "betas", "nesterov", "maximize", "amsgrad")
"""Options of other optimisers that would silently do nothing."""


def pairs_of(net: nn.Module) -> list[Group]:
    """A group ``{"params": [A, B], "scale": s, "name": …}`` for every adapted layer of a network of ours."""
    return [
        {"params": [x.A, x.B], "scale": x.scale, "name": name, "layer": (x, "default")}
        for name, x in adapters(net).items()
    ]


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


def parameters(groups: Sequence[Group]) -> list[Tensor]:
    """The tensors of all groups in order."""
    return [p for group in groups for p in group["params"]]


def is_pair(group: Group) -> bool:
    """Whether a group is a LoRA pair rather than a single tensor."""
    return len(group["params"]) == 2


def check_group(group: Group, advice: str) -> None:
    """Refuse a group that is neither a LoRA pair nor a single tensor.

    Args:
        group: with ``params``.
        advice: how groups are made, for the message.

    Raises:
        InputError: one sentence.
    """
    params, name = group["params"], group.get("name") or "a parameter group"
    if len(params) > 2:
        raise InputError(
            f"{name} has {len(params)} tensors, but a group is one LoRA pair A (r, n), B (m, r), or one tensor: "
            f"{advice}."
        )
    shapes = [tuple(p.shape) for p in params]
    if len(params) == 2 and ([len(shape) for shape in shapes] != [2, 2] or shapes[0][0] != shapes[1][1]):
        raise InputError(
            f"{name} has shapes {shapes}, but a group of two tensors is one pair A (r, n), B (m, r): {advice}."
        )
    for option in REFUSED:
        if group.get(option):
            raise InputError(
                f"{name} sets {option}, which ODELoRA does not have: its only setting is the step size lr."
            )


def at_rank(group: Group, rank: int) -> Group:
    """The same group with a pair of another rank, at most that of a whole matrix, without values; or itself."""
    if not is_pair(group):
        return group
    (_, n), (m, _) = (p.shape for p in group["params"])
    r = min(rank, m, n)
    return group | {"params": [torch.empty(r, n, device="meta"), torch.empty(m, r, device="meta")]}


@contextmanager
def unchanged_on_failure(groups: Sequence[Group]) -> Iterator[None]:
    """Put the parameters back to what they were if what runs inside does not end well."""
    before = [p.detach().clone() for p in parameters(groups)]
    try:
        yield
    except BaseException:
        for p, x in zip(parameters(groups), before, strict=True):
            p.copy_(x)
        raise

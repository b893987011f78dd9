"""Parameter groups of one LoRA pair or one tensor each: how an optimiser on the manifold reads and writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.layer import LowRankLinear, adapters, plain_name
from pinn_odelora.manifolds.factors import Factors

Group = dict[str, Any]
Layer = tuple[nn.Module, str]
"""A layer with LoRA pairs, and the adapter to which one of them belongs."""
OPTIONS = ("weight_decay", "momentum", "betas", "nesterov", "maximize", "amsgrad")
"""Options of a group that would silently do nothing where an optimiser does not have them."""


def pairs_of(net: nn.Module) -> list[Group]:
    """A group ``{"params": [A, B], "scale": s, "name": …}`` for every adapted layer of a network of ours."""
    return [
        {"params": [x.A, x.B], "scale": x.scale, "name": name, "layer": (x, "default")}
        for name, x in adapters(net).items()
    ]


def single_tensors(solution: nn.Module) -> list[Group]:
    """A group ``{"params": [x], "name": …}`` for every trained tensor that is no factor; a weight has its layer's name.

    ``above`` is the bound of a coefficient of the equation, ``size`` that of one without a bound, see ``Solution``.
    """
    pairs = {id(x) for layer in solution.modules() if isinstance(layer, LowRankLinear) for x in layer.factors}
    weights = {id(x.weight): name for name, x in solution.named_modules() if isinstance(x, nn.Linear)}
    bounds, sizes = getattr(solution, "bounds", {}), getattr(solution, "sizes", {})
    return [
        {
            "params": [p],
            "name": plain_name(weights.get(id(p), name)),
            "above": bounds.get(name),
            "size": sizes.get(name),
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


def has_gradient(group: Group) -> bool:
    """Whether a group has gradients; one without them is left as it is.

    Raises:
        InputError: where one factor of a pair alone has one.
    """
    found = [p.grad is not None for p in group["params"]]
    if any(found) and not all(found):
        raise InputError(
            f"{group['name']} has a gradient for {'A' if found[0] else 'B'} alone, but both factors of a pair are "
            "trained, or none."
        )
    return all(found)


def slices(groups: Sequence[Group]) -> list[slice]:
    """Where each group's tensors are in the list of all."""
    ends = [0]
    for group in groups:
        ends.append(ends[-1] + len(group["params"]))
    return [slice(*at) for at in pairwise(ends)]


def alike(members: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Members in batches of equal keys."""
    batches: dict[Hashable, list[int]] = {}
    for i in members:
        batches.setdefault(key(i), []).append(i)
    return [*batches.values()]


def stacked(pairs: Sequence[Sequence[Tensor]], members: Sequence[int]) -> Factors:
    """These of the pairs, which are of one shape, as one batch."""
    return Factors(*(torch.stack([pairs[i][k] for i in members]) for k in (0, 1)))


def listed(params: Iterable[Group], optimiser: str, advice: str) -> list[Group]:
    """Parameter groups as a list.

    Args:
        params: what an optimiser was given.
        optimiser: its name, for the message.
        advice: how groups are made, for the message.

    Raises:
        InputError: where these are no groups, or none at all.
    """
    groups = [] if isinstance(params, Tensor | nn.Module) else [*params]
    if not groups or not all(isinstance(group, dict) for group in groups):
        raise InputError(f"{optimiser} takes parameter groups of one LoRA pair or one tensor each: {advice}.")
    return groups


def completed(group: Group, number: int) -> Group:
    """A copy of a group whose ``params`` are a list, and which has a name, as messages need one.

    Args:
        group: with ``params``, a tensor or any iterable of them.
        number: how many groups there are before it.
    """
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    return {**group, "params": params, "name": group.get("name") or f"group {number}"}


def check_group(group: Group, advice: str, optimiser: str = "ODELoRA", own: Collection[str] = ()) -> None:
    """Refuse a group that is neither a LoRA pair nor a single tensor, or has an option that would do nothing.

    Args:
        group: with ``params`` and ``name``.
        advice: how groups are made, for the message.
        optimiser: its name, for the message.
        own: the options that it has.

    Raises:
        InputError: one sentence.
    """
    params, name = group["params"], group["name"]
    if len(params) not in (1, 2):
        raise InputError(
            f"{name} has {len(params)} tensors, but a group is one LoRA pair A (r, n), B (m, r), or one tensor: "
            f"{advice}."
        )
    for option in OPTIONS:
        if group.get(option) and option not in own:
            raise InputError(f"{name} sets {option}, which {optimiser} does not have.")
    if len(params) == 2:
        _check_pair(group, name, advice)


def _check_pair(group: Group, name: str, advice: str) -> None:
    A, B = group["params"]
    if [A.ndim, B.ndim] != [2, 2] or A.shape[0] != B.shape[1]:
        shapes = [tuple(A.shape), tuple(B.shape)]
        raise InputError(
            f"{name} has shapes {shapes}, but a group of two tensors is one pair A (r, n), B (m, r): {advice}."
        )
    if A.requires_grad != B.requires_grad:
        raise InputError(
            f"{name} has one trained factor alone ({'A' if A.requires_grad else 'B'}), but both factors of a pair are "
            "trained, or none."
        )
    check_scale(name, group.get("scale", 1.0))


def check_scale(name: str, scale: float) -> None:
    """Refuse a scale that the velocity cannot be divided by.

    Raises:
        InputError: one sentence.
    """
    if not 0 < scale < math.inf:
        raise InputError(f"the scale of {name} is {scale!r}, but it must be a finite number above 0.")


def read_scale(group: Group, layer: Layer) -> bool:
    """Take s of a pair from its layer, where it may have been set since; a checkpoint may be of another one.

    Returns:
        Whether it is another one.

    Raises:
        InputError: as ``check_scale``.
    """
    module, adapter = layer
    before, group["scale"] = group["scale"], float(module.scaling[adapter])
    check_scale(group["name"], group["scale"])
    return group["scale"] != before


def check_rank(group: Group, what: str) -> None:
    """Refuse a pair of a rank that its weight cannot have.

    Args:
        group: a pair.
        what: has no meaning for it.

    Raises:
        InputError: one sentence.
    """
    A, B = group["params"]
    if len(A) > min(A.shape[1], len(B)):
        raise InputError(
            f"{group['name']} has rank {len(A)}, more than its weight {len(B)} x {A.shape[1]} can have, for which "
            f"{what} is not defined: choose a smaller rank."
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

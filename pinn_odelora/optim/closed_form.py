"""A step of Euler's scheme for all parameter groups: pairs by ``flows.euler``, other tensors along their gradients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from pinn_odelora.flows.euler import euler_step
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group, alike, has_gradient, is_pair, slices

PIECE = 2**19
"""Most numbers of the factors of one batch, so that their copies stay in a cache, and are few for a large model."""


def euler(groups: Sequence[Group], numbers: Sequence[Tensor], h: float) -> list[Tensor] | None:
    """The numbers after a step; those of groups without gradients as they are.

    Args:
        groups: parameter groups of one pair or one tensor each, with their gradients.
        numbers: the values of all their parameters.
        h: the step size.

    Returns:
        None where the step is to be taken by ``balanced_flow`` and ``rebalance``, or where numbers are not finite.
    """
    after, places = list(numbers), slices(groups)
    moving = [i for i, group in enumerate(groups) if has_gradient(group)]
    values = [numbers[at] for at in places]
    for batch in _batches(groups, values, [i for i in moving if is_pair(groups[i])]):
        pairs = [Factors(*values[i]) for i in batch]
        gradients = [Factors(*(p.grad for p in groups[i]["params"])) for i in batch]
        found = euler_step(pairs, gradients, groups[batch[0]]["scale"], h)
        if found is None:
            return None
        for i, pair in zip(batch, found, strict=True):
            after[places[i]] = pair
    for i in moving:
        if not is_pair(groups[i]):
            (x,), (p,) = values[i], groups[i]["params"]
            after[places[i]] = [x - h * p.grad.to(x.dtype)]
            if not bool(torch.isfinite(after[places[i]][0]).all()):
                return None
    return after


def _batches(groups: Sequence[Group], values: Sequence[Sequence[Tensor]], pairs: Sequence[int]) -> list[list[int]]:
    """Pairs of one shape, precision, device and scale, in pieces."""

    def kind(i: int) -> Hashable:
        A, B = values[i]
        return A.shape, B.shape, A.dtype, A.device, groups[i]["scale"]

    pieces = []
    for members in alike(pairs, kind):
        number = max(1, PIECE // sum(x.numel() for x in values[members[0]]))
        pieces += [members[k : k + number] for k in range(0, len(members), number)]
    return pieces

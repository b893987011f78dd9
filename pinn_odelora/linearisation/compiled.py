"""A sweep by a compiled graph: groups taken apart into tensors, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from pinn_odelora.compiled import Compiled
from pinn_odelora.linearisation.blocks import Block, Formed, Group, Outer, Pair
from pinn_odelora.points import Points

Swept = Callable[[Points], list[Group]]


def compiled(sweep: Swept, solution: nn.Module, p: Points) -> Swept:
    """``sweep`` compiled for points of the shape of p, or eager where that cannot be; see ``pinn_odelora.compiled``.

    Args:
        sweep: points of one shape -> groups; of tensors that change it may read those of the solution only.
        solution: whose parameters and buffers become inputs of the graph.
    """
    form = _filled(like := sweep(p), (x.new_empty(0) for x in _tensors(like)))
    made = Compiled("sweep", lambda points, _: list(_tensors(sweep(points["p"]))), solution)
    return lambda p: _filled(form, iter(made({"p": p})))


def _tensors(groups: Sequence[Group]) -> Iterator[Tensor]:
    """All tensors of groups in order."""
    for group in groups:
        yield group.r
        for block in group.blocks.values():
            yield from (block.J,) if isinstance(block, Formed) else (x for pair in block.pairs for x in pair)
        yield from group.columns.values()


def _filled(like: Sequence[Group], tensors: Iterator[Tensor]) -> list[Group]:
    """Groups of the same form with other tensors."""
    return [
        replace(
            group,
            r=next(tensors),
            blocks={name: _block(block, tensors) for name, block in group.blocks.items()},
            columns={name: next(tensors) for name in group.columns},
        )
        for group in like
    ]


def _block(like: Block, tensors: Iterator[Tensor]) -> Block:
    if isinstance(like, Formed):
        return Formed(next(tensors))
    return Outer([Pair(next(tensors), next(tensors)) for _ in like.pairs])

"""A sweep as one flat graph of tensor operations, compiled; by the means of ``gradient``, and with its checks.

A graph holds for one term and one shape of its points. At its first use it is held against the eager sweep; where it
differs, or the compiler fails, the sweep stays eager and says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pinn_odelora.linearisation.blocks import Block, Formed, Group, Outer, Pair
from pinn_odelora.points import Points

log = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference of any tensor between the compiled and the eager sweep."""
Swept = Callable[[Points], list[Group]]


def compiled(sweep: Swept, solution: nn.Module, p: Points) -> Swept:
    """``sweep`` compiled for points of the shape of p, or itself.

    Args:
        sweep: points of one shape -> groups; of tensors that change it may read those of the solution only.
        solution: whose parameters and buffers become inputs of the graph.
    """
    expected = sweep(p)
    try:
        made = _traced(sweep, solution, p, expected)
        found = made(p)
    except Exception as failure:  # Tracer, compiler and C++ tool chain fail in any way.
        reason = next(iter(str(failure).splitlines()), type(failure).__name__)[:200]
        log.warning("derivatives.compile: not compiled, the sweep stays eager (%s).", reason)
        return sweep
    tolerance = TOLERANCE.get(expected[0].r.dtype, 1e-4)
    if not all(_near(a, b, tolerance) for a, b in zip(_tensors(expected), _tensors(found), strict=True)):
        log.warning("derivatives.compile: the compiled sweep differs, so it stays eager.")
        return sweep
    return made


class _Traceable(nn.Module):
    """A sweep as a module's forward pass, so that the solution's tensors can be exchanged for others."""

    def __init__(self, sweep: Swept, solution: nn.Module) -> None:
        super().__init__()
        self.solution = solution
        self.sweep = sweep

    def forward(self, p: Points) -> list[Tensor]:
        return list(_tensors(self.sweep(p)))


def _traced(sweep: Swept, solution: nn.Module, p: Points, like: list[Group]) -> Swept:
    module = _Traceable(sweep, solution)
    named = lambda: dict(module.named_parameters()) | dict(module.named_buffers())

    def flat(tensors: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
        given = dict(zip(named(), tensors, strict=True))
        return torch.func.functional_call(module, given, (Points(zip(p, columns, strict=True)),))

    inputs = lambda: [x.detach() for x in named().values()]
    graph = make_fx(flat)(inputs(), list(p.values()))
    graph.graph.eliminate_dead_code()
    graph.recompile()
    made = torch.compile(graph, dynamic=False)
    form = _filled(like, (x.new_empty(0) for x in _tensors(like)))

    def swept(p: Points) -> list[Group]:
        with torch.no_grad():
            return _filled(form, iter(made(inputs(), list(p.values()))))

    return swept


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


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * a.abs().max())

"""Functions of a solution and of points, eager or compiled.

Compiling traces the whole computation, reverse passes included, into one flat graph of tensor operations and gives that
to ``torch.compile``; it works for either derivative engine and any network that torch can trace. A trace holds for one
shape of the points, so a changed number of points is traced anew. Whatever a network draws at random or decides by
looking at values would be frozen in the trace: so at its first use a trace is held against the eager computation, and
where it differs, or the compiler fails, the computation stays eager and says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, linalg, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pinn_odelora.points import Points

log = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference between the compiled and the eager results."""
Tensors = list[Tensor]
Computation = Callable[[Mapping[str, Points], Mapping[str, Tensor]], Tensors]
"""From points and the solution's parameters and buffers by name, which stand in their places meanwhile."""


class Compiled:
    """``compiled(points)`` gives what ``compute`` does, by a compiled graph where that can be had.

    Args:
        what: named in messages.
        compute: the computation; of tensors that change it may read the points and those of the solution only.
        solution: whose parameters and buffers become inputs of the graph.
        tracked: names of those that the computation differentiates by.
    """

    def __init__(self, what: str, compute: Computation, solution: nn.Module, tracked: Sequence[str] = ()) -> None:
        self.what = what
        self.compute = compute
        self.solution = solution
        self.tracked = frozenset(tracked)
        self._made: dict[Any, Callable[[Mapping[str, Points]], Tensors]] = {}

    def __call__(self, points: Mapping[str, Points]) -> Tensors:
        shapes = tuple((term, name, x.shape, x.dtype, x.device) for term, name, x in _columns(points))
        if shapes not in self._made:
            self._made[shapes] = self._checked(points)
        return self._made[shapes](points)

    def eager(self, points: Mapping[str, Points]) -> Tensors:
        """The same by ordinary execution."""
        return self.compute(points, self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.solution.named_parameters()) | dict(self.solution.named_buffers())

    def _checked(self, points: Mapping[str, Points]) -> Callable[[Mapping[str, Points]], Tensors]:
        expected = self.eager(points)
        try:
            made = self._traced(points)
            found = made(points)
        except Exception as failure:  # Tracer, compiler and C++ tool chain fail in any way.
            reason = next(iter(str(failure).splitlines()), type(failure).__name__)[:200]
            log.warning("derivatives.compile: not compiled, the %s stays eager (%s).", self.what, reason)
            return self.eager
        difference = max((_difference(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
        if not difference <= TOLERANCE.get(expected[0].dtype, 1e-4):
            log.warning(
                "derivatives.compile: the compiled %s differs by %.1e, so it stays eager.", self.what, difference
            )
            return self.eager
        return made

    def _traced(self, points: Mapping[str, Points]) -> Callable[[Mapping[str, Points]], Tensors]:
        module = _Exchangeable(self.solution, self.compute)
        layout = [(term, name) for term, name, _ in _columns(points)]
        names = list(self._tensors())

        def flat(tensors: Tensors, columns: Tensors) -> Tensors:
            given = {n: x.detach().requires_grad_(n in self.tracked) for n, x in zip(names, tensors, strict=True)}
            swapped = {f"solution.{name}": x for name, x in given.items()}
            return torch.func.functional_call(module, swapped, (_points(layout, columns), given))

        def inputs(points: Mapping[str, Points]) -> tuple[Tensors, Tensors]:
            return [x.detach() for x in self._tensors().values()], [x for *_, x in _columns(points)]

        graph = make_fx(flat)(*inputs(points))
        graph.graph.eliminate_dead_code()
        graph.recompile()
        run = torch.compile(graph, dynamic=False)

        def made(points: Mapping[str, Points]) -> Tensors:
            with torch.no_grad():
                return run(*inputs(points))

        return made


class _Exchangeable(nn.Module):
    """A computation as a module's forward pass, so that the solution's tensors can be exchanged for others."""

    def __init__(self, solution: nn.Module, compute: Computation) -> None:
        super().__init__()
        self.solution = solution
        self.compute = compute

    def forward(self, points: Mapping[str, Points], tensors: Mapping[str, Tensor]) -> Tensors:
        return self.compute(points, tensors)


def _columns(points: Mapping[str, Points]) -> list[tuple[str, str, Tensor]]:
    return [(term, name, x) for term, p in points.items() for name, x in p.items()]


def _points(layout: Sequence[tuple[str, str]], columns: Sequence[Tensor]) -> dict[str, Points]:
    points: dict[str, Points] = {}
    for (term, name), x in zip(layout, columns, strict=True):
        points.setdefault(term, Points())[name] = x
    return points


def _difference(a: Tensor, b: Tensor) -> float:
    """‖b - a‖ / ‖a‖, 0 for two zeros."""
    size, error = (float(linalg.vector_norm(x.double())) for x in (a, b - a))
    return error / size if size > 0 else error

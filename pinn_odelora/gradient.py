"""Loss and gradient at given points, eager or compiled.

Compiling traces the whole step, forward and reverse pass together, into one flat graph of tensor operations and gives
that to ``torch.compile``; it works for either derivative engine and any network that torch can trace. A trace holds
for one shape of the points, so a changed number of points is traced anew. Whatever a network draws at random or
decides by looking at values would be frozen in the trace: so at its first use a trace is held against the eager step,
and where it differs, or the compiler fails, the step stays eager and says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pinn_odelora.lowrank.layer import LowRankLinear, formed_weights
from pinn_odelora.points import Points
from pinn_odelora.system import Loss, System

log = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative difference of loss or gradient between the compiled and the eager step."""
Step = Callable[[Mapping[str, Points]], tuple[Loss, list[Tensor]]]


class Gradient:
    """``gradient(points)`` gives the loss and ∂L/∂p for every parameter p, then ∂L/∂W for every adapted layer.

    The effective weights W are formed once and the chain to A and B runs through them, so that G = ∂L/∂W, the gradient
    of full fine-tuning, costs nothing beside the gradient of the factors.

    Args:
        system: whose loss; its solution holds the parameters.
        parameters: tensors to differentiate by, each with ``requires_grad``.
        adapted: layers whose effective weight W is wanted too.
        compile: trace and compile the step at its first call, and after a change of the points' shapes.
    """

    def __init__(
        self,
        system: System,
        parameters: Sequence[Tensor],
        adapted: Mapping[str, LowRankLinear] | None = None,
        compile: bool = False,
    ) -> None:
        self.system = system
        self.parameters = list(parameters)
        self.adapted = dict(adapted or {})
        self.compile = compile
        self._compiled: dict[Any, Step] = {}

    def __call__(self, points: Mapping[str, Points]) -> tuple[Loss, list[Tensor]]:
        return self._step(points)(points)

    def eager(self, points: Mapping[str, Points]) -> tuple[Loss, list[Tensor]]:
        """The same by ordinary execution."""
        return self._differentiated(points, self.parameters)

    def _differentiated(self, points: Mapping[str, Points], parameters: list[Tensor]) -> tuple[Loss, list[Tensor]]:
        with torch.enable_grad(), formed_weights(self.adapted) as W:
            loss = self.system.loss(points)
        gradients = torch.autograd.grad(loss.total, [*parameters, *W.values()], materialize_grads=True)
        return Loss(loss.total.detach(), {name: x.detach() for name, x in loss.terms.items()}), list(gradients)

    def _step(self, points: Mapping[str, Points]) -> Step:
        if not self.compile:
            return self.eager
        shapes = tuple((term, name, x.shape, x.dtype, x.device) for term, name, x in _columns(points))
        if shapes not in self._compiled:
            self._compiled[shapes] = self._checked(points)
        return self._compiled[shapes]

    def _checked(self, points: Mapping[str, Points]) -> Step:
        """The compiled step, or the eager one if it cannot be compiled or does not agree."""
        expected, gradients = self.eager(points)
        try:
            step = _compiled(self, points)
            found, others = step(points)
        except Exception as failure:  # Tracer, compiler and C++ tool chain fail in any way.
            log.warning("derivatives.compile: not compiled, the step stays eager (%s).", _first_line(failure))
            return self.eager
        difference = _difference([expected.total, *gradients], [found.total, *others])
        if not difference <= TOLERANCE.get(found.total.dtype, 1e-4):
            log.warning("derivatives.compile: the compiled step differs by %.1e, so it stays eager.", difference)
            return self.eager
        return step


class _Traceable(nn.Module):
    """Loss and gradient as a module's forward pass, so that its tensors can be exchanged for others."""

    def __init__(self, gradient: Gradient) -> None:
        super().__init__()
        self.solution = gradient.system.solution
        self.gradient = gradient
        known = {id(p): name for name, p in self.named_parameters()}
        self.places = [known[id(p)] for p in gradient.parameters]

    def forward(self, points: Mapping[str, Points]) -> tuple[Loss, list[Tensor]]:
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        return self.gradient._differentiated(points, [tensors[name] for name in self.places])


def _compiled(gradient: Gradient, points: Mapping[str, Points]) -> Step:
    module = _Traceable(gradient)
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    layout = [(term, name) for term, name, _ in _columns(points)]
    terms: list[str] = []

    def flat(tensors: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
        wanted = set(module.places)
        given = {n: x.detach().requires_grad_(n in wanted) for n, x in zip(names, tensors, strict=True)}
        loss, found = torch.func.functional_call(module, given, (_points(layout, columns),))
        terms[:] = loss.terms
        return [loss.total, *loss.terms.values(), *found]

    def tensors() -> list[Tensor]:
        return [x.detach() for _, x in (*module.named_parameters(), *module.named_buffers())]

    graph = make_fx(flat)(tensors(), [x for *_, x in _columns(points)])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    compiled = torch.compile(graph, dynamic=False)

    def step(points: Mapping[str, Points]) -> tuple[Loss, list[Tensor]]:
        with torch.no_grad():
            total, *found = compiled(tensors(), [x for *_, x in _columns(points)])
        return Loss(total, dict(zip(terms, found, strict=False))), found[len(terms) :]

    return step


def _columns(points: Mapping[str, Points]) -> list[tuple[str, str, Tensor]]:
    return [(term, name, x) for term, p in points.items() for name, x in p.items()]


def _points(layout: Sequence[tuple[str, str]], columns: Sequence[Tensor]) -> dict[str, Points]:
    points: dict[str, Points] = {}
    for (term, name), x in zip(layout, columns, strict=True):
        points.setdefault(term, Points())[name] = x
    return points


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """‖found - expected‖ / ‖expected‖ over loss and gradient, the larger of both."""
    ratio = lambda a, b: float(torch.linalg.vector_norm(b - a) / torch.linalg.vector_norm(a).clamp(min=1e-300))
    flat = lambda tensors: torch.cat([x.detach().double().flatten() for x in tensors])
    return max(ratio(flat(expected[:1]), flat(found[:1])), ratio(flat(expected[1:]), flat(found[1:])))


def _first_line(failure: BaseException) -> str:
    return next(iter(str(failure).splitlines()), type(failure).__name__)[:200]

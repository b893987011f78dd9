"""Loss, gradient and rows at given points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pinn_odelora.compiled import Compiled
from pinn_odelora.lowrank.layer import LowRankLinear, formed_weights
from pinn_odelora.points import Points
from pinn_odelora.system import Loss, System

log = logging.getLogger(__name__)
PIECE = 2.0**26
"""Bytes that a pass without a graph may take at once."""


class Gradient:
    """``gradient(points)`` gives the loss and ∂L/∂p for every parameter p, then ∂L/∂W for every adapted layer.

    The effective weights W are formed once and the chain to A and B runs through them, so that G = ∂L/∂W, the gradient
    of full fine-tuning, costs nothing beside the gradient of the factors.

    Args:
        system: whose loss; its solution holds the parameters.
        parameters: tensors to differentiate by, each with ``requires_grad``.
        adapted: layers whose effective weight W is wanted too.
        compile: trace and compile at the first call, and after a change of the points' shapes, see ``compiled``.
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
        self.compiled = self._compiled() if compile else None

    def __call__(self, points: Mapping[str, Points]) -> tuple[Loss, list[Tensor]]:
        if self.compiled is None:
            return self.eager(points)
        total, *found = self.compiled(points)
        terms = dict(zip(self.system.terms, found, strict=False))
        return Loss(total, terms), found[len(terms) :]

    def eager(self, points: Mapping[str, Points]) -> tuple[Loss, list[Tensor]]:
        """The same by ordinary execution."""
        return self._evaluated(points, self.parameters)

    def _evaluated(self, points: Mapping[str, Points], parameters: Sequence[Tensor]) -> tuple[Loss, list[Tensor]]:
        with torch.enable_grad(), formed_weights(self.adapted) as W:
            loss = self.system.loss(points)
        gradients = torch.autograd.grad(loss.total, [*parameters, *W.values()], materialize_grads=True)
        return Loss(loss.total.detach(), {name: x.detach() for name, x in loss.terms.items()}), list(gradients)

    def _compiled(self) -> Compiled | None:
        known = {id(p): name for name, p in self.system.solution.named_parameters()}
        if any(id(p) not in known for p in self.parameters):
            log.warning("derivatives.compile: not compiled, since a parameter is not part of the network.")
            return None
        places = [known[id(p)] for p in self.parameters]

        def compute(points: Mapping[str, Points], tensors: Mapping[str, Tensor]) -> list[Tensor]:
            loss, gradients = self._evaluated(points, [tensors[name] for name in places])
            return [loss.total, *loss.terms.values(), *gradients]

        return Compiled("step", compute, self.system.solution, places)


def rows_of(system: System, compile: bool = False) -> Callable[[Mapping[str, Points]], Tensor]:
    """``rows(points)`` gives r, (R,), without a graph behind it; of many points in pieces."""
    plain, pieces = torch.no_grad()(system.rows), in_pieces(system)
    made = Compiled("residual", lambda points, _: [plain(points)], system.solution) if compile else None

    def rows(points: Mapping[str, Points]) -> Tensor:
        if any(p.number > at_once(system.solution) for p in points.values()):
            return torch.cat([system.weighted(name, r).mT.flatten() for name, r in pieces(points).items()])
        return plain(points) if made is None else made(points)[0]

    return rows


def in_pieces(system: System) -> Callable[[Mapping[str, Points]], dict[str, Tensor]]:
    """``residuals(points)`` as ``System.residuals``, without a graph, of as many points at once as ``PIECE`` takes."""

    def residual(name: str, p: Points) -> Tensor:
        size = p.number if system.terms[name].coupled else at_once(system.solution)
        parts = [p] if p.number <= size else p.kept(("pieces", size), lambda: p.pieces(size))
        return torch.cat([system.residuals({name: part})[name].detach() for part in parts])

    @torch.no_grad()
    def residuals(points: Mapping[str, Points]) -> dict[str, Tensor]:
        return {name: residual(name, points[name]) for name in system.terms if name in points}

    return residuals


def at_once(solution: Callable[[Points], Tensor]) -> int:
    """Points of one piece: some twenty numbers are alive for each of them and each unit of the widest layer."""
    modules = solution.modules() if isinstance(solution, nn.Module) else ()
    widest = max((max(x.weight.shape) for x in modules if isinstance(x, nn.Linear)), default=1)
    return max(64, int(PIECE / (8 * 20 * widest)))

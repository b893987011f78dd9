"""Loss, gradient and residuals at given points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pinn_odelora.lowrank.layer import LowRankLinear, formed_weights
from pinn_odelora.points import Points
from pinn_odelora.system import Loss, System

PIECE = 2.0**26
"""Bytes that a pass without a graph may take at once."""


class Gradient:
    """``gradient(points)`` gives the loss and ∂L/∂p for every parameter p, then ∂L/∂W for every adapted layer.

    With ``multipliers`` λ_k the total is Σ_k λ_k L_k, and so are the gradients; the terms are L_k still.

    The effective weights W are formed once and the chain to A and B runs through them, so that G = ∂L/∂W, the gradient
    of full fine-tuning, costs nothing beside the gradient of the factors.

    Args:
        system: whose loss; its solution holds the parameters.
        parameters: tensors to differentiate by, each with ``requires_grad``.
        adapted: layers whose effective weight W is wanted too.
    """

    def __init__(
        self, system: System, parameters: Sequence[Tensor], adapted: Mapping[str, LowRankLinear] | None = None
    ) -> None:
        self.system = system
        self.parameters = list(parameters)
        self.adapted = dict(adapted or {})

    def __call__(
        self, points: Mapping[str, Points], multipliers: Mapping[str, float] | None = None
    ) -> tuple[Loss, list[Tensor]]:
        processes = self.system.processes
        with torch.enable_grad(), formed_weights(self.adapted) as W:
            loss = self._own_part(points) if processes.number > 1 else self.system.loss(points)
            if multipliers:
                loss = Loss(sum(multipliers[name] * x for name, x in loss.terms.items()), loss.terms)
        gradients = torch.autograd.grad(loss.total, [*self.parameters, *W.values()], materialize_grads=True)
        found = processes.summed([x.detach() for x in (loss.total, *loss.terms.values(), *gradients)])
        total, terms = found[0], found[1 : 1 + len(loss.terms)]
        return Loss(total, dict(zip(loss.terms, terms, strict=True))), found[1 + len(terms) :]

    def _own_part(self, points: Mapping[str, Points]) -> Loss:
        """What this process adds to the loss: that at its points by their number; of what all evaluate, one n-th."""
        system, terms = self.system, {}
        for name in system.terms:
            if name in points:
                p = points[name]
                own = p.part(system.share(name, p.number))
                part = own.number / p.number if own is not p else 1 / system.processes.number
                terms[name] = part * system.loss({name: own}).total
        return Loss(sum(terms.values()), terms)


def residual_vector_of(system: System) -> Callable[[Mapping[str, Points]], Tensor]:
    """``residuals(points)`` gives r, (R,), without a graph behind it; of many points in pieces."""
    plain, pieces = torch.no_grad()(system.residual_vector), in_pieces(system)

    def residuals(points: Mapping[str, Points]) -> Tensor:
        if system.processes.number > 1 or any(p.number > at_once(system.solution) for p in points.values()):
            return torch.cat([system.weighted(name, r).mT.flatten() for name, r in pieces(points).items()])
        return plain(points)

    return residuals


def in_pieces(system: System) -> Callable[[Mapping[str, Points]], dict[str, Tensor]]:
    """``residuals(points)`` as ``System.residuals``, without a graph, of as many points at once as ``PIECE`` takes."""

    def residual(name: str, points: Points) -> Tensor:
        p = points.part(system.share(name, points.number))
        found = evaluated(name, p)
        return found if p is points else system.processes.gathered(found, points.number)

    def evaluated(name: str, p: Points) -> Tensor:
        size = p.number if system.terms[name].coupled else at_once(system.solution)
        parts = [p] if p.number <= size else p.kept(("pieces", size), lambda: p.pieces(size))
        return torch.cat([system.residuals({name: part})[name].detach() for part in parts])

    @torch.no_grad()
    def residuals(points: Mapping[str, Points]) -> dict[str, Tensor]:
        return {name: residual(name, points[name]) for name in system.terms if name in points}

    return residuals


def at_once(solution: Callable[[Points], Tensor]) -> int:
    """Chunk size in points, assuming 20 live values for each point and unit of the widest layer."""
    modules = solution.modules() if isinstance(solution, nn.Module) else ()
    widest = max((max(x.weight.shape) for x in modules if isinstance(x, nn.Linear)), default=1)
    return max(64, int(PIECE / (8 * 20 * widest)))

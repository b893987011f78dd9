"""The projected flow by explicit schemes on the manifold of rank-r products, as a ``torch.optim.Optimizer``.

The product of every pair is a point Y = U Σ V, its velocity P_Y(-G) with G = ∂L/∂W of its effective weight; stages are
brought back to rank r, see ``lowrank.space``. The factors are balanced after every step, and no Gram matrix of them is
inverted, so a start of small or vanishing singular values is as good as any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.integrators import Chebyshev, RungeKutta
from pinn_odelora.integrators.explicit import Descent
from pinn_odelora.lowrank.layer import Factors
from pinn_odelora.lowrank.manifold import LowRank, low_rank
from pinn_odelora.lowrank.space import FixedRank, Thin, project
from pinn_odelora.optim.groups import unchanged_on_failure
from pinn_odelora.optim.surroundings import Surroundings


class ProjectedODELoRA(Optimizer):
    """Follow the projected gradient flow on LoRA pairs by an explicit scheme on the manifold.

    Args:
        pairs: parameter groups of one pair each, as ``factor_pairs`` gives.
        integrator: the scheme.

    Raises:
        FloatingPointError: from ``step``, when loss or gradient are not finite at the current point.
    """

    def __init__(self, pairs: Iterable[dict[str, Any]], integrator: RungeKutta | Chebyshev) -> None:
        self.integrator = integrator
        super().__init__(pairs, {"lr": integrator.h, "scale": 1.0, "name": "", "memory": {}})

    @torch.no_grad()
    def step(self, closure: Surroundings) -> Tensor:
        losses: list[Tensor] = []

        def evaluate(y: list[LowRank]) -> tuple[list[Thin], float]:
            self._place(y)
            loss, G = closure.weight_gradients()
            losses.append(loss)
            slope = [project(x, -G[group["name"]].double()) for x, group in zip(y, self.param_groups, strict=True)]
            return slope, float(loss)

        discarded: list[Tensor] = []
        first = self.param_groups[0]
        y = [low_rank(Factors(*group["params"]), group["scale"]) for group in self.param_groups]
        with unchanged_on_failure(self.param_groups):
            step = self.integrator.step(Descent(evaluate), y, first["lr"], first["memory"], FixedRank(discarded))
            self._place(step.y)
        for group in self.param_groups:
            group["memory"] = {**step.memory, "last_h": step.h, "discarded": float(discarded[-1])}
        return losses[0]

    def _place(self, y: list[LowRank]) -> None:
        for x, group in zip(y, self.param_groups, strict=True):
            for p, value in zip(group["params"], x.factors(group["scale"]), strict=True):
                p.copy_(value)

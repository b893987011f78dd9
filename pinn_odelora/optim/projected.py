"""The projected flow by explicit schemes on the manifold of rank-r products, as a ``torch.optim.Optimizer``.

The product of every pair is a point Y = U Σ V, its velocity P_Y(-G) with G = ∂L/∂W of its effective weight; stages are
brought back to rank r, see ``lowrank.space``. Single tensors ride along in a flat space. The factors are balanced after
every step, and no Gram matrix of them is inverted, so a start of small or vanishing singular values is as good as any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.integrators import Chebyshev, RungeKutta
from pinn_odelora.integrators.explicit import Descent
from pinn_odelora.manifolds.fixed_rank import LowRank
from pinn_odelora.manifolds.projected import Element, FixedRank, Point, project
from pinn_odelora.manifolds.variables import variable
from pinn_odelora.optim.groups import forget_but, unchanged_on_failure
from pinn_odelora.optim.objective import Surroundings


class ProjectedODELoRA(Optimizer):
    """Follow the projected gradient flow on LoRA pairs by an explicit scheme on the manifold.

    Args:
        pairs: parameter groups of one pair each, as ``factor_pairs`` gives, or of one tensor each.
        integrator: the scheme.

    Raises:
        FloatingPointError: from ``step``, when loss or gradient are not finite at the current point.
    """

    def __init__(self, pairs: Iterable[dict[str, Any]], integrator: RungeKutta | Chebyshev) -> None:
        self.integrator = integrator
        super().__init__(pairs, {"lr": integrator.h, "scale": 1.0, "name": "", "above": None, "memory": {}})

    @torch.no_grad()
    def step(self, closure: Surroundings) -> Tensor:
        losses: list[Tensor] = []

        def evaluate(y: list[Point]) -> tuple[list[Element], float]:
            self._place(y)
            loss, G = closure.weight_gradients()
            losses.append(loss)
            downhill = [-G[group["name"]].double() for group in self.param_groups]
            slopes = [project(x, D) if isinstance(x, LowRank) else D for x, D in zip(y, downhill, strict=True)]
            return slopes, float(loss)

        discarded: list[Tensor] = []
        first = self.param_groups[0]
        y = [variable(group, "weights").start() for group in self.param_groups]
        with unchanged_on_failure(self.param_groups):
            step = self.integrator.step(Descent(evaluate), y, first["lr"], first["memory"], FixedRank(discarded))
            self._place(step.y)
        for group in self.param_groups:
            group["memory"] = {**step.memory, "last_h": step.h, "discarded": float(discarded[-1])}
        return losses[0]

    def rank_changed(self) -> None:
        """The pairs have other shapes: step sizes and eigenvalues found for the others are forgotten."""
        forget_but(self.param_groups, "last_h", "discarded")

    def _place(self, y: list[Point]) -> None:
        for x, group in zip(y, self.param_groups, strict=True):
            for p, value in zip(group["params"], variable(group, "weights").values(x), strict=True):
                p.copy_(value)

"""Helmholtz equation with a manufactured solution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.points import Points


@dataclass(frozen=True, kw_only=True)
class Helmholtz(Problem):
    """u_xx + u_yy + u = q on [-1, 1]²,  u = 0 on the boundary.

    Reference: u = sin πx sin kπy, which gives q = (1 - π² - k²π²) u (Wang, Teng and Perdikaris, 2021).
    """

    coords = ("x", "y")
    region = Box(x=(-1, 1), y=(-1, 1))
    enforced = ("bc",)

    k: int = parameter(2, 4, above=0, integer=True)

    def terms(self) -> dict[str, Term]:
        return {
            "pde": Term(self.region, lambda f: f.lap("u") + f.u - self.q(f.x, f.y)),
            "bc": Term(self.region.boundary(), lambda f: f.u),
        }

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        """u, (N, 1)."""
        return torch.sin(math.pi * x) * torch.sin(self.k * math.pi * y)

    def q(self, x: Tensor, y: Tensor) -> Tensor:
        """The right-hand side, (N, 1)."""
        return (1 - (1 + self.k**2) * math.pi**2) * self.exact(x, y)

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(p.x), (1 - p.x**2) * (1 - p.y**2)

    def reference(self, p: Points) -> Tensor:
        return self.exact(p.x, p.y)

"""Heat equation, with two sine modes as exact solution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.points import Points


@dataclass(frozen=True, kw_only=True)
class Heat(Problem):
    """u_t = κ u_xx on [0, 1] × [0, 1];  u(x, 0) = sin πx + ½ sin 3πx,  u(0, t) = u(1, t) = 0.

    Reference: the mode sin nπx decays as exp(-κ n²π² t) (Fourier, 1822).
    """

    coords = ("x", "t")
    region = Box(x=(0, 1), t=(0, 1))
    enforced = ("ic", "bc")

    kappa: float = parameter(0.05, 0.2, above=0)

    def terms(self) -> dict[str, Term]:
        return {
            "pde": Term(self.region, lambda f: f.op("u", {"t": 1, "xx": -self.kappa})),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - self.initial(f.x)),
            "bc": Term(self.region.boundary("x"), lambda f: f.u),
        }

    def mode(self, n: int, x: Tensor) -> Tensor:
        """sin nπx, (N, 1)."""
        return torch.sin(n * math.pi * x)

    def initial(self, x: Tensor) -> Tensor:
        """u(x, 0), (N, 1)."""
        return self.mode(1, x) + self.mode(3, x) / 2

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        return self.initial(p.x), 4 * p.t * p.x * (1 - p.x)

    def reference(self, p: Points) -> Tensor:
        decay = torch.exp(-self.kappa * math.pi**2 * p.t)
        return decay * self.mode(1, p.x) + decay**9 * self.mode(3, p.x) / 2

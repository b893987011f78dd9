"""Logistic reaction equation, pointwise in space, with an exact solution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.points import Points


@dataclass(frozen=True, kw_only=True)
class Reaction(Problem):
    """u_t = ρ u (1 - u) on [0, 2π] × [0, 1], periodic in x;  u(x, 0) = exp(-(x - π)² / 2(π/4)²).

    Reference: the logistic function u = u₀ e^ρt / (1 + u₀ (e^ρt - 1)). A standard hard case for physics-informed
    networks (Krishnapriyan et al., 2021). The periodic extension of the initial state has a kink where it equals e⁻⁸,
    at x = 0, which grows with time and which a smooth periodic network cannot represent exactly.
    """

    coords = ("x", "t")
    region = Box(x=(0, 2 * math.pi), t=(0, 1))
    periods: ClassVar = {"x": 2 * math.pi}
    supports = ("hard",)
    enforced = ("ic",)

    rho: float = parameter(3.0, 5.0)

    def terms(self) -> dict[str, Term]:
        return {
            "pde": Term(self.region, lambda f: f.u_t - self.rho * f.u * (1 - f.u)),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - self.initial(f.x)),
        }

    def initial(self, x: Tensor) -> Tensor:
        """u(x, 0), (N, 1)."""
        return torch.exp(-((x - math.pi) ** 2) / (2 * (math.pi / 4) ** 2))

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        return self.initial(p.x), p.t

    def reference(self, p: Points) -> Tensor:
        u0 = self.initial(p.x)
        return u0 / (u0 + (1 - u0) * torch.exp(-self.rho * p.t))

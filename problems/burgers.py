"""Viscous Burgers equation, with the exact solution by the Cole–Hopf transform."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.points import Points
from pinn_odelora.reference import gauss_hermite


@dataclass(frozen=True, kw_only=True)
class Burgers(Problem):
    """u_t + u u_x = ν u_xx on [-1, 1] × [0, 1];  u(x, 0) = -a sin πx,  u(±1, t) = 0.

    Reference: with φ(y) = exp(-a cos(πy) / 2πν), u is the mean of the initial values u₀(x - √(4νt) z) over z with
    weight exp(-z²) φ(x - √(4νt) z), computed by Gauss–Hermite quadrature (Cole, 1951; Hopf, 1950).
    """

    coords = ("x", "t")
    region = Box(x=(-1, 1), t=(0, 1))
    enforced = ("ic", "bc")

    nu: float = parameter(0.05, 0.02, above=0)
    amplitude: float = parameter(1.0, 1.0)

    def terms(self) -> dict[str, Term]:
        return {
            "pde": Term(self.region, lambda f: f.op("u", {"t": 1, "xx": -self.nu}) + f.u * f.u_x),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - self.initial(f.x)),
            "bc": Term(self.region.boundary("x"), lambda f: f.u),
        }

    def initial(self, x: Tensor) -> Tensor:
        """u(x, 0), (N, 1)."""
        return -self.amplitude * torch.sin(math.pi * x)

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        return self.initial(p.x), p.t * (1 - p.x**2)

    def reference(self, p: Points) -> Tensor:
        z, log_w = gauss_hermite(200, p.x)
        y = p.x - torch.sqrt(4 * self.nu * p.t) * z
        log_phi = -self.amplitude * torch.cos(math.pi * y) / (2 * math.pi * self.nu)
        return (torch.softmax(log_w + log_phi, dim=1) * self.initial(y)).sum(dim=1, keepdim=True)

"""Kovasznay flow: an exact solution of the steady Navier–Stokes equations, the laminar flow behind a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pinn_odelora.derivatives import Field
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.points import Points


@dataclass(frozen=True, kw_only=True)
class Kovasznay(Problem):
    """u·∇u + ∇p = Δu / Re,  ∇·u = 0  for u = (u, v) on [-0.5, 1] × [-0.5, 1.5].

    Reference, with λ = Re/2 - √(Re²/4 + 4π²): u = 1 - exp(λx) cos 2πy, v = λ/2π · exp(λx) sin 2πy and
    p = (1 - exp 2λx) / 2 (Kovasznay, 1948). Velocities are prescribed on all sides; they determine the pressure only up
    to a constant, so it is prescribed at the outflow x = 1.
    """

    coords = ("x", "y")
    fields = ("u", "v", "p")
    region = Box(x=(-0.5, 1), y=(-0.5, 1.5))
    supports = ("soft",)

    re: float = parameter(20.0, 60.0, above=0)

    def terms(self) -> dict[str, Term]:
        return {
            "pde": Term(self.region, self.navier_stokes),
            "bc": Term(self.region.boundary(), lambda f: (f.u - self.u(f.x, f.y), f.v - self.v(f.x, f.y))),
            "outflow": Term(self.region.face(x=1.0), lambda f: f.p - self.p(f.x)),
        }

    def navier_stokes(self, f: Field) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals of both momentum equations and of ∇·u = 0, each (N, 1)."""
        return (
            f.u * f.u_x + f.v * f.u_y + f.p_x - f.lap("u") / self.re,
            f.u * f.v_x + f.v * f.v_y + f.p_y - f.lap("v") / self.re,
            f.u_x + f.v_y,
        )

    @property
    def rate(self) -> float:
        """λ, in a form without cancellation at large Re."""
        return -4 * math.pi**2 / (self.re / 2 + (self.re**2 / 4 + 4 * math.pi**2) ** 0.5)

    def u(self, x: Tensor, y: Tensor) -> Tensor:
        """Exact velocity in x, (N, 1)."""
        return 1 - torch.exp(self.rate * x) * torch.cos(2 * math.pi * y)

    def v(self, x: Tensor, y: Tensor) -> Tensor:
        """Exact velocity in y, (N, 1)."""
        return self.rate / (2 * math.pi) * torch.exp(self.rate * x) * torch.sin(2 * math.pi * y)

    def p(self, x: Tensor) -> Tensor:
        """Exact pressure, (N, 1)."""
        return (1 - torch.exp(2 * self.rate * x)) / 2

    def reference(self, p: Points) -> Tensor:
        return torch.cat([self.u(p.x, p.y), self.v(p.x, p.y), self.p(p.x)], dim=1)

"""Linear convection, with a travelling sine wave as exact solution."""

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
class Convection(Problem):
    """u_t + β u_x = 0 on [0, 2π] × [0, 1], periodic in x;  u(x, 0) = sin x.

    Reference: u = sin(x - βt), by characteristics. A standard hard case for physics-informed networks (Krishnapriyan et
    al., 2021).
    """

    coords = ("x", "t")
    region = Box(x=(0, 2 * math.pi), t=(0, 1))
    periods: ClassVar = {"x": 2 * math.pi}
    supports = ("hard",)
    enforced = ("ic",)

    beta: float = parameter(10.0, 15.0)

    def terms(self) -> dict[str, Term]:
        return {
            "pde": Term(self.region, lambda f: f.op("u", {"t": 1, "x": self.beta})),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - torch.sin(f.x)),
        }

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        return torch.sin(p.x), p.t

    def reference(self, p: Points) -> Tensor:
        return torch.sin(p.x - self.beta * p.t)

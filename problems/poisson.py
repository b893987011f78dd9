"""Poisson's equation with a manufactured solution, on a square or on a plate with a hole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box, Region
from pinn_odelora.geometry.deepxde import Shape, shapes
from pinn_odelora.points import Points

SQUARE = Box(x=(0, 1), y=(0, 1))


def disk() -> Shape:
    """The disk of radius ¼ around the centre of the square."""
    return Shape(shapes().Disk([0.5, 0.5], 0.25))


def plate() -> Shape:
    """The unit square without the disk."""
    return Shape(shapes().Rectangle([0, 0], [1, 1]) - disk().geometry)


@dataclass(frozen=True, kw_only=True)
class Poisson(Problem):
    """-(u_xx + u_yy) = f on [0, 1]²,  u = 0 on its boundary;  with ``domain=plate_with_hole`` outside a disk too.

    Reference: u = sin aπx sin aπy, which gives f = 2a²π² u. The plate is the square without the disk of radius ¼ around
    its centre; on its rim u takes the values of the reference, always as a soft condition, the term ``hole``.
    """

    coords = ("x", "y")
    enforced = ("bc",)

    a: int = parameter(1, 2, above=0, integer=True)
    domain: str = parameter("square", "square", choices=("square", "plate_with_hole"))

    @property
    def region(self) -> Region:
        """The square, or the plate."""
        return SQUARE if self.domain == "square" else plate()

    def terms(self) -> dict[str, Term]:
        terms = {
            "pde": Term(self.region, lambda f: -f.lap("u") - self.f(f.x, f.y)),
            "bc": Term(SQUARE.boundary(), lambda f: f.u),
        }
        if self.domain == "plate_with_hole":
            terms["hole"] = Term(disk().boundary(), lambda f: f.u - self.exact(f.x, f.y))
        return terms

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        """u, (N, 1)."""
        return torch.sin(self.a * math.pi * x) * torch.sin(self.a * math.pi * y)

    def f(self, x: Tensor, y: Tensor) -> Tensor:
        """The right-hand side, (N, 1)."""
        return 2 * (self.a * math.pi) ** 2 * self.exact(x, y)

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(p.x), 16 * p.x * (1 - p.x) * p.y * (1 - p.y)

    def reference(self, p: Points) -> Tensor:
        return self.exact(p.x, p.y)

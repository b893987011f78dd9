"""Given points of a domain, of which each draw takes some at random."""

from __future__ import annotations

import torch

from pinn_odelora.geometry.solids import Uniform
from pinn_odelora.points import Points


class Pool:
    """Points that somebody else has spread over a domain, such as a mesh or those of another program.

    Args:
        points: columns (N, 1).
    """

    interior = True

    def __init__(self, points: Points) -> None:
        self.points = points

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n different points, or all N where there are not so many; the same for the same ``uniform``."""
        number = self.points.number
        if n >= number:
            return self.points
        chosen = torch.argsort(uniform(number, 1)[:, 0])[:n]
        return Points({name: column[chosen] for name, column in self.points.items()})

    def __repr__(self) -> str:
        return f"Pool of {self.points.number} points in {', '.join(self.points)}"

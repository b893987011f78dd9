"""Regions in space, their products with a box of other coordinates, and the drawing of points in them.

    (plate * Box(t=(0, 1))).face(t=0.0)                          at the start of a time interval

All points are images of a sequence in the unit cube, uniform by volume or by area, so that an even sequence gives even
points and the same sequence the same points. A product takes further numbers of the same sequence for its box.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.points import Points

Uniform = Callable[[int, int], Tensor]
"""``uniform(n, d)``: n points in [0, 1)^d, (n, d)."""

DOUBLINGS = 12


class Spatial(ABC):
    """A region that can be extended along further coordinates."""

    coords: tuple[str, ...]

    @abstractmethod
    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        """n points, columns (n, 1), and further numbers in [0, 1) that belong to them, (n, beside)."""

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points, columns (n, 1)."""
        return self.drawn(n, uniform, 0)[0]

    def __mul__(self, interval: Any) -> Product:
        """The product with a box of other coordinates, such as a time interval ``Box(t=(0, 1))``."""
        return Product(self, interval)


class Product(Spatial):
    """A solid or surface times a box of other coordinates, such as a time interval.

    Args:
        space: the solid or surface.
        interval: a box of the other coordinates; one of length zero fixes a coordinate.

    Raises:
        InputError: if a coordinate occurs in both.
    """

    def __init__(self, space: Any, interval: Any) -> None:
        if twice := [name for name in interval.bounds if name in space.coords]:
            raise InputError(f"{twice[0]} is a coordinate of both factors of a product; they must have different ones.")
        self.space, self.interval = space, interval
        self.coords = (*space.coords, *interval.bounds)

    @property
    def interior(self) -> bool:
        """Whether it has full dimension."""
        return self.space.interior and self.interval.interior

    def face(self, **fixed: float) -> Product:
        """The part on which further coordinates have the given values, for instance ``face(t=0.0)``."""
        return Product(self.space, self.interval.face(**fixed))

    def boundary(self, *args: Any, **kwargs: Any) -> Product:
        """The boundary of the solid, times the box; arguments as there."""
        return Product(self.space.boundary(*args, **kwargs), self.interval)

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        free = sum(low < high for low, high in self.interval.bounds.values())
        p, unit = self.space.drawn(n, uniform, free + beside)
        rest = self.interval.sample(n, lambda n, d: unit[:, :d])
        # The normal of a surface in space is that of the product too.
        known = rest if self.space.interior else {name: rest[name] for name in self.interval.bounds}
        return Points(p | known), unit[:, free:]


def accepted(
    n: int,
    uniform: Uniform,
    k: int,
    beside: int,
    candidates: Callable[[Tensor], tuple[Points, Tensor]],
    what: str,
) -> tuple[Points, Tensor]:
    """The first n candidates that belong, from a sequence that is doubled until it contains so many.

    Args:
        n: number of points.
        uniform: the sequence.
        k: how many numbers give a candidate.
        beside: how many further numbers belong to a point.
        candidates: maps (m, k) to m points and to flags (m,) that mark those that belong.
        what: for the message.

    Returns:
        The points, and their further numbers (n, beside).

    Raises:
        InputError: if next to nothing belongs.
    """
    for m in (n << doubling for doubling in range(DOUBLINGS)):
        unit = uniform(m, k + beside)
        p, belongs = candidates(unit[:, :k])
        rows = torch.nonzero(belongs).flatten()[:n]
        if len(rows) == n:
            return Points({name: x[rows] for name, x in p.items()}), unit[rows, k:]
    raise InputError(f"{what} is empty, or fills less than a thousandth of what encloses it.")

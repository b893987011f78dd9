"""The space that an explicit scheme moves in: what it needs of points, slopes and sums of both.

An explicit stage is a sum of points and slopes with numbers in front,  Σ_j c_j y_j + h Σ_j w_j k_j. In a flat space
that is a point. On a manifold it is an element of the space around, each slope k_j being tangent at its own stage's
point, and has to be brought back: a Runge–Kutta scheme becomes a projected one without a line of its own changed.
``FLAT`` is the space of lists of tensors; ``manifolds.projected`` has that of fixed-rank matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Point = list[Any]
"""A point: one entry for each thing that moves."""

Slope = list[Any]
"""A velocity, or another element of the space around: an entry for each entry of the point."""

Sum = Sequence[tuple[float, list[Any]]]
"""Terms (c_j, x_j) of a sum  Σ_j c_j x_j."""


class Space(Protocol):
    """What explicit schemes, their error control and their estimate of the largest eigenvalue ask of a space."""

    def combine(self, points: Sum, slopes: Sum) -> Point:
        """The point  Σ c y + Σ c k; ``points`` is not empty, and its numbers sum to one."""

    def total(self, slopes: Sum) -> Slope:
        """Σ c k as an element of the space around; ``slopes`` is not empty."""

    def element(self, y: Point) -> Slope:
        """A point as an element of the space around."""

    def entries(self, k: Slope) -> list[Tensor]:
        """Numbers that a tolerance is held against, with the Euclidean norm of k."""

    def quotient(self, y: Point, a: Slope, b: Slope, eps: float) -> Slope:
        """(b - a)/eps as a tangent vector at y."""

    def random(self, y: Point, generator: torch.Generator) -> Slope:
        """A tangent vector at y, the same in all directions."""


class Flat:
    """Lists of tensors with the Euclidean metric: a point is an element of its own tangent space."""

    def combine(self, points: Sum, slopes: Sum) -> list[Tensor]:
        return self.total([*points, *slopes])

    def total(self, slopes: Sum) -> list[Tensor]:
        return [sum(c * k[i] for c, k in slopes) for i in range(len(slopes[0][1]))]

    def element(self, y: list[Tensor]) -> list[Tensor]:
        return y

    def entries(self, k: list[Tensor]) -> list[Tensor]:
        return k

    def quotient(self, y: list[Tensor], a: list[Tensor], b: list[Tensor], eps: float) -> list[Tensor]:
        return [(after - before) / eps for before, after in zip(a, b, strict=True)]

    def random(self, y: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        return [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in y]


FLAT = Flat()

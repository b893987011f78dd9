"""The space of an explicit scheme: linear combinations of points and slopes.

An explicit stage is a linear combination of points and slopes,  Σ_j c_j y_j + h Σ_j w_j k_j. In a flat space this is a
point. On a manifold it is an element of the ambient space, since each slope k_j is tangent at the point of its own
stage, and must be retracted: a Runge–Kutta scheme becomes a projected one without changes to its code. ``FLAT`` is the
space of lists of tensors; ``manifolds.projected`` defines that of fixed-rank matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Point = list[Any]
"""A point: one entry for each variable."""

Slope = list[Any]
"""A velocity, or another element of the ambient space, with one entry for each entry of the point."""

Sum = Sequence[tuple[float, list[Any]]]
"""Terms (c_j, x_j) of a sum  Σ_j c_j x_j."""


class Space(Protocol):
    """The operations used by explicit schemes, their error control and the estimate of the largest eigenvalue."""

    def combine(self, points: Sum, slopes: Sum) -> Point:
        """The point  Σ c y + Σ c k; ``points`` is not empty, and its coefficients sum to one."""

    def total(self, slopes: Sum) -> Slope:
        """Σ c k as an element of the ambient space; ``slopes`` is not empty."""

    def element(self, y: Point) -> Slope:
        """A point as an element of the ambient space."""

    def entries(self, k: Slope) -> list[Tensor]:
        """Tensors with the Euclidean norm of k, to whose entries tolerances apply."""

    def quotient(self, y: Point, a: Slope, b: Slope, eps: float) -> Slope:
        """(b - a)/eps, projected on the tangent space at y."""

    def random(self, y: Point, generator: torch.Generator) -> Slope:
        """A random tangent vector at y, isotropically distributed."""


class Flat:
    """Lists of tensors with the Euclidean metric, where points and slopes are of one kind; implements ``Space``."""

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

"""The space of explicit schemes on fixed-rank matrices, together with plain tensors.

A slope is the projected negative gradient at the point Y = U Σ V of its stage,

    P_Y(-G) = -U (UᵀG) - (I - UUᵀ) (G Vᵀ) V ,

of rank 2r and stored as a product of (m, 2r) and (2r, n). The rank of a sum of points and slopes is at most the sum of
their ranks; thin QR factorisations of both sides and the singular value decomposition of a small core truncate it to
rank r. With these sums as stages, an explicit scheme is a projected Runge–Kutta method for dynamical low-rank
approximation (Kieri and Vandereycken, SIAM J. Numer. Anal. 57, 2019): no singular value is inverted, and the error
constants do not depend on small singular values, provided the component of G normal to the manifold is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.fixed_rank import LowRank, Thin, truncate

Point = LowRank | Tensor
Element = Thin | Tensor
Sum = Sequence[tuple[float, list[Element]]]


def project(y: LowRank, D: Thin | Tensor) -> Thin:
    """P_Y(D), the orthogonal projection of D on the tangent space at y, of rank at most 2r.

    Args:
        y: the point Y, (m, n) of rank r.
        D: any matrix (m, n), thin or dense.
    """
    if isinstance(D, Thin):
        return tangent(y, (y.U.mT @ D.left) @ D.right, D.left @ (D.right @ y.V.mT))
    D = D.to(y.U)
    return tangent(y, y.U.mT @ D, D @ y.V.mT)


def tangent(y: LowRank, UtD: Tensor, DVt: Tensor) -> Thin:
    """P_Y(D) from the products UᵀD (r, n) and D Vᵀ (m, r)."""
    K = DVt - y.U @ (UtD @ y.V.mT)
    return Thin(torch.cat([y.U, K], dim=1), torch.cat([UtD, y.V]))


@dataclass(frozen=True)
class FixedRank:
    """The space whose points are lists of ``LowRank`` matrices and of tensors with the Euclidean metric.

    Implements ``manifolds.space.Space``. Tolerances apply to the root mean square of a matrix's entries, so that they
    do not depend on a basis.

    Args:
        discarded: a list to which every truncation appends the Frobenius norm of the discarded part; the last one of a
            step is that of its result. None to keep none.
    """

    discarded: list[Tensor] | None = None

    def combine(self, points: Sequence[tuple[float, list[Point]]], slopes: Sum) -> list[Point]:
        sums = self.total([*((c, self.element(y)) for c, y in points), *slopes])
        ranks = [len(x.sigma) if isinstance(x, LowRank) else None for x in points[0][1]]
        return self._onto(sums, ranks)

    def total(self, slopes: Sum) -> list[Element]:
        return [_total([(c, k[i]) for c, k in slopes]) for i in range(len(slopes[0][1]))]

    def element(self, y: list[Point]) -> list[Element]:
        return [Thin(x.U * x.sigma, x.V) if isinstance(x, LowRank) else x for x in y]

    def entries(self, k: list[Element]) -> list[Tensor]:
        return [_level(x) if isinstance(x, Thin) else x for x in k]

    def quotient(self, y: list[Point], a: list[Element], b: list[Element], eps: float) -> list[Element]:
        change = self.total([(1 / eps, b), (-1 / eps, a)])
        return [project(x, D) if isinstance(x, LowRank) else D for x, D in zip(y, change, strict=True)]

    def random(self, y: list[Point], generator: torch.Generator) -> list[Element]:
        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

        return [tangent(x, normal(x.V), normal(x.U)) if isinstance(x, LowRank) else normal(x) for x in y]

    def _onto(self, sums: list[Element], ranks: list[int | None]) -> list[Point]:
        """Truncate to the manifold, matrices of one shape in one batch."""
        reached: list[Point] = list(sums)
        alike: dict[tuple, list[int]] = {}
        for i, (x, rank) in enumerate(zip(sums, ranks, strict=True)):
            if rank is not None:
                alike.setdefault((x.left.shape, x.right.shape, x.left.device, rank), []).append(i)
        lost = []
        for (*_, rank), members in alike.items():
            points, discarded = truncate(Thin(*(torch.stack([sums[i][k] for i in members]) for k in (0, 1))), rank)
            lost.append(discarded)
            for i, *point in zip(members, *points, strict=True):
                reached[i] = LowRank(*point)
        if self.discarded is not None and lost:
            self.discarded.append(linalg.vector_norm(torch.cat(lost)))
        return reached


def _total(terms: Sequence[tuple[float, Element]]) -> Element:
    if isinstance(terms[0][1], Tensor):
        return sum(c * x for c, x in terms)
    return Thin(torch.cat([c * x.left for c, x in terms], dim=-1), torch.cat([x.right for _, x in terms], dim=-2))


def _level(x: Thin) -> Tensor:
    """A vector of m·n equal entries, the root mean square of those of the matrix."""
    number = x.left.shape[-2] * x.right.shape[-1]
    return (x.norm() / number**0.5).expand(number)

"""The manifold of m × n matrices of rank r: points as singular value decompositions, and its retraction.

After a step D = U X + U⊥ K V from Y = U Σ V, the matrix

    Y + D = [U  U⊥ K] ( Σ V + X )
                      (    V    )

has rank at most 2r and is a product of two thin matrices. Thin QR factorisations of both and the singular value
decomposition of the core between them give its best rank-r approximation, a second-order retraction (Absil and
Oseledets, 2015). The norm of the discarded part is returned with it.

The corresponding factors, s·B A = U Σ V, are B = U √(Σ/s) and A = √(Σ/s) V: balanced, BᵀB = AAᵀ, at every point.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.factors import Factors, aligned
from pinn_odelora.manifolds.tangent import Frame, complement


class LowRank(NamedTuple):
    """U Σ V with orthonormal U (…, m, r), V (…, r, n), and singular values sigma (…, r), float64."""

    U: Tensor
    sigma: Tensor
    V: Tensor

    @property
    def frame(self) -> Frame:
        """Coordinates of the tangent space at this point."""
        return Frame(self.U, complement(self.U), self.V)

    def matrix(self) -> Tensor:
        """The matrix, (m, n)."""
        return self.U * self.sigma @ self.V

    def cut(self, rank: int) -> LowRank:
        """The leading ``rank`` singular values and vectors."""
        return LowRank(self.U[..., :rank], self.sigma[..., :rank], self.V[..., :rank, :])

    def factors(self, scale: float) -> Factors:
        """The balanced pair with s·B A = U Σ V."""
        root = torch.sqrt(self.sigma / scale)
        return Factors(root[..., :, None] * self.V, self.U * root[..., None, :])


class Thin(NamedTuple):
    """The matrix ``left @ right``, (…, m, k) times (…, k, n), not formed."""

    left: Tensor
    right: Tensor

    def matrix(self) -> Tensor:
        """The matrix, (…, m, n)."""
        return self.left @ self.right

    def norm(self) -> Tensor:
        """Its Frobenius norm, (…,), accurate also under cancellation."""
        return linalg.matrix_norm(linalg.qr(self.left).R @ linalg.qr(self.right.mT).R.mT)


class Retracted(NamedTuple):
    """The point reached, and the Euclidean norm of the discarded singular values."""

    point: LowRank
    discarded: Tensor


@torch.no_grad()
def low_rank(y: Factors, scale: float) -> LowRank:
    """s·B A as a point.

    Args:
        y: A (…, r, n) and B (…, m, r), not necessarily balanced or of full rank.
        scale: s.

    Raises:
        FloatingPointError: if the product is not finite.
    """
    Q_B, R_B = linalg.qr(y.B.double())
    Q_A, R_A = linalg.qr(y.A.double().mT)
    try:
        u, sigma, v = linalg.svd(R_B @ R_A.mT)
    except linalg.LinAlgError as error:
        raise FloatingPointError("A product of factors is not finite.") from error
    return LowRank(Q_B @ u, scale * sigma, v @ Q_A.mT)


def truncate(x: Thin, rank: int) -> Retracted:
    """The best rank-r approximation of a thin matrix, or of a batch.

    Args:
        x: left (…, m, k) and right (…, k, n).
        rank: r.

    Raises:
        FloatingPointError: if x is not finite.
    """
    Q, R = linalg.qr(x.left)
    P, S = linalg.qr(x.right.mT)
    try:
        u, sigma, v = linalg.svd(R @ S.mT, full_matrices=False)
    except linalg.LinAlgError as error:
        raise FloatingPointError("A sum of points and velocities is not finite.") from error
    point = LowRank(Q @ u[..., :, :rank], sigma[..., :rank], v[..., :rank, :] @ P.mT)
    return Retracted(point, linalg.vector_norm(sigma[..., rank:], dim=-1))


def retract(y: LowRank, frame: Frame, z: Tensor) -> Retracted:
    """The best rank-r approximation of Y + D, where D is the tangent vector with coordinates z.

    Args:
        y: the point Y, of rank r.
        frame: the frame at Y.
        z: coordinates, (r (m + n - r),).

    Raises:
        FloatingPointError: if z is not finite.
    """
    X, K = frame.split(z)
    moved = Thin(torch.cat([y.U, frame.complement @ K], dim=1), torch.cat([y.sigma[:, None] * y.V + X, y.V]))
    return truncate(moved, len(y.sigma))


def regauge(y: Factors, former: Factors) -> Factors:
    """The balanced pair with the product of a balanced one that is closest to a previous pair, computed in float64.

    Args:
        y: A (…, r, n) and B (…, m, r), balanced.
        former: the previous pair, see ``manifolds.factors``.
    """
    return Factors(*(x.to(y.A) for x in aligned(Factors(y.A.double(), y.B.double()), former)))


def rebalance(y: Factors, former: Factors | None = None) -> Factors:
    """The balanced pair with the same product, computed in float64.

    Args:
        y: A (…, r, n) and B (…, m, r).
        former: a previous pair, to which the result is made as close as possible, see ``manifolds.factors``.
    """
    balanced = low_rank(y, 1.0).factors(1.0)
    if former is not None:
        balanced = aligned(balanced, former)
    return Factors(*(x.to(y.A) for x in balanced))


def frame(y: Factors) -> Frame:
    """The frame at the product B A.

    U and V are unique up to signs and to rotations among equal singular values; if B A does not have full rank, some of
    their columns are arbitrary. Results computed in the frame's coordinates do not depend on that choice.

    Args:
        y: A (r, n) and B (m, r).
    """
    return low_rank(y, 1.0).frame.to(y.A)

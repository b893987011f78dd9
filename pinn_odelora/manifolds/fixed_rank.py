"""The manifold of m × n matrices of rank r: points by their singular value decomposition, and the way back to it.

A step D = U X + U⊥ K V from Y = U Σ V has rank 2r at most,

    Y + D = [U  U⊥ K] ( Σ V + X )
                      (    V    ) ,

and stays a product of two thin matrices. Thin QR of both and the singular values of the core between them give its best
approximation of rank r: a retraction of second order (Absil and Oseledets, 2015). What it throws away is returned with
it.

As factors s·B A = U Σ V with B = U √(Σ/s) and A = √(Σ/s) V: balanced, BᵀB = AAᵀ, at every point.
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
        """Coordinates of the tangent space here."""
        return Frame(self.U, complement(self.U), self.V)

    def matrix(self) -> Tensor:
        """The matrix, (m, n)."""
        return self.U * self.sigma @ self.V

    def cut(self, rank: int) -> LowRank:
        """The part of the leading singular values."""
        return LowRank(self.U[..., :rank], self.sigma[..., :rank], self.V[..., :rank, :])

    def factors(self, scale: float) -> Factors:
        """The balanced pair with s·B A = U Σ V."""
        root = torch.sqrt(self.sigma / scale)
        return Factors(root[..., :, None] * self.V, self.U * root[..., None, :])


class Thin(NamedTuple):
    """The matrix ``left @ right``, (…, m, k) times (…, k, n), never formed."""

    left: Tensor
    right: Tensor

    def matrix(self) -> Tensor:
        """The matrix, (…, m, n)."""
        return self.left @ self.right

    def norm(self) -> Tensor:
        """Its Frobenius norm, exact also where terms cancel."""
        return linalg.matrix_norm(linalg.qr(self.left).R @ linalg.qr(self.right.mT).R.mT)


class Retracted(NamedTuple):
    """The point reached, and the norm of the singular values left out."""

    point: LowRank
    discarded: Tensor


@torch.no_grad()
def low_rank(y: Factors, scale: float) -> LowRank:
    """s·B A as a point; the factors need not be balanced, and may have lost rank."""
    Q_B, R_B = linalg.qr(y.B.double())
    Q_A, R_A = linalg.qr(y.A.double().mT)
    u, sigma, v = linalg.svd(R_B @ R_A.mT)
    return LowRank(Q_B @ u, scale * sigma, v @ Q_A.mT)


def truncate(x: Thin, rank: int) -> Retracted:
    """The best approximation of a thin matrix, or of a batch of them, by one of rank r.

    Raises:
        FloatingPointError: if x is not finite.
    """
    Q, R = linalg.qr(x.left)
    P, S = linalg.qr(x.right.mT)
    try:
        u, sigma, v = linalg.svd(R @ S.mT, full_matrices=False)
    except linalg.LinAlgError as error:
        raise FloatingPointError("A sum of points and slopes is not finite.") from error
    point = LowRank(Q @ u[..., :, :rank], sigma[..., :rank], v[..., :rank, :] @ P.mT)
    return Retracted(point, linalg.vector_norm(sigma[..., rank:], dim=-1))


def retract(y: LowRank, frame: Frame, z: Tensor) -> Retracted:
    """The best rank-r approximation of Y + D, D the tangent vector with coordinates z in the frame at Y.

    Raises:
        FloatingPointError: if z is not finite.
    """
    X, K = frame.split(z)
    moved = Thin(torch.cat([y.U, frame.complement @ K], dim=1), torch.cat([y.sigma[:, None] * y.V + X, y.V]))
    return truncate(moved, len(y.sigma))


def rebalance(y: Factors, former: Factors | None = None) -> Factors:
    """The balanced pair with the same product; A (…, r, n), B (…, m, r), computed in float64.

    Args:
        y: a pair, or a batch of pairs of one shape.
        former: where given, the pair nearest to it is taken, see ``manifolds.factors``.
    """
    balanced = low_rank(y, 1.0).factors(1.0)
    if former is not None:
        balanced = aligned(balanced, former)
    return Factors(*(x.to(y.A) for x in balanced))


def frame(y: Factors) -> Frame:
    """The frame at the product B A, which may be of lower rank than r: then some directions of U and V are free.

    They depend on the product only up to signs and rotations of equal singular values, and so does nothing that is
    computed with them in the end.
    """
    return low_rank(y, 1.0).frame.to(y.A)

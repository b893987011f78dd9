"""The manifold of m × n matrices of rank r: points by their singular value decomposition, and the retraction to it.

A step D = U X + U⊥ K V from Y = U Σ V has rank 2r at most:

    Y + D = [U Q] ( Σ + X Vᵀ   R₂ᵀ ) ( V  )          U⊥ K = Q R₁ ,   (X (I - Vᵀ V))ᵀ = P R₂ .
                  ( R₁          0  ) ( Pᵀ )

Its best approximation of rank r, by the decomposition of the 2r × 2r core, is a retraction of second order (Absil and
Oseledets, 2015). What it throws away is returned with it.

As factors s·B A = U Σ V with B = U √(Σ/s) and A = √(Σ/s) V: balanced, BᵀB = AAᵀ, at every point.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.lowrank.layer import Factors
from pinn_odelora.lowrank.tangent import Frame, complement


class LowRank(NamedTuple):
    """U Σ V with orthonormal U (m, r), V (r, n), and singular values sigma (r,), float64."""

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

    def factors(self, scale: float) -> Factors:
        """The balanced pair with s·B A = U Σ V."""
        root = torch.sqrt(self.sigma / scale)
        return Factors(root[:, None] * self.V, self.U * root)


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


def retract(y: LowRank, frame: Frame, z: Tensor) -> Retracted:
    """The best rank-r approximation of Y + D, D the tangent vector with coordinates z in the frame at Y.

    Raises:
        FloatingPointError: if z is not finite.
    """
    X, K = frame.split(z)
    r = len(y.sigma)
    Q, R1 = linalg.qr(frame.complement @ K)
    along = X @ y.V.mT
    P, R2 = linalg.qr((X - along @ y.V).mT)
    core = torch.cat(
        [torch.cat([torch.diag(y.sigma) + along, R2.mT], 1), torch.cat([R1, R1.new_zeros(len(R1), R2.shape[0])], 1)]
    )
    try:
        u, sigma, v = linalg.svd(core, full_matrices=False)
    except linalg.LinAlgError as error:
        raise FloatingPointError("A tangent vector is not finite.") from error
    U, V = torch.cat([y.U, Q], dim=1) @ u[:, :r], v[:r] @ torch.cat([y.V, P.mT])
    return Retracted(LowRank(U, sigma[:r], V), linalg.vector_norm(sigma[r:]))

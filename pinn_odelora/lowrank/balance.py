"""The balanced manifold BᵀB = AAᵀ: how far a pair is from it, and the retraction onto it that keeps the product.

With thin factorisations B = Q_B R_B and Aᵀ = Q_A R_A, and the r × r singular value decomposition
R_B R_Aᵀ = U Σ Vᵀ, the balanced pair of the same product is B = Q_B U √Σ, A = √Σ Vᵀ Q_Aᵀ.
"""

from __future__ import annotations

import torch
from torch import Tensor, linalg

from pinn_odelora.lowrank.layer import Factors


def balance_defect(y: Factors) -> Tensor:
    """‖BᵀB - AAᵀ‖ (Frobenius), one number for each pair of the batch."""
    return linalg.matrix_norm(y.B.mT @ y.B - y.A @ y.A.mT)


def rebalance(y: Factors) -> Factors:
    """The balanced pair with the same product; A (…, r, n), B (…, m, r), computed in float64."""
    Q_B, R_B = linalg.qr(y.B.double())
    Q_A, R_A = linalg.qr(y.A.double().mT)
    U, sigma, Vh = linalg.svd(R_B @ R_A.mT)
    root = torch.sqrt(sigma)
    return Factors((root[..., :, None] * (Vh @ Q_A.mT)).to(y.A), (Q_B @ U * root[..., None, :]).to(y.B))

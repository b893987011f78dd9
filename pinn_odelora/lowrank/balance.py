"""The balanced manifold BᵀB = AAᵀ: how far a pair is from it, and the retraction onto it that keeps the product.

With the singular value decomposition B A = U Σ V the balanced pair of the same product is B = U √Σ, A = √Σ V.
"""

from __future__ import annotations

from torch import Tensor, linalg

from pinn_odelora.lowrank.layer import Factors
from pinn_odelora.manifolds.fixed_rank import low_rank


def balance_defect(y: Factors) -> Tensor:
    """‖BᵀB - AAᵀ‖ (Frobenius), one number for each pair of the batch."""
    return linalg.matrix_norm(y.B.mT @ y.B - y.A @ y.A.mT)


def rebalance(y: Factors) -> Factors:
    """The balanced pair with the same product; A (…, r, n), B (…, m, r), computed in float64."""
    return Factors(*(x.to(y.A) for x in low_rank(y, 1.0).factors(1.0)))

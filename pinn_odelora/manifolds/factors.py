"""LoRA factors as a point, and the balanced manifold BᵀB = AAᵀ.

With the singular value decomposition B A = U Σ V the balanced pairs of this product are B = U √Σ Q, A = Qᵀ √Σ V, Q any
orthogonal matrix of r rows: the gauge. The retraction takes the Q for which the pair is nearest to a former one,

    Q = argmin ‖U √Σ Q - B′‖² + ‖Qᵀ √Σ V - A′‖² = P R    for    √Σ Uᵀ B′ + √Σ V A′ᵀ = P S R ,

an orthogonal Procrustes problem (Schönemann, 1966). So factors change no more from step to step than their product
asks for, and averages of factors, or gradients kept from a step before, mean what they seem to.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, linalg


class Factors(NamedTuple):
    """A point of the factor space, or a gradient or velocity there: A (…, r, n) and B (…, m, r)."""

    A: Tensor
    B: Tensor


def balance_defect(y: Factors) -> Tensor:
    """‖BᵀB - AAᵀ‖ (Frobenius), one number for each pair of the batch."""
    return linalg.matrix_norm(y.B.mT @ y.B - y.A @ y.A.mT)


def aligned(y: Factors, former: Factors) -> Factors:
    """The pair (Qᵀ A, B Q) of the same product and balance that is nearest to a former one.

    Args:
        y: a balanced pair, or a batch of pairs; float64.
        former: of the same shapes.
    """
    B, A = (x.to(y.A) for x in (former.B, former.A))
    P, _, R = linalg.svd(y.B.mT @ B + y.A @ A.mT)
    Q = P @ R
    return Factors(Q.mT @ y.A, y.B @ Q)

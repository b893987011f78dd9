"""LoRA factors as a point, and the balanced manifold BᵀB = AAᵀ.

With the singular value decomposition B A = U Σ V, the balanced pairs of this product are B = U √Σ Q, A = Qᵀ √Σ V, for
any orthogonal matrix Q (r, r), the gauge. The retraction chooses the Q whose pair is closest to a previous one,

    Q = argmin ‖U √Σ Q - B′‖² + ‖Qᵀ √Σ V - A′‖² = P R    for    √Σ Uᵀ B′ + √Σ V A′ᵀ = P S R ,

an orthogonal Procrustes problem (Schönemann, 1966). The factors then change from step to step no more than their
product requires, so that averages of factors and gradients from earlier steps remain meaningful.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, linalg


class Factors(NamedTuple):
    """A point of the factor space, or a gradient or velocity there: A (…, r, n) and B (…, m, r)."""

    A: Tensor
    B: Tensor


def balance_defect(y: Factors) -> Tensor:
    """‖BᵀB - AAᵀ‖ (Frobenius norm), (…,).

    Args:
        y: A (…, r, n) and B (…, m, r).
    """
    return linalg.matrix_norm(y.B.mT @ y.B - y.A @ y.A.mT)


def aligned(y: Factors, former: Factors) -> Factors:
    """The pair (Qᵀ A, B Q), with the same product and balance, that is closest to a previous one.

    Args:
        y: a balanced pair A (…, r, n) and B (…, m, r), float64.
        former: the previous pair, of the same shapes.
    """
    B, A = (x.to(y.A) for x in (former.B, former.A))
    P, _, R = linalg.svd(y.B.mT @ B + y.A @ A.mT)
    Q = P @ R
    return Factors(Q.mT @ y.A, y.B @ Q)

"""The symmetric product JᵀJ, the half that mirrors the other not computed.

BLAS has a symmetric rank-k update for it, which torch does not offer. Splitting the columns, [A B], leaves one general
product, BᵀA, and two symmetric ones of half the size; down to a small size this approaches half the operations.
"""

from __future__ import annotations

from torch import Tensor

SMALL = 160
"""Columns below which one general product is faster."""


def gram(J: Tensor) -> Tensor:
    """JᵀJ for J (R, P), (P, P)."""
    out = J.new_empty(J.shape[1], J.shape[1])
    _fill(J, out)
    return out


def _fill(J: Tensor, out: Tensor) -> None:
    P = J.shape[1]
    if P <= SMALL:
        out.copy_(J.mT @ J)
        return
    k = P // 2
    _fill(J[:, :k], out[:k, :k])
    _fill(J[:, k:], out[k:, k:])
    out[k:, :k] = J[:, k:].mT @ J[:, :k]
    out[:k, k:] = out[k:, :k].mT

"""The symmetric product JᵀJ, with half of the off-diagonal blocks copied instead of computed.

BLAS has a symmetric rank-k update for this, which torch does not expose. Splitting the columns, J = [A B], leaves one
general product, BᵀA, and two symmetric ones of half the size; recursively, this takes about half the operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 240
"""Number of columns up to which a single general product is faster."""


def gram(J: Tensor) -> Tensor:
    """JᵀJ for J (R, P), (P, P)."""
    J = J.detach()
    out = J.new_empty(J.shape[1], J.shape[1])
    _fill(J, out)
    return out


def _fill(J: Tensor, out: Tensor) -> None:
    P = J.shape[1]
    if P <= SMALL:
        torch.mm(J.mT, J, out=out)
        return
    k = P // 2
    _fill(J[:, :k], out[:k, :k])
    _fill(J[:, k:], out[k:, k:])
    torch.mm(J[:, k:].mT, J[:, :k], out=out[k:, :k])
    out[:k, k:] = out[k:, :k].mT

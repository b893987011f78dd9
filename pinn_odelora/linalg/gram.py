"""The symmetric product JᵀJ, with about half of the operations of a general one.

BLAS has a symmetric rank-k update for this, which torch does not expose; NumPy takes it for AᵀA. On other devices than
the CPU half of the off-diagonal blocks are copied instead of computed: splitting the columns, J = [A B], leaves one
general product, BᵀA, and two symmetric ones of half the size, and so on.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = 240
"""Number of columns up to which a single general product is faster."""


def gram(J: Tensor) -> Tensor:
    """JᵀJ for J (R, P), (P, P)."""
    J = J.detach()
    if J.device.type == "cpu":
        A = J.numpy()
        return torch.from_numpy(A.T @ A)
    out = J.new_empty(J.shape[1], J.shape[1])
    fill(J, out)
    return out


def fill(J: Tensor, out: Tensor) -> None:
    """Write JᵀJ into ``out``, (P, P)."""
    P = J.shape[1]
    if P <= SMALL:
        torch.mm(J.mT, J, out=out)
        return
    k = P // 2
    fill(J[:, :k], out[:k, :k])
    fill(J[:, k:], out[k:, k:])
    torch.mm(J[:, k:].mT, J[:, :k], out=out[k:, :k])
    out[:k, k:] = out[k:, :k].mT

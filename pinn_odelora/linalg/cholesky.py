"""The Cholesky factor of a symmetric positive definite matrix, M = L Lᵀ, and solutions with it.

On the CPU both are LAPACK's, called through SciPy: a solution in torch copies the factor first, which takes longer than
the solution.
"""

from __future__ import annotations

import math

import torch
from scipy.linalg import get_lapack_funcs
from torch import Tensor, linalg


def factored(M: Tensor) -> Tensor | None:
    """L (P, P), of which only the lower triangle counts, for M (P, P), which is overwritten; None where M is not
    positive definite in its precision.
    """
    # LAPACK need not notice NaN, which wherever it is comes down to the last entry.
    if M.device.type != "cpu":
        L, failed = linalg.cholesky_ex(M)
        return None if bool(failed) or bool(L[-1, -1].isnan()) else L
    a = M.numpy().T  # by columns, as LAPACK takes it without a copy
    (potrf,) = get_lapack_funcs(("potrf",), (a,))
    L, failed = potrf(a, lower=True, clean=False, overwrite_a=True)
    return None if failed or math.isnan(L[-1, -1]) else torch.from_numpy(L)


def solution(L: Tensor, b: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ b for b (P,) in the dtype of L."""
    if L.device.type != "cpu":
        return torch.cholesky_solve(b[:, None], L)[:, 0]
    a = L.numpy()
    (potrs,) = get_lapack_funcs(("potrs",), (a,))
    return torch.from_numpy(potrs(a, b.numpy(), lower=True)[0])

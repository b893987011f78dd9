"""Where a run starts: the matrix W0 whose factors are handed to a contender.

near         W* + E brought back to rank r, ‖E‖ about 0.04 σ_r, E in the slowest and the fastest direction of the
             contender's own linearisation, and a twentieth of that in a random one. One of the first two is the last to
             go, so that a slow rate, and a step too large, show at once
spectral     the best approximation of −∇L(0) over the mean eigenvalue of H; for sensing the back-projection
             Σ_i b_i M_i / R of the spectral initialisation (Tong, Ma and Chi, 2021, arXiv 2005.08898)
orthonormal  all singular values equal to a size, random singular vectors: 0.1; ``small`` 1e-3, ``tiny`` 1e-6
"""

from __future__ import annotations

import torch
from torch import Tensor, linalg

from convergence.setups import COLUMNS, RANK, ROWS, Contender, Setup
from convergence.theory import modes, weighted_points
from pinn_odelora.matrices import orthonormal

NEAR, RANDOM = 0.03, 0.05
SIZES = {"orthonormal": 1e-1, "small": 1e-3, "tiny": 1e-6}
STARTS = ("spectral", *SIZES)


def source(setup: Setup, start: str | float, contender: Contender) -> Tensor:
    """W0, (m, n), of the rank of the factors.

    Args:
        start: its name, or the size of an orthonormal one.
    """
    if start == "near":
        return near(setup, contender)
    if start == "spectral":
        return truncated(back_projection(setup), setup.rank)
    U, V = (orthonormal(size, setup.rank, g) for g in (setup.generator,) for size in (ROWS, COLUMNS))
    return SIZES.get(start, start) * U @ V.mT


def near(setup: Setup, contender: Contender) -> Tensor:
    W = setup.posed().matrix
    E = torch.randn(W.shape, generator=setup.generator, dtype=W.dtype)
    _, slowest, fastest = modes(setup, contender.spectrum)
    D = slowest + fastest + RANDOM * E / E.norm()
    return truncated(W + NEAR * float(linalg.svdvals(W)[RANK - 1]) * D, setup.rank)


def back_projection(setup: Setup) -> Tensor:
    """−∇L(0) over the mean eigenvalue of H."""
    M, b = weighted_points(setup.posed())
    return (b @ M * M.shape[1] / M.square().sum()).view(ROWS, COLUMNS)


def truncated(W: Tensor, rank: int) -> Tensor:
    """Its best approximation of that rank."""
    U, sigma, V = linalg.svd(W, full_matrices=False)
    return U[:, :rank] * sigma[:rank] @ V[:rank]

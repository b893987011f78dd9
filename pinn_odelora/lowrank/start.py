"""Initial factors (A₀, B₀) for a pretrained weight W0 (m, n), rank r and scale s.

zero         A₀ uniform (Kaiming), B₀ = 0: the LoRA start (Hu et al., 2022, arXiv 2106.09685). The balanced flow is
             singular there, because B₀ᵀB₀ = 0.
orthonormal  s·B₀A₀ has r singular values equal to ``size``, with random singular vectors: balanced and small.
pissa        s·B₀A₀ is the best rank-r approximation of W0 (Meng et al., 2024, arXiv 2404.02948): balanced and large.

Balanced means B₀ᵀB₀ = A₀A₀ᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, linalg

from pinn_odelora.lowrank.layer import Factors

Start = Callable[[Tensor, int, float, torch.Generator], Factors]
"""``start(W0, rank, scale, generator)`` -> (A₀, B₀), A₀ (r, n) and B₀ (m, r), in the dtype and on the device of W0."""


def zero(W0: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
    """A₀ uniform in ±1/√n, B₀ = 0."""
    m, n = W0.shape
    A = _like(W0, 2 * torch.rand(rank, n, generator=generator, dtype=torch.float64) - 1) / math.sqrt(n)
    return Factors(A, W0.new_zeros(m, rank))


def orthonormal(W0: Tensor, rank: int, scale: float, generator: torch.Generator, size: float = 0.1) -> Factors:
    """B₀ = √(size/s)·Q_m and A₀ = √(size/s)·Q_nᵀ, Q_m and Q_n random with orthonormal columns.

    ``size`` is the value of all singular values of s·B₀A₀.
    """
    m, n = W0.shape
    Q_m = linalg.qr(torch.randn(m, rank, generator=generator, dtype=torch.float64)).Q
    Q_n = linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64)).Q
    root = math.sqrt(size / scale)
    return Factors(_like(W0, root * Q_n.mT), _like(W0, root * Q_m))


def pissa(W0: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
    """B₀ = U_r√(Σ_r/s) and A₀ = √(Σ_r/s)V_rᵀ from W0 = UΣVᵀ."""
    U, sigma, Vh = linalg.svd(W0.detach().double(), full_matrices=False)
    root = torch.sqrt(sigma[:rank] / scale)
    return Factors(_like(W0, root[:, None] * Vh[:rank]), _like(W0, U[:, :rank] * root))


def named(start: str, size: float) -> Start:
    """The start of this name; ``size`` is for ``orthonormal`` alone."""
    return {"zero": zero, "orthonormal": partial(orthonormal, size=size), "pissa": pissa}[start]


def _like(W0: Tensor, x: Tensor) -> Tensor:
    return x.to(device=W0.device, dtype=W0.dtype)

"""Initial factors (A₀, B₀) for a pretrained weight W0 (m, n), rank r and scale s.

zero         A₀ uniform (Kaiming), B₀ = 0: the LoRA start (Hu et al., 2022, arXiv 2106.09685). The balanced flow is
             singular there, because B₀ᵀB₀ = 0.
orthonormal  s·B₀A₀ has r singular values equal to ``size``, with random singular vectors: balanced and small.
pissa        s·B₀A₀ is the best rank-r approximation of W0 (Meng et al., 2024, arXiv 2404.02948): balanced and large.
olora        B₀ is orthonormal and B₀A₀ the first r columns of Q times the first r rows of R, W0 = QR (Büyükakyüz, 2024,
             arXiv 2406.01775). Not balanced.
nora         B₀ is W0 times a random matrix, A₀ = 0: the Nyström start, from which ScaledGD converges quadratically in
             matrix factorisation (Li, Zhang, Mokhtari and He, 2025, arXiv 2410.18965). Only the abstract of the paper
             was at hand; the form is second-hand, and the variance 1/n of the random matrix our choice.

Two starts are made from G0, the gradient of the loss by W at the start, in the place of W0:

lora_ga      A₀ and B₀ have singular vectors of G0, so that the first step is near that of full fine-tuning (Wang, Yu
             and Li, 2024, arXiv 2407.05000); as PEFT has it by default, direction ArB2r, scale stable. Not balanced.
lora_one     s·B₀A₀ has the direction of the best rank-r step of gradient descent (Zhang, Liu and Chen, 2025, arXiv
             2502.01235), balanced. This product is not subtracted: the function changes at the start, as in the paper.

Balanced means B₀ᵀB₀ = A₀A₀ᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, linalg

from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.lowrank.layer import Factors

Start = Callable[[Tensor, int, float, torch.Generator], Factors]
"""``start(W0, rank, scale, generator)`` -> (A₀, B₀), A₀ (r, n) and B₀ (m, r), in the dtype and on the device of W0.

``lora_ga`` and ``lora_one`` are given G0 for W0.
"""
GAMMA_GA, GAMMA_ONE = 16.0, 128.0
"""γ of LoRA-GA and of LoRA-One."""


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


def olora(W0: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
    """B₀ = Q_r and A₀ = R_r, the first r columns of Q and rows of R, from W0 = QR."""
    Q, R = linalg.qr(W0.detach().double())
    return Factors(_like(W0, R[:rank]), _like(W0, Q[:, :rank]))


def nora(W0: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
    """B₀ = W0 Ω and A₀ = 0, Ω (n, r) Gaussian with variance 1/n."""
    n = W0.shape[1]
    sketch = torch.randn(n, rank, generator=generator, dtype=torch.float64) / math.sqrt(n)
    return Factors(W0.new_zeros(rank, n), _like(W0, W0.detach().double() @ _on(W0, sketch)))


def lora_ga(G0: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
    """A₀ = V₁ … Vᵣ as rows and B₀ = (m^¼/√γ) · σᵣ₊₁Uᵣ₊₁ … σ₂ᵣU₂ᵣ as columns, from G0 = UΣVᵀ, γ = 16.

    Raises:
        InputError: if G0 has less than 2r singular values.
    """
    U, sigma, Vh = linalg.svd(G0.detach().double(), full_matrices=False)
    if 2 * rank > len(sigma):
        allowed = f"at most {len(sigma) // 2} with the start lora_ga, which takes 2r singular vectors of each layer"
        raise RefusedValueError("rank", rank, allowed)
    size = G0.shape[0] ** 0.25 / math.sqrt(GAMMA_GA)
    following = slice(rank, 2 * rank)
    return Factors(_like(G0, Vh[:rank]), _like(G0, size * U[:, following] * sigma[following]))


def lora_one(G0: Tensor, rank: int, scale: float, generator: torch.Generator) -> Factors:
    """B₀ = U_r√(Σ_r/σ₁)/√γ and A₀ = √(Σ_r/σ₁)V_rᵀ/√γ from -G0 = UΣVᵀ, γ = 128.

    Raises:
        InputError: if G0 is zero.
    """
    U, sigma, Vh = linalg.svd(-G0.detach().double(), full_matrices=False)
    if not float(sigma[0]) > 0:
        raise InputError("start is lora_one, but the gradient at the start is zero: choose another start.")
    root = torch.sqrt(sigma[:rank] / sigma[0] / GAMMA_ONE)
    return Factors(_like(G0, root[:, None] * Vh[:rank]), _like(G0, U[:, :rank] * root))


def named(start: str, size: float) -> Start:
    """The start of this name; ``size`` is for ``orthonormal`` alone."""
    others = (zero, pissa, olora, nora, lora_ga, lora_one)
    return {**{f.__name__: f for f in others}, "orthonormal": partial(orthonormal, size=size)}[start]


def _on(W0: Tensor, x: Tensor) -> Tensor:
    return x.to(W0.device)


def _like(W0: Tensor, x: Tensor) -> Tensor:
    return x.to(device=W0.device, dtype=W0.dtype)

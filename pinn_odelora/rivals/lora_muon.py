"""LoRA-Muon: steepest descent of the product in the spectral norm, as Muon does for a whole weight.

Cesista, Simal, Crowson and Biderman, "LoRA-Muon: Spectral Steepest Descent on the Low-Rank Manifold", 2026, arXiv
2606.12921. We know the abstract of the paper, and its update from a third party's collection of formulas alone. In the
paper W = W_pre + A Bᵀ; its A is our √s B and its B our √s Aᵀ, so that s = 1 is the formula there:

    m_B ← β m_B + (1 − β) g_B ,    m_A ← β m_A + (1 − β) g_A                 β = 0.95
    R_A = (AAᵀ)^(−1/2) ,    R_B = (BᵀB)^(−1/2)
    ΔB = −η/(2s) · msign(m_B R_A) R_A ,    ΔA = −η/(2s) · R_B msign(R_B m_A)
    B ← c B + ΔB / c ,    A ← c A + ΔA / c ,    c = √(1 − λη)                λ = 0

with msign(U Σ Vᵀ) = U Vᵀ. The singular values of s ΔB A and of s B ΔA are η/2 or 0, so that the product moves by at
most η in the spectral norm, to first order; and the move does not depend on how the product is factored. The decay is
that of the product, by 1 − λη. The paper finds msign and R by Newton–Schulz iterations; here both are exact in the
precision of the parameters. Directions in which B or the momentum is zero up to rounding have no sign and do not move.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, linalg

from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import NOT_NEGATIVE, POSITIVE, PairOptimizer, State
from pinn_odelora.rules import below_one


class LoRAMuon(PairOptimizer):
    """LoRA-Muon on pairs, Adam on other tensors.

    Args:
        groups: one pair A (r, n), B (m, r) or one tensor each, as ``factor_pairs`` gives.
        lr: η, below 1/λ.
        momentum: β.
        decay: λ, of the product.

    Raises:
        InputError: for a group that is neither a pair nor one tensor, or, by ``step``, a learning rate of at least 1/λ.
    """

    def __init__(self, groups: Iterable[Group], lr: float = 1e-2, momentum: float = 0.95, decay: float = 0.0) -> None:
        super().__init__(groups, lr, momentum=momentum, decay=decay)

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        size = group["lr"] / (2 * group["scale"])
        if (left := 1 - group["decay"] * group["lr"]) <= 0:
            raise InputError(f"the learning rate is {group['lr']:g}, but it must be below 1/decay.")
        kept = math.sqrt(left)
        R_A, R_B = inverse_root(y.A @ y.A.mT), inverse_root(y.B.mT @ y.B)
        m = {key: self._momentum(key, x, state, group["momentum"]) for key, x in g._asdict().items()}
        A = kept * y.A - size / kept * R_B @ msign(R_B @ m["A"])
        B = kept * y.B - size / kept * msign(m["B"] @ R_A) @ R_A
        return Factors(A, B)

    def _momentum(self, key: str, g: Tensor, state: State, beta: float) -> Tensor:
        state[f"m_{key}"] = beta * state.get(f"m_{key}", torch.zeros_like(g)) + (1 - beta) * g
        return state[f"m_{key}"]


def msign(x: Tensor) -> Tensor:
    """U Vᵀ for x = U Σ Vᵀ, (m, r); directions whose singular value is rounding are left out."""
    U, sigma, Vh = linalg.svd(x, full_matrices=False)
    return (U * (sigma > max(x.shape) * torch.finfo(x.dtype).eps * sigma[:1])) @ Vh


def inverse_root(S: Tensor) -> Tensor:
    """S^(−1/2) for a Gram matrix S (r, r); zero where its eigenvalues are rounding."""
    values, U = linalg.eigh(S)
    real = values > len(S) * torch.finfo(S.dtype).eps * values[-1:]
    return (U * torch.where(real, values, torch.inf).rsqrt()) @ U.mT


def lora_muon(lr: float = 1e-2, momentum: float = 0.95, decay: float = 0.0) -> Method:
    """LoRA-Muon: steepest descent of the product in the spectral norm (Cesista et al., 2026, arXiv 2606.12921).

    Args:
        lr: learning rate, the largest change of a weight in the spectral norm by a step.
        momentum: decay rate of the momentum, in [0, 1).
        decay: λ, the product shrinks by 1 − λη in a step.
    """
    lr, momentum = POSITIVE.check("lr", lr), below_one.check("momentum", momentum)
    decay = NOT_NEGATIVE.check("decay", decay)
    if decay * lr >= 1:
        raise RefusedValueError("decay", decay, f"below 1/lr, which is {1 / lr:g}")
    settings = {"lr": lr, "momentum": momentum, "decay": decay}
    return Method("lora_muon", "factors", lambda groups: LoRAMuon(groups, **settings), settings=settings)

"""LoFT: Adam on the whole weight, with moments and step projected on what the factors can reach.

Tastan, Laskaridis, Takáč, Nandakumar and Horváth, "LoFT: Low-Rank Adaptation That Behaves Like Full Fine-Tuning", ICLR
2026, arXiv 2505.21289; written after the authors' code. At every step both factors renew their moments, and one of them
moves, B in the first step and then in turn. For B, with D = (AAᵀ + δI)⁻¹, and for Aᵀ with A and B exchanged,

    ĝ = g_B D / s ,    R = A_old Aᵀ D                         G projected, ĝ A ≈ G P_A; from the former rows to these
    m ← β₁ m R + (1 − β₁) ĝ                                   (m, r)
    v_i ← β₂ Rᵀ v_i R + (1 − β₂) ĝ_iᵀ ĝ_i                     (r, r) for each row i: Adam's v_ij is a_jᵀ v_i a_j
    U_ij = (m A)_ij / (1 − β₁ᵗ) / (√(a_jᵀ v_i a_j / (1 − β₂ᵗ)) + ε)
    B ← B − η U Aᵀ D / s                                      if it is the turn of B

with ĝ_i a row and a_j a column of A; A_old is the A of the step before. With full rank every step is that of Adam on W.
Defaults of the authors' code: β = (0.9, 0.999), ε = 1e-4, δ = 1e-8 for B and 1e-6 for A.

Four differences. The code has R and Rᵀ exchanged in the transport of v, with which full rank would not give Adam. It
projects a gradient of B by an A that has moved since, where A is the one to move; here moments belong to the pair where
the gradient was taken. Its weight decay, not multiplied by η, and its clipping of the gradient are left out. The paper
has s = 1; another scale stands, but for δ, as if the factors were √s A and √s B.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import POSITIVE, PairOptimizer, State, damped
from pinn_odelora.rules import fractions


class LoFT(PairOptimizer):
    """LoFT on pairs, Adam on other tensors. It keeps (m + n) r² numbers for a pair.

    Args:
        groups: one pair A (r, n), B (m, r) or one tensor each, as ``factor_pairs`` gives.
        lr: η.
        betas: β₁, β₂, of the pairs.
        eps: ε, of the pairs.
        dampings: δ in the step of A and in that of B.

    Raises:
        InputError: for a group that is neither a pair nor one tensor.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-4,
        dampings: Sequence[float] = (1e-6, 1e-8),
    ) -> None:
        super().__init__(groups, lr, pair_betas=tuple(betas), pair_eps=eps, dampings=tuple(dampings))

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        damping_A, damping_B = group["dampings"]
        moved_B = _move(y.A.mT, g.B, state, group, damping_B, "B")
        moved_A = _move(y.B, g.A.mT, state, group, damping_A, "A")
        if state["step"] % 2:
            return Factors(y.A, y.B - moved_B)
        return Factors(y.A - moved_A.mT, y.B)


def _move(other: Tensor, g: Tensor, state: State, group: Group, damping: float, key: str) -> Tensor:
    """What a factor (m, r) would lose, from the other one, (n, r), and its own gradient; its moments are renewed."""
    (b1, b2), t, scale = group["pair_betas"], state["step"], group["scale"]
    D = linalg.inv(damped(other.mT @ other, damping))
    projected = g @ D / scale
    m, v = _carried(other, D, state, key, projected)
    m = b1 * m + (1 - b1) * projected
    v = b2 * v + (1 - b2) * projected[:, :, None] * projected[:, None, :]
    state[f"m_{key}"], state[f"v_{key}"], state[f"other_{key}"] = m, v, other.detach().clone()
    second = ((v @ other.mT) * other.mT).sum(dim=1).clamp(min=0)
    U = m @ other.mT / (1 - b1**t) / ((second / (1 - b2**t)).sqrt() + group["pair_eps"])
    return group["lr"] / scale * U @ other @ D


def _carried(other: Tensor, D: Tensor, state: State, key: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """The moments m (m, r) and v (m, r, r) in the basis of the present factor; zero in the first step."""
    if f"m_{key}" not in state:
        return torch.zeros_like(like), like.new_zeros(*like.shape, like.shape[1])
    R = state[f"other_{key}"].mT @ other @ D
    return state[f"m_{key}"] @ R, R.mT @ state[f"v_{key}"] @ R


def loft(lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999), eps: float = 1e-4) -> Method:
    """LoFT: Adam on the whole weight, projected on the factors in turn (Tastan et al., 2026, arXiv 2505.21289).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        eps: added to the roots of the second moments.
    """
    settings = {
        "lr": POSITIVE.check("lr", lr),
        "betas": [*fractions(2).check("betas", [*betas])],
        "eps": POSITIVE.check("eps", eps),
    }
    return Method("loft", "factors", lambda groups: LoFT(groups, **settings), settings=settings)

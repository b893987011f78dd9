"""RefLoRA (Zhang, Li and Giannakis, 2025, arXiv 2505.18877): an Adam step at the refactored, balanced pair.

The pairs (Pᵀ A, B P⁻ᵀ) have one product. The one with PPᵀ = S, where S is the geometric mean of S_A⁻¹ and S_B,

    S S_A S = S_B ,    S_A = AAᵀ ,    S_B = BᵀB ,

minimises an upper bound of the loss, and is balanced. A gradient step there is, in terms of the former pair, one with

    g_A ← S⁻¹ g_A ,    g_B ← g_B S

which Adam is given. With S_A = V_A Σ_A² V_Aᵀ and Σ_A V_Aᵀ S_B V_A Σ_A = V_M Σ_M² V_Mᵀ,

    S   = V_A (Σ_A + ε_m)⁻¹ V_M Σ_M V_Mᵀ (Σ_A + ε_m)⁻¹ V_Aᵀ
    S⁻¹ = V_A Σ_A V_M (Σ_M + ε_m)⁻¹ V_Mᵀ Σ_A V_Aᵀ

ε_m being the relative precision of the dtype, as in the authors' code. That takes plain Adam steps first where B = 0,
100 of them, since S is singular there, and none from factors of full rank; that is the rule here unless ``warmup`` is
given. A = 0 is treated like B = 0, since S and S⁻¹ would both be computed as zero. β = (0.9, 0.999), ε = 1e-8, no
weight decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import PairOptimizer, State, adam_settings, adamw
from pinn_odelora.rules import null, whole

WARMUP = 100
"""Plain steps from a factor that is zero."""


class RefLoRA(PairOptimizer):
    """Adam on refactored gradients of pairs, Adam on other tensors.

    Args:
        groups: as ``factor_pairs`` or ``trainable_groups`` gives them.
        lr: η.
        betas: β₁, β₂.
        eps: ε.
        warmup: steps by Adam alone before; None for 100 of a pair that starts at B = 0 or A = 0, and none of others.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup: int | None = None,
    ) -> None:
        super().__init__(groups, lr, betas=betas, eps=eps, warmup=warmup)

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        if "warmup" not in state:
            given = group["warmup"]
            state["warmup"] = (0 if bool(y.A.any() and y.B.any()) else WARMUP) if given is None else given
        if state["step"] > state["warmup"]:
            S, inverse = refactoring(y)
            g = Factors(inverse @ g.A, g.B @ S)
        return Factors(adamw(y.A, g.A, state, group, "_A"), adamw(y.B, g.B, state, group, "_B"))


def refactoring(y: Factors) -> tuple[Tensor, Tensor]:
    """S and S⁻¹, (r, r).

    Args:
        y: A (r, n), B (m, r).
    """
    eps = torch.finfo(y.A.dtype).eps
    a, V_A = _roots(y.A @ y.A.mT)
    m, V_M = _roots((y.B @ (V_A * a)).mT @ (y.B @ (V_A * a)))
    left, right = V_A / (a + eps) @ V_M, V_A * a @ V_M
    return left * m @ left.mT, right / (m + eps) @ right.mT


def _roots(S: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of the eigenvalues of a positive matrix, those that rounding made negative being zero; vectors."""
    values, vectors = linalg.eigh(S)
    return values.clamp(min=0).sqrt(), vectors


def reflora(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999), warmup: int | None = None) -> Method:
    """Adam at the balanced pair of the same product (RefLoRA; Zhang, Li and Giannakis, 2025, arXiv 2505.18877).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        warmup: steps by Adam alone before; None for 100 of a pair that starts at B = 0 or A = 0, and none of others.
    """
    lr, betas = adam_settings(lr, betas)
    warmup = (whole(0) | null).check("warmup", warmup)
    make = lambda groups: RefLoRA(groups, lr, betas, warmup=warmup)
    return Method("reflora", "factors", make, settings={"lr": lr, "betas": [*betas], "warmup": warmup})

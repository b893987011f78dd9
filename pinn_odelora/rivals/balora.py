"""BaLoRA (Castin, Nadjahi, Ablin and Peyré, 2026, arXiv 2605.31484): after each step a balanced pair of its product.

A step of AdamW takes A, B to A′, B′, each entry by itself. With the singular value decomposition B′ A′ = U Σ V,

    A = √Σ V ,    B = U √Σ ,    BᵀB = AAᵀ = Σ ,

follow, with the product of A′, B′; the moments of Adam are not transformed. The signs of singular vectors, which are
left open, are those with which the rows of A and the columns of B are nearest to the former ones: ⟨A_k, A′_k⟩ +
⟨B_k, B′_k⟩ ≥ 0 for the k-th. With ``gauge="nearest"``, a variant of the authors' code, the pair is turned so that it is
the balanced one nearest to A′, B′ (``manifolds.factors``). β = (0.9, 0.999), ε = 1e-8; λ is 0.01 in the authors' code,
that of torch, and 0 here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import low_rank, rebalance
from pinn_odelora.optim.groups import Group, check_rank
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import NOT_NEGATIVE, PairOptimizer, State, adam_settings, adamw
from pinn_odelora.rules import one_of

GAUGE = one_of("singular", "nearest")


class BaLoRA(PairOptimizer):
    """AdamW on pairs, balanced after each step, AdamW on other tensors.

    Args:
        groups: as ``factor_pairs`` or ``trainable_groups`` gives them.
        lr: η.
        betas: β₁, β₂.
        eps: ε.
        weight_decay: λ.
        gauge: ``singular`` or ``nearest``, which of the balanced pairs.

    Raises:
        InputError: for a group that is neither a pair nor one tensor, or a rank that a weight cannot have.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gauge: Literal["singular", "nearest"] = "singular",
    ) -> None:
        super().__init__(groups, lr, betas=betas, eps=eps, weight_decay=weight_decay, gauge=gauge)

    def check_pair(self, group: Group) -> None:
        check_rank(group, "BaLoRA")

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        moved = Factors(adamw(y.A, g.A, state, group, "_A"), adamw(y.B, g.B, state, group, "_B"))
        return singular(moved) if group["gauge"] == "singular" else rebalance(moved, moved)


def singular(y: Factors) -> Factors:
    """The balanced pair √Σ V, U √Σ of the same product, with signs as near to the given one as can be.

    Args:
        y: A (r, n), B (m, r).
    """
    A, B = (x.to(y.A) for x in low_rank(y, 1.0).factors(1.0))
    inner = (A * y.A).sum(1) + (B * y.B).sum(0)
    signs = torch.where(inner < 0, -1.0, 1.0).to(y.A)
    return Factors(signs[:, None] * A, B * signs)


def balora(
    lr: float = 3e-3,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    gauge: Literal["singular", "nearest"] = "singular",
) -> Method:
    """AdamW on the factors, balanced after each step (Castin, Nadjahi, Ablin and Peyré, 2026, arXiv 2605.31484).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        weight_decay: λ, of the factors and of all that is trained beside them.
        gauge: which of the balanced pairs: that of the singular vectors, or the one nearest to the former factors.
    """
    lr, betas = adam_settings(lr, betas)
    own = {"weight_decay": NOT_NEGATIVE.check("weight_decay", weight_decay), "gauge": GAUGE.check("gauge", gauge)}
    make = lambda groups: BaLoRA(groups, lr, betas, **own)
    return Method("balora", "factors", make, settings={"lr": lr, "betas": [*betas], **own})

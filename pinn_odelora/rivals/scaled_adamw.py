"""Scaled AdamW, Riemannian preconditioned LoRA (Zhang and Pilanci, 2024, arXiv 2402.02347).

AdamW on gradients that are divided by the Gram matrix of the other factor, S_B = BᵀB and S_A = AAᵀ,

    A ← AdamW of A with the gradient (S_B + δI)⁻¹ g_A
    B ← AdamW of B with the gradient g_B (S_A + δI)⁻¹

each entry by itself, with moments of the scaled gradients: p ← (1 − ηλ) p − η m̂/(√v̂ + ε). Both Gram matrices are those
of the former factors, as in ``create_riemannian_optimizer`` of PEFT. In the authors' code A is moved first, and S_A is
that of the new A, because the former one is kept as a view; ``sequential=True`` does the same. δ is 1e-6 in the
authors' code, the default, and 1e-2 in PEFT. β = (0.9, 0.999), ε = 1e-8 and λ = 0. The scale s does not enter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import NOT_NEGATIVE, PairOptimizer, State, adam_settings, adamw, damped_inverse
from pinn_odelora.rules import boolean


class ScaledAdamW(PairOptimizer):
    """AdamW on scaled gradients of pairs, AdamW on other tensors.

    Args:
        groups: as ``factor_pairs`` or ``trainable_groups`` gives them.
        lr: η.
        betas: β₁, β₂.
        eps: ε.
        weight_decay: λ.
        damping: δ.
        sequential: whether the gradient of B is scaled by the new A.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        damping: float = 1e-6,
        sequential: bool = False,
    ) -> None:
        own = {"damping": damping, "sequential": sequential}
        super().__init__(groups, lr, betas=betas, eps=eps, weight_decay=weight_decay, **own)

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        A = adamw(y.A, damped_inverse(y.B.mT @ y.B, group["damping"]) @ g.A, state, group, "_A")
        seen = A if group["sequential"] else y.A
        B = adamw(y.B, g.B @ damped_inverse(seen @ seen.mT, group["damping"]), state, group, "_B")
        return Factors(A, B)


def scaled_adamw(
    lr: float = 3e-3,
    betas: Sequence[float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    damping: float = 1e-6,
    sequential: bool = False,
) -> Method:
    """AdamW on gradients divided by the other Gram matrix (Zhang and Pilanci, 2024, arXiv 2402.02347).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        weight_decay: λ, of the factors and of all that is trained beside them.
        damping: δ, added to the diagonal of the Gram matrices; 1e-6 in the authors' code, 1e-2 in PEFT.
        sequential: whether the gradient of B is scaled by the new A, as in the authors' code, or by the former one.
    """
    lr, betas = adam_settings(lr, betas)
    decay, damping = NOT_NEGATIVE.check("weight_decay", weight_decay), NOT_NEGATIVE.check("damping", damping)
    own = {"weight_decay": decay, "damping": damping, "sequential": boolean.check("sequential", sequential)}
    make = lambda groups: ScaledAdamW(groups, lr, betas, **own)
    return Method("scaled_adamw", "factors", make, settings={"lr": lr, "betas": [*betas], **own})

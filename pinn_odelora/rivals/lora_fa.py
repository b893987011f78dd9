"""LoRA-FA (Zhang et al., 2023, arXiv 2308.03303): A stays what it was, B alone is trained.

The product then moves in the row space of A. With G = ∂L/∂W, the gradient of B for which it moves by −η G P_A,
P_A = Aᵀ S_A⁻¹ A, takes the place of g_B, and AdamW follows,

    ĝ = s⁻² g_B (S_A + δI)⁻¹ ,    m ← β₁ m + (1 − β₁) ĝ ,    v ← β₂ v + (1 − β₂) ĝ²
    B ← B − η √(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε)
    B ← (1 − ηλ) B

with S_A = AAᵀ, δ = 1e-8, β = (0.9, 0.999), ε = 1e-6, λ = 0. It is ``create_lorafa_optimizer`` of PEFT, whose AdamW has
ε outside of the bias correction; tensors beside the factors go by the same AdamW. It starts at B = 0 with a random A.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import (
    NOT_NEGATIVE,
    PairOptimizer,
    State,
    adam_direction,
    adam_settings,
    damped_inverse,
)


class LoRAFA(PairOptimizer):
    """B of every pair by AdamW on its projected gradient; A is not moved.

    Args:
        groups: as ``factor_pairs`` or ``trainable_groups`` gives them.
        lr: η.
        betas: β₁, β₂.
        eps: ε.
        weight_decay: λ.
        damping: δ.

    Raises:
        InputError: for a group that is neither a pair nor one tensor, or a pair at A = 0, which would stay there.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        damping: float = 1e-8,
    ) -> None:
        super().__init__(groups, lr, betas=betas, eps=eps, weight_decay=weight_decay, damping=damping)

    def check_pair(self, group: Group) -> None:
        if not bool(group["params"][0].any()):
            raise InputError(
                f"the factor A of {group['name']} is zero, and LoRA-FA does not move it: choose another start."
            )

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        projected = g.B @ damped_inverse(y.A @ y.A.mT, group["damping"]) / group["scale"] ** 2
        return Factors(y.A, self.single(y.B, projected, state, group))

    def single(self, x: Tensor, g: Tensor, state: State, group: Group) -> Tensor:
        eps = group["eps"] / (1 - group["betas"][1] ** state["step"]) ** 0.5
        moved = x - group["lr"] * adam_direction(g, state, group["betas"], eps)
        return (1 - group["lr"] * group["weight_decay"]) * moved


def lora_fa(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999), weight_decay: float = 0.0) -> Method:
    """AdamW on B with A frozen (LoRA-FA; Zhang et al., 2023, arXiv 2308.03303).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        weight_decay: λ, of B and of all that is trained beside the factors.
    """
    lr, betas = adam_settings(lr, betas)
    decay = NOT_NEGATIVE.check("weight_decay", weight_decay)
    make = lambda groups: LoRAFA(groups, lr, betas, weight_decay=decay)
    return Method("lora_fa", "factors", make, settings={"lr": lr, "betas": [*betas], "weight_decay": decay})

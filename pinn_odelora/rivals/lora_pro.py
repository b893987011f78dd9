"""LoRA-Pro (Wang et al., 2025, arXiv 2407.18242): the step whose product is nearest to that of full fine-tuning.

With S_A = AAᵀ, S_B = BᵀB and P_B = B (S_B + δI)⁻¹ Bᵀ, the direction is

    g_A′ = s⁻² (S_B + δI)⁻¹ g_A + X A
    g_B′ = s⁻² (I − P_B) g_B (S_A + δI)⁻¹ − B X
    S_B X + X S_A = −s⁻² (S_B + δI)⁻¹ g_A Aᵀ

where X minimises ‖g_A′ − g_A‖² + ‖g_B′ − g_B‖² among the directions with the same step of the product; δ = 1e-8.
The velocity of ``flows.balanced`` with damping δ is minus this direction.

``lora_pro``        SGD: A ← A − η g_A′, B ← B − η g_B′, the Euler step without retraction. Other explicit schemes
                    discretise the same flow.
``lora_pro_adamw``  AdamW on the gradient of full fine-tuning that the direction stands for: with X = 0 above,

                        g̃ = s B g_A⁰ + s g_B⁰ A ,    ĝ = m̂/(√v̂ + ε)    with moments m, v (m × n) of g̃ ,

                    and then the step −η of the direction at g_A = s Bᵀ ĝ, g_B = s ĝ Aᵀ. β = (0.9, 0.999), ε = 1e-8,
                    weight decay λ = 0: y ← (1 − ηλ) y first.

At B = 0 the formulas give g_A′ = g_A = 0, g_B′ = s⁻² g_B (S_A + δI)⁻¹, what the authors' code has for a first step. Its
bias correction of step t is 1 − β^(t+1), since it counts a step before it takes it; here it is 1 − βᵗ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from pinn_odelora.flows import Damped, balanced_flow
from pinn_odelora.integrators import Integrator
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method, probe
from pinn_odelora.optim.odelora import ODELoRA
from pinn_odelora.rivals.base import (
    NOT_NEGATIVE,
    POSITIVE,
    PairOptimizer,
    State,
    adam_direction,
    adam_settings,
    damped_inverse,
)


class LoRAProAdamW(PairOptimizer):
    """LoRA-Pro with AdamW on pairs, AdamW on other tensors; the memory of a pair is two m × n matrices.

    Args:
        groups: as ``factor_pairs`` or ``trainable_groups`` gives them.
        lr: η.
        betas: β₁, β₂.
        eps: ε.
        weight_decay: λ.
        damping: δ.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        damping: float = 1e-8,
    ) -> None:
        super().__init__(groups, lr, betas=betas, eps=eps, weight_decay=weight_decay, damping=damping)

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        s = group["scale"]
        full = adam_direction(full_gradient(y, g, s, group["damping"]), state, group["betas"], group["eps"])
        step = balanced_flow(y, Factors(s * y.B.mT @ full, s * full @ y.A.mT), s, group["damping"])
        kept = 1 - group["lr"] * group["weight_decay"]
        return Factors(kept * y.A + group["lr"] * step.A, kept * y.B + group["lr"] * step.B)


def full_gradient(y: Factors, g: Factors, scale: float, damping: float) -> Tensor:
    """g̃ (m, n); without damping P_T(∂L/∂W).

    Args:
        y: A (r, n), B (m, r).
        g: g_A, g_B, same shapes.
        scale: s.
        damping: δ.
    """
    inverse_A, inverse_B = (damped_inverse(S, damping) for S in (y.A @ y.A.mT, y.B.mT @ y.B))
    g_A, g_B = inverse_B @ g.A / scale**2, g.B @ inverse_A / scale**2
    return scale * (y.B @ g_A + (g_B - y.B @ (inverse_B @ (y.B.mT @ g_B))) @ y.A)


def lora_pro(integrator: Integrator, damping: float = 1e-8) -> Method:
    """The step nearest to that of full fine-tuning (LoRA-Pro with SGD; Wang et al., 2025, arXiv 2407.18242).

    Args:
        integrator: the time discretisation, an explicit one; Euler's is LoRA-Pro with SGD.
        damping: δ, added to the diagonal of the Gram matrices.

    Raises:
        InputError: for a scheme that linearises: a damped flow has no implicit form here.
    """
    damping = POSITIVE.check("damping", damping)
    flow = Damped(balanced_flow, damping)
    make = lambda groups: ODELoRA(groups, integrator=integrator, flow=flow, retract=False)
    probe(make)
    return Method("lora_pro", "factors", make, integrator, full_rank=True, settings={"damping": damping})


def lora_pro_adamw(lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999), weight_decay: float = 0.0) -> Method:
    """AdamW on the gradient that LoRA-Pro's step stands for (Wang et al., 2025, arXiv 2407.18242).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        weight_decay: λ, of the factors and of all that is trained beside them.
    """
    lr, betas = adam_settings(lr, betas)
    decay = NOT_NEGATIVE.check("weight_decay", weight_decay)
    make = lambda groups: LoRAProAdamW(groups, lr, betas, weight_decay=decay)
    return Method("lora_pro_adamw", "factors", make, settings={"lr": lr, "betas": [*betas], "weight_decay": decay})

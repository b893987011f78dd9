"""AltLoRA and AltLoRA+: alternating projections of the gradient, with a momentum that follows the other factor.

Yu, Wang, Chen and Xue, "AltLoRA: Towards Better Gradient Approximation in Low-Rank Adaptation with Alternating
Projections", 2025, arXiv 2505.12455; written after the authors' code. A step of AltLoRA is

    D_B = (BᵀB + δI)⁻¹ ,    m_A ← β₁ (D_B Bᵀ B_old) m_A + (1 − β₁) D_B g_A ,    A ← A − η m_A / (1 − β₁ᵗ)

and then, with the new A and the gradient g_B of before,

    D_A = (AAᵀ + δI)⁻¹ ,    m_B ← β₁ m_B (A_old Aᵀ D_A) + (1 − β₁) g_B D_A ,    B ← B − η m_B / (1 − β₁ᵗ) .

B_old and A_old are the factors with which m_A and m_B were last renewed, 0 in the first step. AltLoRA+ divides entry by
entry, ĝ being D_B g_A or g_B D_A and T(m) the moment after the same change of basis,

    v ← β₂ v + (1 − β₂) ĝ² ,    step η / (1 − β₁ᵗ) · (β₁ T(m) + (1 − β₁) ĝ) / (√v + ε) ,    m ← β₁ m + (1 − β₁) ĝ .

As in the code its m is kept without the change of basis, and v is not corrected for its bias. Defaults of the code:
β = (0.999, 0.98), in that order; δ = 1e-3; ε = 1e-6; η = 1e-3. The weight decay of 1e-5 is left out, since it would
pull the factors, and not the change of W, to zero. The scale s of W = W0 + s·B A only enters through the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import POSITIVE, PairOptimizer, State, damped
from pinn_odelora.rules import below_one, fractions


class AltLoRA(PairOptimizer):
    """AltLoRA on pairs, Adam on other tensors.

    Args:
        groups: one pair A (r, n), B (m, r) or one tensor each, as ``factor_pairs`` gives.
        lr: η.
        beta: β₁, of the pairs.
        damping: δ, added to the Gram matrices.

    Raises:
        InputError: for a group that is neither a pair nor one tensor.
    """

    def __init__(self, groups: Iterable[Group], lr: float = 1e-3, beta: float = 0.999, damping: float = 1e-3) -> None:
        super().__init__(groups, lr, beta=beta, damping=damping)

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        A = y.A - self._move(y.B, g.A, state, group, "A")
        B = y.B - self._move(A.mT, g.B.mT, state, group, "B").mT
        return Factors(A, B)

    def _move(self, other: Tensor, g: Tensor, state: State, group: Group, key: str) -> Tensor:
        """What A (r, n) loses, from B (m, r) and g_A; or Bᵀ, from Aᵀ and g_Bᵀ."""
        D = linalg.inv(damped(other.mT @ other, group["damping"]))
        transport = D @ other.mT @ state.get(f"other_{key}", torch.zeros_like(other))
        state[f"other_{key}"] = other.detach().clone()
        eta = group["lr"] / (1 - group["beta"] ** state["step"])
        return eta * self._direction(transport, D @ g, state, group, key)

    def _direction(self, transport: Tensor, g: Tensor, state: State, group: Group, key: str) -> Tensor:
        """The moment, from the matrix that takes it to the present basis and the preconditioned gradient."""
        m = state.get(f"m_{key}", torch.zeros_like(g))
        state[f"m_{key}"] = group["beta"] * transport @ m + (1 - group["beta"]) * g
        return state[f"m_{key}"]


class AltLoRAPlus(AltLoRA):
    """AltLoRA+ on pairs, Adam on other tensors.

    Args:
        groups: one pair A (r, n), B (m, r) or one tensor each, as ``factor_pairs`` gives.
        lr: η.
        betas: β₁, β₂, of the pairs.
        damping: δ, added to the Gram matrices.
        eps: ε, of the pairs.

    Raises:
        InputError: for a group that is neither a pair nor one tensor.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.999, 0.98),
        damping: float = 1e-3,
        eps: float = 1e-6,
    ) -> None:
        PairOptimizer.__init__(self, groups, lr, beta=betas[0], beta2=betas[1], damping=damping, pair_eps=eps)

    def _direction(self, transport: Tensor, g: Tensor, state: State, group: Group, key: str) -> Tensor:
        b1, b2 = group["beta"], group["beta2"]
        m, v = (state.get(f"{moment}_{key}", torch.zeros_like(g)) for moment in "mv")
        state[f"v_{key}"] = b2 * v + (1 - b2) * g.square()
        state[f"m_{key}"] = b1 * m + (1 - b1) * g
        return (b1 * transport @ m + (1 - b1) * g) / (state[f"v_{key}"].sqrt() + group["pair_eps"])


def altlora(lr: float = 1e-3, beta: float = 0.999, damping: float = 1e-3) -> Method:
    """AltLoRA: alternating projections of the gradient, with momentum (Yu et al., 2025, arXiv 2505.12455).

    Args:
        lr: learning rate.
        beta: decay rate of the momentum, in [0, 1).
        damping: δ, added to the Gram matrices.
    """
    settings = {
        "lr": POSITIVE.check("lr", lr),
        "beta": below_one.check("beta", beta),
        "damping": POSITIVE.check("damping", damping),
    }
    return Method("altlora", "factors", lambda groups: AltLoRA(groups, **settings), settings=settings)


def altlora_plus(
    lr: float = 1e-3, betas: Sequence[float] = (0.999, 0.98), damping: float = 1e-3, eps: float = 1e-6
) -> Method:
    """AltLoRA+: AltLoRA with second moments of the entries (Yu et al., 2025, arXiv 2505.12455).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        damping: δ, added to the Gram matrices.
        eps: added to the roots of the second moments.
    """
    settings = {
        "lr": POSITIVE.check("lr", lr),
        "betas": [*fractions(2).check("betas", [*betas])],
        "damping": POSITIVE.check("damping", damping),
        "eps": POSITIVE.check("eps", eps),
    }
    return Method("altlora_plus", "factors", lambda groups: AltLoRAPlus(groups, **settings), settings=settings)

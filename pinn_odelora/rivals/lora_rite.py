"""LoRA-RITE: Adam in orthonormal bases, whose step of the product does not depend on how the product is factored.

Yen, Si, Meng, Yu, Duvvuri, Dhillon, Hsieh and Kumar, "LoRA Done RITE: Robust Invariant Transformation Equilibration for
LoRA Optimization", ICLR 2025, arXiv 2410.20625. Written after the authors' code and after ``LoRARite`` of the package
pytorch_optimizer, with which it agrees to rounding.

With thin QR factorisations Aᵀ = Q_A R_A and B = Q_B R_B of the pair at the start of a step, for B

    ḡ = g_B R_A⁻¹                                      the unmagnified gradient, (m, r)
    P = Q_Aᵀ Q_A,old                                   from the former basis to this one; 0 in the first step
    V ← β̃₂ P V Pᵀ + (1 − β̃₂) ḡᵀ ḡ / m                 (r, r)
    D = ḡ V^(−1/2),    V^(−1/2) = U diag(1 / (√(max(λ, 0) + ρ + ε²) + ε)) Uᵀ    for V = U diag(λ) Uᵀ
    M ← β̃₁ M Pᵀ + (1 − β̃₁) D                          (m, r)
    B ← B − η M R_A⁻ᵀ

and for Aᵀ the same with g_Aᵀ, Q_B, R_B and n instead of m; both factors move from the pair as it was. The decay rates
β̃ = β (1 − βᵗ⁻¹) / (1 − βᵗ) contain the correction of the bias. R⁻¹ is a pseudo-inverse, so that B = 0 leaves A as it is
in the first step. ρ is the mass that escapes with a change of basis, off in the authors' code and here:

    ρ ← β̃₂ (ρ + min(max(0, maxᵢ(λᵢ(V) − λᵢ(P V Pᵀ))), max(0, tr V − tr P V Pᵀ))) .

Defaults of the authors' code: β = (0.9, 0.999), ε = 1e-6, and two precautions that are off here. ``skip``, 1 there,
drops a gradient ḡ whose root mean square exceeds it, so that where losses are large nothing would ever move; ``clip``,
also 1 there, bounds the norm of all ḡ together. The scale s of W = W0 + s·B A only enters through the gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group, check_rank, has_gradient, is_pair
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import POSITIVE, PairOptimizer, State
from pinn_odelora.rules import boolean, fractions, null


class LoRARITE(PairOptimizer):
    """LoRA-RITE on pairs, Adam on other tensors.

    Args:
        groups: one pair A (r, n), B (m, r) or one tensor each, as ``factor_pairs`` gives.
        lr: η.
        betas: β₁, β₂, of the pairs.
        eps: ε, of the pairs.
        clip: the largest norm of all unmagnified gradients together; None for no bound.
        skip: the largest root mean square of an unmagnified gradient that is followed; None for no bound.
        escape: whether V is raised by the mass ρ that escapes.

    Raises:
        InputError: for a group that is neither a pair nor one tensor, or a rank that a weight cannot have.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-6,
        clip: float | None = None,
        skip: float | None = None,
        escape: bool = False,
    ) -> None:
        rite = {"pair_betas": tuple(betas), "pair_eps": eps, "clip": clip, "skip": skip, "escape": escape}
        super().__init__(groups, lr, **rite)

    def check_pair(self, group: Group) -> None:
        check_rank(group, "LoRA-RITE")

    def prepare(self) -> None:
        """The part of the gradients that a bound on their norm leaves, for all pairs together."""
        groups = [group for group in self.param_groups if is_pair(group) and has_gradient(group)]
        for group in groups:
            group["share"] = 1.0
        if any(group["clip"] is not None for group in groups):
            norm = torch.stack([g.norm().cpu() for group in groups for g in _unmagnified_pair(group)]).norm()
            for group in groups:
                if group["clip"] is not None:
                    group["share"] = min(1.0, group["clip"] / float(norm)) if norm else 1.0

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        B = y.B - group["lr"] * _move(y.A.mT, g.B, state, group, "B")
        A = y.A - group["lr"] * _move(y.B, g.A.mT, state, group, "A").mT
        return Factors(A, B)


def _move(other: Tensor, g: Tensor, state: State, group: Group, key: str) -> Tensor:
    """M R⁻ᵀ of one factor, (m, r), from the other one, (n, r), and its own gradient, (m, r)."""
    (b1, b2), t = group["pair_betas"], state["step"]
    Q, R = linalg.qr(other)
    inverse = linalg.pinv(R)
    gradient = group["share"] * _unmagnified(g, inverse, group["skip"])
    P = Q.mT @ state.get(f"basis_{key}", torch.zeros_like(Q))
    before = state.get(f"V_{key}", torch.zeros_like(R))
    moved = _symmetric(P @ before @ P.mT)
    V = _mixed(_decay(b2, t), moved, _symmetric(gradient.mT @ gradient) / len(gradient))
    escaped = _escaped(before, moved, state, key, _decay(b2, t)) if group["escape"] else 0.0
    D = gradient @ _inverse_root(V, escaped, group["pair_eps"])
    M = _mixed(_decay(b1, t), state.get(f"M_{key}", torch.zeros_like(g)) @ P.mT, D)
    state[f"basis_{key}"], state[f"V_{key}"], state[f"M_{key}"] = Q, V, M
    return M @ inverse.mT


def _unmagnified_pair(group: Group) -> list[Tensor]:
    """ḡ of both factors of a pair."""
    A, B = group["params"]
    sides = ((A.mT, B.grad), (B, A.grad.mT))
    return [_unmagnified(g, linalg.pinv(linalg.qr(other).R), group["skip"]) for other, g in sides]


def _unmagnified(g: Tensor, inverse: Tensor, skip: float | None) -> Tensor:
    found = g @ inverse
    skipped = skip is not None and bool(found.square().mean().sqrt() > skip)
    return torch.zeros_like(found) if skipped else found


def _escaped(before: Tensor, moved: Tensor, state: State, key: str, decay: float) -> Tensor:
    """ρ, from V in the former basis and in this one."""
    of_values = (linalg.eigvalsh(before) - linalg.eigvalsh(moved)).max().clamp(min=0)
    of_trace = (before.trace() - moved.trace()).clamp(min=0)
    state[f"escaped_{key}"] = decay * (torch.minimum(of_values, of_trace) + state.get(f"escaped_{key}", 0.0))
    return state[f"escaped_{key}"]


def _inverse_root(V: Tensor, escaped: Tensor | float, eps: float) -> Tensor:
    values, U = linalg.eigh(V)
    return (U / ((values.clamp(min=0) + escaped + eps**2).sqrt() + eps)) @ U.mT


def _decay(beta: float, t: int) -> float:
    """β̃, with which a mean needs no correction of its bias."""
    return beta * (1 - beta ** (t - 1)) / (1 - beta**t)


def _mixed(decay: float, old: Tensor, new: Tensor) -> Tensor:
    return decay * old + (1 - decay) * new


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.mT) / 2


def lora_rite(
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-6,
    clip: float | None = None,
    skip: float | None = None,
    escape: bool = False,
) -> Method:
    """LoRA-RITE: Adam in orthonormal bases of the factors (Yen et al., 2025, arXiv 2410.20625).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        eps: added to the roots of the second moments.
        clip: the largest norm of all unmagnified gradients together, 1 in the authors' code; None for no bound.
        skip: gradients of a larger root mean square are not followed, 1 in the authors' code; None for no bound.
        escape: raise second moments by what a change of bases loses.
    """
    settings = {
        "lr": POSITIVE.check("lr", lr),
        "betas": [*fractions(2).check("betas", [*betas])],
        "eps": POSITIVE.check("eps", eps),
        "clip": (POSITIVE | null).check("clip", clip),
        "skip": (POSITIVE | null).check("skip", skip),
        "escape": boolean.check("escape", escape),
    }
    return Method("lora_rite", "factors", lambda groups: LoRARITE(groups, **settings), settings=settings)

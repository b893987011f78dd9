"""GeoLoRA: a low-rank integrator that needs one gradient a step and no inverse of a Gram matrix.

Schotthöfer, Zangrando, Ceruti, Tudisco and Kusch, "GeoLoRA: Geometric Integration for Parameter Efficient Fine-Tuning",
ICLR 2025, arXiv 2410.18720; written after the authors' code. For W = W0 + s·U S Vᵀ with orthonormal U (m, r), V (n, r),

    ∇K = ∂L/∂(U S) = s G V ,    ∇L = ∂L/∂(V Sᵀ) = s GᵀU ,    ∇S = s UᵀG V
    [U, Û₂] = qr([U, ∇K]) ,    [V, V̂₂] = qr([V, ∇L])                                          the bases, augmented
    Ŝ = [[S − η ∇S, (V Sᵀ − η ∇L)ᵀ V̂₂], [Û₂ᵀ (U S − η ∇K), 0]]                                at most (2r, 2r)
    Ŝ = P Σ Qᵀ ,    U ← [U, Û₂] P₁ ,    S ← Σ₁ ,    V ← [V, V̂₂] Q₁ ,

where P₁, Σ₁, Q₁ keep the fewest singular values for which those left out have a norm below τ‖Σ‖, and not more than the
pair has room for. Before that the product s U S Vᵀ has moved by −η s² P_T(G): it is gradient descent in the tangent
space, and with τ = 0 Euler's scheme for the flow of ``odelora`` on the manifold with h = η s².

The pair holds B = U S and A = Vᵀ, filled up with zeros where the rank is below that of the pair. So U, S, V are those
of thin QR factorisations, from any start, and the gradients follow from those of the factors,

    B = U M ,  Aᵀ = V N ,  S = M Nᵀ :    ∇K = g_B N⁻¹ ,    ∇L = g_Aᵀ M⁻¹ ,

by pseudo-inverses; from B = 0 only ∇K moves. The rank grows where one step adds a singular value above the tolerance.
The code limits U and V, not the rank that is kept, to the largest rank. The authors choose τ between 0.1 and 0.3, so
that each step loses that part of the whole update. For solutions to more than a digit that is too much: τ = 0 here
unless set.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group, check_rank
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import POSITIVE, PairOptimizer, State
from pinn_odelora.rules import below_one


class GeoLoRA(PairOptimizer):
    """GeoLoRA on pairs, Adam on other tensors. The rank of a pair can change from 1 to that of its tensors.

    Args:
        groups: one pair A (r, n), B (m, r) or one tensor each, as ``factor_pairs`` gives.
        lr: η.
        tau: τ, the part of the update that each truncation may lose.

    Raises:
        InputError: for a group that is neither a pair nor one tensor, or a rank that a weight cannot have.
    """

    def __init__(self, groups: Iterable[Group], lr: float = 1e-3, tau: float = 0.0) -> None:
        super().__init__(groups, lr, tau=tau)

    def check_pair(self, group: Group) -> None:
        check_rank(group, "GeoLoRA")

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        r, eta = rank(y), group["lr"]
        U, M = linalg.qr(y.B[:, :r])
        V, N = linalg.qr(y.A[:r].mT)
        K, L = g.B[:, :r] @ linalg.pinv(N), g.A[:r].mT @ linalg.pinv(M)
        U, V = _augmented(U, K), _augmented(V, L)
        S = U.new_zeros(U.shape[1], V.shape[1])
        S[:, :r] = -eta * U.mT @ K
        S[:r, r:] = -eta * L.mT @ V[:, r:]
        S[:r, :r] += M @ N.mT
        return _padded(truncated(U, S, V, group["tau"], len(y.A)), y)


def rank(y: Factors) -> int:
    """The number of columns of B that are not filled up; all of them where B = 0."""
    used = y.B.any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else len(y.A)


def _augmented(U: Tensor, K: Tensor) -> Tensor:
    """U and an orthonormal basis of what K has beside it, (m, at most 2r)."""
    r = U.shape[1]
    return torch.cat([U, linalg.qr(torch.cat([U, K], dim=1)).Q[:, r:]], dim=1)


def truncated(U: Tensor, S: Tensor, V: Tensor, tau: float, most: int) -> Factors:
    """A = Vᵀ, B = U S of the lowest rank from 1 to ``most`` that loses less than τ‖S‖, or of ``most``."""
    P, sigma, Qh = linalg.svd(S)
    lost = sigma.square().flip(0).cumsum(0).flip(0).sqrt()  # lost[j]: by keeping j
    r = max(1, min(most, int((lost >= tau * lost[0]).sum())))
    return Factors(Qh[:r] @ V.mT, U @ P[:, :r] * sigma[:r])


def _padded(y: Factors, like: Factors) -> Factors:
    A, B = torch.zeros_like(like.A), torch.zeros_like(like.B)
    A[: len(y.A)], B[:, : len(y.A)] = y.A, y.B
    return Factors(A, B)


def geolora(lr: float = 1e-3, tau: float = 0.0) -> Method:
    """GeoLoRA: a robust integrator of low rank with one gradient a step (Schotthöfer et al., 2025, arXiv 2410.18720).

    Args:
        lr: learning rate, of the gradient descent and of Adam on what is no factor.
        tau: the part of the update that each truncation may lose, in [0, 1); the rank never exceeds that of the pair.
    """
    settings = {"lr": POSITIVE.check("lr", lr), "tau": below_one.check("tau", tau)}
    return Method("geolora", "factors", lambda groups: GeoLoRA(groups, **settings), settings=settings)

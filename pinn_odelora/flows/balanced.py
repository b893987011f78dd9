"""The ODELoRA flow: the gradient flow of full fine-tuning, projected on the balanced low-rank manifold.

W = W0 + s·B A with B (m, r), A (r, n); G = ∂L/∂W; g_A = s BᵀG and g_B = s GAᵀ; S_A = AAᵀ, S_B = BᵀB, P_B = B S_B⁻¹ Bᵀ.

    dA/dt = -s⁻² S_B⁻¹ g_A + X A                                                (1)
    dB/dt = -s⁻² (I - P_B) g_B S_A⁻¹ - B X
    S_B X + X S_A = s⁻² S_B⁻¹ g_A Aᵀ                                            (2)

By (1) the product follows s d(BA)/dt = -P_T(G), where P_T is the orthogonal projection on the tangent space of rank-r
matrices at BA: the best approximation of full fine-tuning among the velocities of rank-r matrices. (2) fixes the
remaining gauge freedom such that the factors move as little as possible, and BᵀB - AAᵀ is constant for any start.
Neither needs the m × n gradient G.

This is our reading of ODELoRA (Gao and Tan, 2026, arXiv 2602.07479), derived from its abstract. The velocity is minus
the direction of LoRA-Pro with SGD (Wang et al., 2025, arXiv 2407.18242), whose code adds a damping δ: S_A + δI and
S_B + δI stand for S_A and S_B in every inverse and in P_B, and S_B X + X S_A is what it was. Then (1) holds up to terms
of size δ/σ², σ the least singular value of a factor, and the velocity is defined for factors of any rank, with the X
of least norm: at B = 0 it is dA/dt = 0, dB/dt = -s⁻² g_B (S_A + δI)⁻¹.
"""

from __future__ import annotations

import torch

from pinn_odelora.flows.gram import gram_spectrum, spectrum
from pinn_odelora.manifolds.factors import Factors


def balanced_flow(y: Factors, g: Factors, scale: float, damping: float = 0.0) -> Factors:
    """The velocity (1), (2) at factors ``y`` with gradients ``g``.

    Args:
        y: A (…, r, n) and B (…, m, r), without damping both of full rank r; leading dimensions are a batch of layers.
        g: gradients of the loss with respect to A and B, same shapes.
        scale: s > 0; the velocity of the product s·BA does not depend on how s is split between scale and factors.
        damping: δ ≥ 0.

    Returns:
        (dA/dt, dB/dt) in the dtype of ``y``, computed in float64.

    Raises:
        InputError: without damping, if A or B does not have full rank, in particular at the zero adapter B = 0.
        FloatingPointError: if a factor is not finite.
    """
    A, B, g_A, g_B = (x.double() for x in (*y, *g))
    spectrum_of = spectrum if damping else gram_spectrum
    a, U_A = spectrum_of(A, "A")
    b, U_B = spectrum_of(B.mT, "B")
    a, b = a[..., None, :], b[..., :, None]
    # In the eigenbases of S_B and S_A, inverses and (2) are entrywise divisions. A formed inverse would mix the
    # rounding errors of all directions with 1/σ_r.
    dA = U_B.mT @ g_A / ((b + damping) * scale**2)
    dB = g_B @ U_A / ((a + damping) * scale**2)
    dB = dB - B @ (U_B @ (U_B.mT @ (B.mT @ dB) / (b + damping)))
    # Where both factors lack a direction, 0/0.
    X = torch.where(b + a > 0, dA @ (A.mT @ U_A) / (b + a), 0.0)
    return Factors((U_B @ (X @ (U_A.mT @ A) - dA)).to(y.A), (-(dB + B @ U_B @ X) @ U_A.mT).to(y.B))

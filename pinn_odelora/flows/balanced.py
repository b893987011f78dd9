"""The ODELoRA flow: full fine-tuning's gradient flow, projected on the balanced low-rank manifold.

W = W0 + s·B A with B (m, r), A (r, n); G = ∂L/∂W; g_A = s BᵀG and g_B = s GAᵀ; S_A = AAᵀ, S_B = BᵀB, P_B = B S_B⁻¹ Bᵀ.

    dA/dt = -s⁻² S_B⁻¹ g_A + X A                                                (1)
    dB/dt = -s⁻² (I - P_B) g_B S_A⁻¹ - B X
    S_B X + X S_A = s⁻² S_B⁻¹ g_A Aᵀ                                            (2)

(1) makes the product follow s d(BA)/dt = -P_T(G), P_T the orthogonal projection on the tangent space of rank-r
matrices at BA: the nearest reachable velocity to full fine-tuning. (2) fixes the remaining gauge freedom so that the
factors move as little as they can, and keeps BᵀB - AAᵀ constant from any starting point. Neither needs the m × n
gradient G.

This is our reading of ODELoRA (Gao and Tan, 2026, arXiv 2602.07479), derived from its abstract. One Euler step
of it is the direction of LoRA-Pro with SGD (Wang et al., 2025, arXiv 2407.18242).
"""

from __future__ import annotations

from pinn_odelora.flows.gram import gram_spectrum
from pinn_odelora.manifolds.factors import Factors


def balanced_flow(y: Factors, g: Factors, scale: float) -> Factors:
    """The velocity (1), (2) at factors ``y`` with gradients ``g``.

    Args:
        y: A (…, r, n) and B (…, m, r), both of full rank r; leading dimensions are a batch of layers.
        g: gradients of the loss with respect to A and B, same shapes.
        scale: s; the velocity of the product s·BA does not depend on how s is split from the factors.

    Returns:
        (dA/dt, dB/dt) in the dtype of ``y``; the r × r algebra is done in float64 whatever that is.

    Raises:
        InputError: where A or B has lost rank, in particular at the zero adapter B = 0.
    """
    A, B, g_A, g_B = (x.double() for x in (*y, *g))
    a, U_A = gram_spectrum(A, "A")
    b, U_B = gram_spectrum(B.mT, "B")
    inverse_A = U_A / a[..., None, :] @ U_A.mT
    inverse_B = U_B / b[..., None, :] @ U_B.mT
    dA = inverse_B @ g_A / scale**2
    dB = g_B @ inverse_A / scale**2
    dB = dB - B @ (inverse_B @ (B.mT @ dB))
    # (2) in the eigenbases of S_B and S_A is a division, entry by entry.
    X = U_B @ (U_B.mT @ (dA @ A.mT) @ U_A / (b[..., :, None] + a[..., None, :])) @ U_A.mT
    return Factors((X @ A - dA).to(y.A), (-dB - B @ X).to(y.B))

"""The flow of plain LoRA: dA/dt = -g_A, dB/dt = -g_B, Euclidean in the factors (Hu et al., 2022, arXiv 2106.09685).

It conserves BᵀB - AAᵀ, but its product s·BA follows -s²(BBᵀG + GAᵀA), which is not a projection of full fine-tuning.
"""

from __future__ import annotations

from pinn_odelora.manifolds.factors import Factors


def gradient_flow(y: Factors, g: Factors, scale: float) -> Factors:
    """Minus the gradient.

    Args:
        y: factors; not used.
        g: gradients of the loss with respect to A (…, r, n) and B (…, m, r).
        scale: s; not used.
    """
    return Factors(-g.A, -g.B)

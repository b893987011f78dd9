"""The flow of plain LoRA: dA/dt = -g_A, dB/dt = -g_B, Euclidean in the factors (Hu et al., 2022, arXiv 2106.09685).

It keeps BᵀB - AAᵀ, but its product follows -s²(BBᵀG + GAᵀA), not a projection of full fine-tuning.
"""

from __future__ import annotations

from pinn_odelora.manifolds.factors import Factors


def gradient_flow(y: Factors, g: Factors, scale: float) -> Factors:
    """Minus the gradient; shapes as given, A (…, r, n) and B (…, m, r)."""
    return Factors(-g.A, -g.B)

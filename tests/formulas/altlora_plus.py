"""AltLoRA+ (Yu, Wang, Chen and Xue, 2025, arXiv 2505.12455): ``altlora`` with element-wise second moments.

    v ← β₂ v + (1 − β₂) g²,   direction (β₁ T m + (1 − β₁) g) / (1 − β₁ᵗ) / (√v + ε),   m ← β₁ m + (1 − β₁) g

for the preconditioned gradient g and the transport T of ``altlora``. Read in the authors' code: the first moment is
stored without its transport, v has no bias correction, and β = (0.999, 0.98), ε = 1e-6.
"""

import numpy as np

from . import adam
from .altlora import preconditioned


def step(A, B, g_A, g_B, s, lr, state, betas=(0.999, 0.98), eps=1e-6, weight_decay=0.0, damping=1e-3):
    def update(key, g, transport):
        t, m, v = state.get(key, (0, np.zeros_like(g), np.zeros_like(g)))
        t, v = t + 1, betas[1] * v + (1 - betas[1]) * g**2
        moved = betas[0] * transport(m) + (1 - betas[0]) * g
        state[key] = t, betas[0] * m + (1 - betas[0]) * g, v
        return moved / (1 - betas[0] ** t) / (np.sqrt(v) + eps)

    return preconditioned(A, B, g_A, g_B, lr, state, update, weight_decay, damping)


def vector_step(x, g, lr, state, **_):
    """Adam with settings of its own: those of the pairs are not Adam's."""
    return adam.vector_step(x, g, lr, state)

"""LoRA-FA (Zhang et al., 2023, arXiv 2308.03303): A is frozen, and

    ĝ_B = s⁻² g_B (A Aᵀ + δI)⁻¹,   m, v: Adam's moments of ĝ_B,   B ← B − η (√(1−β₂ᵗ)/(1−β₁ᵗ)) m / (√v + ε).

Read in peft.optimizers.LoraFAOptimizer: δ = 1e-8, ε = 1e-6 beside the uncorrected √v (AdamW of transformers), and with
a weight decay B ← (1 − ηλ) B after the step, λ = 0. The vector goes by the same Adam there.
"""

import numpy as np


def adam_hf(g, state, key, betas, eps):
    t, m, v = state.get(key, (0, np.zeros_like(g), np.zeros_like(g)))
    t, m, v = t + 1, betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
    state[key] = t, m, v
    return np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / (np.sqrt(v) + eps)


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, damping=1e-8):
    scaled = g_B @ np.linalg.inv(A @ A.T + damping * np.eye(len(A))) / s**2
    return A, (1 - lr * weight_decay) * (B - lr * adam_hf(scaled, state, "B", betas, eps))


def vector_step(x, g, lr, state, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, damping=1e-8):
    return (1 - lr * weight_decay) * (x - lr * adam_hf(g, state, "vector", betas, eps))

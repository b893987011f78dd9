"""RefLoRA (Zhang, Li and Giannakis, NeurIPS 2025, arXiv 2505.18877): Adam on g_A ← S⁻¹ g_A, g_B ← g_B S.

S = (A Aᵀ)⁻¹ # BᵀB is the geometric mean, S (A Aᵀ) S = BᵀB. Read in the authors' code; its guards of size 2e-16 are left
out. For the first ``warmup`` steps the gradients are Adam's own; their training script has 100, their class 0.
"""

import numpy as np

from .adam import direction


def root(P):
    w, U = np.linalg.eigh(P)
    return (U * np.sqrt(w)) @ U.T


def geometric_mean(A, B):
    half = root(A @ A.T)
    inverse = np.linalg.inv(half)
    return inverse @ root(half @ B.T @ B @ half) @ inverse


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-8, warmup=100):
    state["t"] = state.get("t", 0) + 1
    if state["t"] > warmup:
        S = geometric_mean(A, B)
        g_A, g_B = np.linalg.solve(S, g_A), g_B @ S
    return A - lr * direction(g_A, state, "A", betas, eps), B - lr * direction(g_B, state, "B", betas, eps)

"""AltLoRA (Yu, Wang, Chen and Xue, 2025, arXiv 2505.12455), A first, then B with the new A and the gradient of before:

    D = (BᵀB + δI)⁻¹:  m_A ← β₁ D BᵀB_old m_A + (1 − β₁) D g_A,  A ← A − η m_A/(1 − β₁ᵗ)
    D = (A Aᵀ + δI)⁻¹: m_B ← β₁ m_B A_old Aᵀ D + (1 − β₁) g_B D,  B ← B − η m_B/(1 − β₁ᵗ)

with B_old the B of the last update of A, A_old the new A of the last update of B. Read in the authors' code: defaults
β₁ = 0.999, δ = 1e-3, and a decoupled weight decay of 1e-5 after each update, which is 0 here; nothing is divided by s².
"""

import numpy as np


def preconditioned(A, B, g_A, g_B, lr, state, update, weight_decay, damping):
    """Both halves, ``update`` being the direction from key, scaled gradient and its transport."""
    eye, keep = np.eye(len(A)), 1 - lr * weight_decay
    D, old = np.linalg.inv(B.T @ B + damping * eye), state.get("old_B", np.zeros_like(B))
    A = keep * (A - lr * update("A", D @ g_A, lambda m: D @ B.T @ old @ m))
    state["old_B"] = B
    E, before = np.linalg.inv(A @ A.T + damping * eye), state.get("old_A", np.zeros_like(A))
    B = keep * (B - lr * update("B", g_B @ E, lambda m: m @ before @ A.T @ E))
    state["old_A"] = A
    return A, B


def step(A, B, g_A, g_B, s, lr, state, beta=0.999, weight_decay=0.0, damping=1e-3):
    def update(key, g, transport):
        t, m = state.get(key, (0, np.zeros_like(g)))
        t, m = t + 1, beta * transport(m) + (1 - beta) * g
        state[key] = t, m
        return m / (1 - beta**t)

    return preconditioned(A, B, g_A, g_B, lr, state, update, weight_decay, damping)

"""LoFT-AdamW (Tastan et al., ICLR 2026, arXiv 2505.21289), B and A in turn, B first, both moments at every step.

    ĝ_B = g_B D,  D = (A Aᵀ + δ_B I)⁻¹,   R = A_old Aᵀ D,   m ← β₁ m R + (1 − β₁) ĝ_B,
    v_i ← β₂ R' v_i R'ᵀ + (1 − β₂) ĝ_i ĝ_iᵀ  for every row i of B,
    U = (m A) / (√(diag(Aᵀ v_i A) / (1 − β₂ᵗ)) + ε),   B ← B − η/(1 − β₁ᵗ) U Aᵀ D

and likewise for A with BᵀB + δ_A I. Read in the authors' code: δ_B = 1e-8, δ_A = 1e-6, ε = 1e-4, gradient clipping left
out here. ``as_coded`` it has R' = R, and treats A before B, so that in a turn of A the moments of B see the new A with
the gradient of before. Our reading is that of the derivation, moments of the full matrix projected: R' = Rᵀ, with which
Aᵀ v A stays as it is where r = n, and both moments at the pair whose gradient it is. The paper has s = 1; here the full
gradient is that of g/s.
"""

import numpy as np

from . import adam


def moments(key, other, g, damping, state, betas, transposed):
    """Moments of a factor B (m, r), whose other factor is A: for A they are called with both transposed."""
    D, old = np.linalg.inv(other @ other.T + damping * np.eye(len(other))), state.get("old" + key)
    t, m, v = state.get(key, (0, np.zeros_like(g), np.zeros((*g.shape, g.shape[1]))))
    R = np.eye(len(other)) if old is None else old @ other.T @ D
    Q = R.T if transposed else R
    g = g @ D
    m = betas[0] * m @ R + (1 - betas[0]) * g
    v = betas[1] * Q @ v @ Q.T + (1 - betas[1]) * g[:, :, None] * g[:, None, :]
    state[key], state["old" + key] = (t + 1, m, v), other
    return D


def direction(key, other, D, state, betas, eps):
    t, m, v = state[key]
    second = np.maximum(np.einsum("ra,irq,qa->ia", other, v, other), 0)
    full = m @ other / (np.sqrt(second / (1 - betas[1] ** t)) + eps)
    return full @ other.T @ D / (1 - betas[0] ** t)


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-4, dampings=(1e-6, 1e-8), as_coded=False):
    turn = state["turn"] = state.get("turn", 0) + 1
    new = A
    D = moments("A", B.T, g_A.T / s, dampings[0], state, betas, not as_coded)
    if turn % 2 == 0:
        new = A - lr / s * direction("A", B.T, D, state, betas, eps).T
    seen = new if as_coded else A
    D = moments("B", seen, g_B / s, dampings[1], state, betas, not as_coded)
    if turn % 2 == 1:
        B = B - lr / s * direction("B", seen, D, state, betas, eps)
    return new, B


def vector_step(x, g, lr, state, **_):
    """Adam with settings of its own."""
    return adam.vector_step(x, g, lr, state)

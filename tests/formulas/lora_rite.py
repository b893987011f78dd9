"""LoRA-RITE (Yen et al., ICLR 2025, arXiv 2410.20625), for B with the basis of A, and for A with that of B:

    Aᵀ = Q R,   ḡ = g_B R⁻¹,   P = Qᵀ Q_old,   V ← β̃₂ P V Pᵀ + (1 − β̃₂) ḡᵀḡ/m,
    M ← β̃₁ M Pᵀ + (1 − β̃₁) ḡ (√(V + ε²) + ε)⁻¹,   B ← B − η M R⁻ᵀ.

Read in the authors' code and pytorch_optimizer.LoRARite: β̃ = β (1 − βᵗ⁻¹)/(1 − βᵗ), which needs no bias correction;
moments and old bases start at zero; R⁻¹ is a pseudo-inverse. ḡ of all pairs together is clipped to the norm ``clip``,
1 there, 0 for none; a factor whose ḡ has a root mean square above ``skip``, 1 there, gets ḡ = 0, 0 for none. The
escape mass is off by default and left out. The root is as in the package; the authors' code has √V + ε.
"""

import numpy as np

from . import adam


def unmagnified(A, B, g_A, g_B, skip):
    """Bases, inverse triangles and unmagnified gradients, of A and of B."""
    (Q_A, R_A), (Q_B, R_B) = np.linalg.qr(A.T), np.linalg.qr(B)
    inverse_A, inverse_B = np.linalg.pinv(R_A), np.linalg.pinv(R_B)
    small = lambda g: g * (skip == 0 or np.sqrt(np.mean(g**2)) <= skip)
    return (Q_A, Q_B), (inverse_A, inverse_B), (small(g_A.T @ inverse_B), small(g_B @ inverse_A))


def shared(pairs, gradients, clip=1.0, skip=0.0, **_):
    """The factor by which the gradients of all pairs are clipped."""
    squares = [np.sum(g**2) for pair, g in zip(pairs, gradients, strict=True) for g in unmagnified(*pair, *g, skip)[2]]
    norm = np.sqrt(np.sum(squares))
    return {"factor": clip / norm if 0 < clip < norm else 1.0}


def moved(key, g, Q, inverse, state, betas, eps):
    """The direction of the factor whose unmagnified gradient is g and whose other factor has basis Q."""
    r = Q.shape[1]
    t, M, V, old = state.get(key, (0, np.zeros_like(g), np.zeros((r, r)), np.zeros_like(Q)))
    t, P = t + 1, Q.T @ old
    b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in betas)
    V = b2 * P @ V @ P.T + (1 - b2) * g.T @ g / len(g)
    w, U = np.linalg.eigh((V + V.T) / 2)
    M = b1 * M @ P.T + (1 - b1) * g @ (U / (np.sqrt(np.maximum(w, 0) + eps**2) + eps)) @ U.T
    state[key] = t, M, V, Q
    return M @ inverse.T


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, clip=1.0, skip=0.0, factor=1.0):
    (Q_A, Q_B), (inverse_A, inverse_B), (bar_A, bar_B) = unmagnified(A, B, g_A, g_B, skip)
    d_A = moved("A", factor * bar_A, Q_B, inverse_B, state, betas, eps).T
    d_B = moved("B", factor * bar_B, Q_A, inverse_A, state, betas, eps)
    return A - lr * (d_A + weight_decay * A), B - lr * (d_B + weight_decay * B)


def vector_step(x, g, lr, state, **_):
    """Adam with settings of its own."""
    return adam.vector_step(x, g, lr, state)

"""LoRA-Pro by gradient descent (Wang, Liang, He, Wang and Tan, ICLR 2025, arXiv 2407.18242):

    A ← A − η (s⁻² S_B⁻¹ g_A + X A),    B ← B − η (s⁻² (I − B S_B⁻¹ Bᵀ) g_B S_A⁻¹ − B X),
    S_B X + X S_A = −s⁻² S_B⁻¹ g_A Aᵀ.

Read in the authors' code: the inverses are pinv(S + δI) with δ = 1e-8, the Sylvester equation has the plain S. At
B = 0 this gives their first step, A unchanged and B ← B − η s⁻² g_B S_A⁻¹, without a branch. The vector goes by
gradient descent.
"""

import numpy as np

from .lora_gd import vector_step as vector_step


def sylvester(P, Q, C):
    """X with P X + X Q = C, by the Kronecker product."""
    r = len(P)
    return np.linalg.solve(np.kron(P, np.eye(r)) + np.kron(np.eye(r), Q.T), C.ravel()).reshape(r, r)


def adjusted(A, B, g_A, g_B, s, damping, gauge=True):
    """The two directions; without ``gauge``, X = 0."""
    S_A, S_B, eye = A @ A.T, B.T @ B, np.eye(len(A))
    inverse_A, inverse_B = np.linalg.pinv(S_A + damping * eye), np.linalg.pinv(S_B + damping * eye)
    d_A = inverse_B @ g_A / s**2
    d_B = (g_B - B @ inverse_B @ B.T @ g_B) @ inverse_A / s**2
    X = sylvester(S_B, S_A, -d_A @ A.T) if gauge else np.zeros_like(S_A)
    return d_A + X @ A, d_B - B @ X


def step(A, B, g_A, g_B, s, lr, state, damping=1e-8):
    d_A, d_B = adjusted(A, B, g_A, g_B, s, damping)
    return A - lr * d_A, B - lr * d_B

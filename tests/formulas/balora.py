"""Balanced LoRA (Castin, Nadjahi, Ablin and Peyré, 2026, arXiv 2605.31484): Adam, then the pair is balanced.

With polar factors B = R_B S_B, A = S_A R_A and the singular value decomposition S_B S_A = U Σ V,

    B ← R_B U √Σ,    A ← √Σ V R_A,

which keeps B A and makes BᵀB = A Aᵀ. Read in the authors' ``ProjectionCallback``, after every step; Adam's moments are
not transported. The signs of the singular vectors, which the moments feel, are left to LAPACK there, and here to
``like``, a pair to agree with. Their ``BestProjectionCallback`` takes the balanced pair that is nearest to (A, B),

    B ← B* O,    A ← Oᵀ A*    of the pair (A*, B*) above, O the polar factor of B*ᵀB + A* Aᵀ,

which is ``nearest`` here, with the exact polar factor for their Newton–Schulz iteration.
"""

import numpy as np

from .adam import direction


def balanced(A, B):
    U_A, d_A, V_A = np.linalg.svd(A, full_matrices=False)
    U_B, d_B, V_B = np.linalg.svd(B, full_matrices=False)
    U, sigma, V = np.linalg.svd((V_B.T * d_B) @ V_B @ (U_A * d_A) @ U_A.T)
    rooted = np.sqrt(sigma)
    return rooted[:, None] * V @ U_A @ V_A, U_B @ V_B @ (U * rooted)


def signed(A, B, like):
    sign = np.where(np.sum(A * like[0], axis=1) + np.sum(B * like[1], axis=0) < 0, -1.0, 1.0)
    return sign[:, None] * A, B * sign


def nearest_to(A, B):
    rows, columns = balanced(A, B)
    U, _, V = np.linalg.svd(columns.T @ B + rows @ A.T)
    return (U @ V).T @ rows, columns @ U @ V


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-8, nearest=False, like=None):
    A, B = A - lr * direction(g_A, state, "A", betas, eps), B - lr * direction(g_B, state, "B", betas, eps)
    if nearest:
        return nearest_to(A, B)
    return balanced(A, B) if like is None else signed(*balanced(A, B), next(like))

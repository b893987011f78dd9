"""Balanced LoRA (Castin, Nadjahi, Ablin and Peyré, 2026, arXiv 2605.31484): Adam, then the pair is balanced.

With polar factors B = R_B S_B, A = S_A R_A and the singular value decomposition S_B S_A = U Σ V,

    B ← R_B U √Σ,    A ← √Σ V R_A,

which keeps B A and makes BᵀB = A Aᵀ. Read in the authors' ``ProjectionCallback``, after every step; Adam's moments are
not transported. The signs of the singular vectors, which Adam's moments feel, are those of LAPACK there; here row k
of A and column k of B have the sign with which they are nearest to the pair before it is balanced.
"""

import numpy as np

from .adam import direction


def balanced(A, B):
    U_A, d_A, V_A = np.linalg.svd(A, full_matrices=False)
    U_B, d_B, V_B = np.linalg.svd(B, full_matrices=False)
    U, sigma, V = np.linalg.svd((V_B.T * d_B) @ V_B @ (U_A * d_A) @ U_A.T)
    rooted = np.sqrt(sigma)
    A_new, B_new = rooted[:, None] * V @ U_A @ V_A, U_B @ V_B @ (U * rooted)
    signs = np.where((A_new * A).sum(1) + (B_new * B).sum(0) < 0, -1.0, 1.0)
    return signs[:, None] * A_new, B_new * signs


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-8):
    return balanced(A - lr * direction(g_A, state, "A", betas, eps), B - lr * direction(g_B, state, "B", betas, eps))

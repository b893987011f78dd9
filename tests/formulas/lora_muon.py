"""LoRA-Muon (Cesista, Crowson, Simal and Biderman, 2026, arXiv 2606.12921), read second-hand, its abstract excepted:

    m ← β m + (1 − β) g,   R_A = (A Aᵀ)^(−½),  R_B = (BᵀB)^(−½),   k = √(1 − λη),
    A ← k A − (η/2s) R_B msign(R_B m_A) / k,    B ← k B − (η/2s) msign(m_B R_A) R_A / k.

msign(U Σ Vᵀ) = U Vᵀ is exact here, by polynomials there, as are the inverse roots. The paper's product A'B'ᵀ is s·B A,
whichever factor takes the s: so the factor 1/s, our reading. At B = 0 we leave A as it is,
R_B = 0. β is a setting whose default in the paper we do not know.
"""

import numpy as np


def inverse_root(P):
    if not P.any():
        return P
    w, U = np.linalg.eigh(P)
    return (U / np.sqrt(w)) @ U.T


def msign(M):
    U, _, V = np.linalg.svd(M, full_matrices=False)
    return U @ V


def step(A, B, g_A, g_B, s, lr, state, momentum=0.95, weight_decay=0.0):
    m_A, m_B = (momentum * m + (1 - momentum) * g for m, g in zip(state.get("m", (0.0, 0.0)), (g_A, g_B), strict=True))
    state["m"] = m_A, m_B
    R_A, R_B, k = inverse_root(A @ A.T), inverse_root(B.T @ B), np.sqrt(1 - weight_decay * lr)
    half = lr / (2 * s * k)
    return k * A - half * R_B @ msign(R_B @ m_A), k * B - half * msign(m_B @ R_A) @ R_A

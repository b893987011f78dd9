"""GeoLoRA (Schotthöfer, Zangrando, Ceruti, Tudisco and Kusch, ICLR 2025, arXiv 2410.18720), at a fixed rank:

    W = W0 + s U S Vᵀ,  K = ∇_U S⁻¹ = s G V,  L = ∇_V S⁻¹ = s GᵀU,  Û = [U, U₂] = orth [U, K],  V̂ likewise,
    Ŝ = [[S − η ∇_S, (V Sᵀ − η L)ᵀV₂], [U₂ᵀ(U S − η K), 0]],   U S Vᵀ ← Û Ŝ V̂ᵀ cut to rank r.

Read in the authors' code, whose rank adapts to a tolerance of the tail of Ŝ; here it stays r. The pair is any with
B A = U S Vᵀ, and only the product has meaning.
"""

import numpy as np


def complement(U, K):
    """Orthonormal columns that extend U to the span of [U, K]."""
    r = U.shape[1]
    return np.linalg.qr(np.hstack([U, K]))[0][:, r:]


def step(A, B, g_A, g_B, s, lr, state):
    r, (Q_B, R_B), (Q_A, R_A) = len(A), np.linalg.qr(B), np.linalg.qr(A.T)
    U, S, V = Q_B, R_B @ R_A.T, Q_A
    K, L = g_B @ np.linalg.inv(R_A), g_A.T @ np.linalg.inv(R_B)
    U2, V2 = complement(U, K), complement(V, L)
    S_hat = np.block(
        [
            [S - lr * U.T @ K, (V @ S.T - lr * L).T @ V2],
            [U2.T @ (U @ S - lr * K), np.zeros((U2.shape[1], V2.shape[1]))],
        ]
    )
    P, d, Q = np.linalg.svd(S_hat)
    half = np.sqrt(d[:r])
    return half[:, None] * Q[:r] @ np.hstack([V, V2]).T, np.hstack([U, U2]) @ P[:, :r] * half

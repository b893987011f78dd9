"""PoLAR (Lion, Zhang, Li and He, NeurIPS 2025, arXiv 2506.03133): ΔW = s X Θ Yᵀ, X (m, r), Θ (r, r), Y (n, r).

Adam on Θ's gradient and on the landing fields, (g Xᵀ − X gᵀ) X + λ X (XᵀX − I) for X and likewise for Y, g being the
gradient of X. Read in the authors' code, λ = 1, where X and Y start orthonormal and Θ at 0. From a pair, our
reading: X and Y are the orthonormal factors of QR, of B and of Aᵀ.
"""

import numpy as np

from .adam import direction, vector_step


def landing(X, g, weight):
    return (g @ X.T - X @ g.T) @ X + weight * X @ (X.T @ X - np.eye(X.shape[1]))


def from_pair(A, B):
    """X, Θ, Y of a pair, X and Y orthonormal by QR of B and Aᵀ."""
    (X, R), (Y, T) = np.linalg.qr(B), np.linalg.qr(A.T)
    return X, R @ T.T, Y


def to_pair(X, T, Y):
    return Y.T, X @ T


def gradients(problem, triples, c):
    W = [W0 + s * X @ T @ Y.T for W0, s, (X, T, Y) in zip(problem.bases, problem.scales, triples, strict=True)]
    G, g_c = problem.weight_gradients(W, c)
    return [
        (s * g @ Y @ T.T, s * X.T @ g @ Y, s * g.T @ X @ T)
        for g, s, (X, T, Y) in zip(G, problem.scales, triples, strict=True)
    ], g_c


def steps(problem, start, lr, n, penalty=1.0, betas=(0.9, 0.999), eps=1e-8):
    """The triples (X, Θ, Y) and the vector after each of n steps."""
    (triples, c), states, vector, path = start, [{} for _ in start[0]], {}, []
    for _ in range(n):
        all_g, g_c = gradients(problem, triples, c)
        fields = [
            (landing(X, g_X, penalty), g_T, landing(Y, g_Y, penalty))
            for (X, _, Y), (g_X, g_T, g_Y) in zip(triples, all_g, strict=True)
        ]
        triples = [
            tuple(x - lr * direction(g, state, key, betas, eps) for x, g, key in zip(y, g_y, "XTY", strict=True))
            for y, g_y, state in zip(triples, fields, states, strict=True)
        ]
        c = vector_step(c, g_c, lr, vector, betas, eps)
        path.append((triples, c))
    return path

"""Muon (Jordan et al., 2024, github.com/KellerJordan/Muon) on each factor by itself, Adam on the vector.

    m ← μ m + g,  X = (g + μ m) / (‖g + μ m‖ + ε),  five times X ← a X + (b XXᵀ + c (XXᵀ)²) X,
    x ← x − η √max(1, rows/columns) X

with (a, b, c) = (3.4445, −4.7750, 2.0315), μ = 0.95, ε = 1e-7. Read in the authors' first published code and in
torch.optim.Muon, which iterate in bfloat16, and in later forms average m with weights μ and 1 − μ. That gives the same
X but for ε.
"""

import numpy as np


def newton_schulz(M, eps=1e-7):
    X = M / (np.linalg.norm(M) + eps)
    for _ in range(5):
        S = X @ X.T
        X = 3.4445 * X + (-4.7750 * S + 2.0315 * S @ S) @ X
    return X


def moved(x, g, lr, state, key, momentum):
    m = state[key] = momentum * state.get(key, 0.0) + g
    M = g + momentum * m
    X = newton_schulz(M) if M.shape[0] <= M.shape[1] else newton_schulz(M.T).T
    return x - lr * np.sqrt(max(1.0, x.shape[0] / x.shape[1])) * X


def step(A, B, g_A, g_B, s, lr, state, momentum=0.95):
    return moved(A, g_A, lr, state, "A", momentum), moved(B, g_B, lr, state, "B", momentum)

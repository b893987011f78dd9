"""ScaledGD on LoRA pairs, Riemannian preconditioned LoRA (Zhang and Pilanci, 2024, arXiv 2402.02347):

    A ← A − η (BᵀB + δI)⁻¹ g_A,    B ← B − η g_B (A Aᵀ + δI)⁻¹,    both from the old pair.

Read in the authors' SGDr (δ = 1e-6) and in peft.optimizers.create_riemannian_optimizer (δ = 1e-2); neither divides by
s². The vector goes by gradient descent.
"""

import numpy as np

from .lora_gd import vector_step  # noqa: F401


def scaled(A, B, g_A, g_B, damping):
    eye = np.eye(len(A))
    return np.linalg.inv(B.T @ B + damping * eye) @ g_A, g_B @ np.linalg.inv(A @ A.T + damping * eye)


def step(A, B, g_A, g_B, s, lr, state, damping=1e-6):
    d_A, d_B = scaled(A, B, g_A, g_B, damping)
    return A - lr * d_A, B - lr * d_B

"""ScaledGD (Tong, Ma and Chi, 2021, arXiv 2005.08898), of the product L Rᵀ = s·B A, whichever factor takes the s:

    A ← A − η s⁻² (BᵀB)⁻¹ g_A,    B ← B − η s⁻² g_B (A Aᵀ)⁻¹,    both from the old pair.

Riemannian preconditioned LoRA (Zhang and Pilanci, 2024, arXiv 2402.02347) has (BᵀB + δI)⁻¹ and (A Aᵀ + δI)⁻¹, and no
division by s²: read in the authors' SGDr (δ = 1e-6) and in peft.optimizers.create_riemannian_optimizer (δ = 1e-2).
The vector goes by gradient descent.
"""

import numpy as np

from .lora_gd import vector_step as vector_step


def scaled(A, B, g_A, g_B, damping):
    eye = np.eye(len(A))
    return np.linalg.inv(B.T @ B + damping * eye) @ g_A, g_B @ np.linalg.inv(A @ A.T + damping * eye)


def step(A, B, g_A, g_B, s, lr, state, damping=0.0, of_product=True):
    d_A, d_B = scaled(A, B, g_A, g_B, damping)
    h = lr / s**2 if of_product else lr
    return A - h * d_A, B - h * d_B

"""LoRA-Pro with AdamW (Wang, Liang, He, Wang and Tan, ICLR 2025, arXiv 2407.18242), moments of full size:

    g̃ = s B d_A + s d_B A    with the directions d of ``lora_pro`` at X = 0,
    ĝ = Adam's direction of g̃ (m, n),    then a step of ``lora_pro`` with g_A = s Bᵀĝ, g_B = s ĝ Aᵀ.

Read in the authors' code: β = (0.9, 0.999), ε = 1e-8, δ = 1e-8, no weight decay. Our reading: the bias correction
counts from t = 1. There the counter is raised before it is used, so that theirs begins at t = 2 and a branch for the
first step is never reached; their second moment is in bfloat16. Weight decay is decoupled, before the step.
"""

from . import lora_adamw
from .adam import direction
from .lora_pro import adjusted


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, damping=1e-8):
    d_A, d_B = adjusted(A, B, g_A, g_B, s, damping, gauge=False)
    full = direction(s * B @ d_A + s * d_B @ A, state, "full", betas, eps)
    d_A, d_B = adjusted(A, B, s * B.T @ full, s * full @ A.T, s, damping)
    keep = 1 - lr * weight_decay
    return keep * A - lr * d_A, keep * B - lr * d_B


def vector_step(x, g, lr, state, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **_):
    return lora_adamw.vector_step(x, g, lr, state, betas, eps, weight_decay)

"""Riemannian preconditioned AdamW (Zhang and Pilanci, 2024, arXiv 2402.02347): AdamW on the gradients of ``scaled_gd``.

Both factors move from the old pair, as in peft.optimizers.create_riemannian_optimizer. In the authors' AdamWr the
variable that is to keep the old A is a view of the new one, so that B sees the new A: ``sequential``. Weight decay is
AdamW's, 0 unless asked for.
"""

from . import lora_adamw
from .adam import direction
from .scaled_gd import scaled


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, damping=1e-6, sequential=False):
    keep = 1 - lr * weight_decay
    d_A = direction(scaled(A, B, g_A, g_B, damping)[0], state, "A", betas, eps)
    moved = keep * A - lr * d_A
    d_B = direction(scaled(moved if sequential else A, B, g_A, g_B, damping)[1], state, "B", betas, eps)
    return moved, keep * B - lr * d_B


def vector_step(x, g, lr, state, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **_):
    return lora_adamw.vector_step(x, g, lr, state, betas, eps, weight_decay)

"""LoRA+ (Hayou, Ghosh and Yu, 2024, arXiv 2402.12354): Adam with the larger rate λη for B, η for A.

Read in peft.optimizers.create_loraplus_optimizer, which has no default ratio; λ = 16 is the paper's advice. The
vector goes with λη, as one-dimensional parameters do there.
"""

from .adam import direction


def step(A, B, g_A, g_B, s, lr, state, ratio=16.0, betas=(0.9, 0.999), eps=1e-8):
    return A - lr * direction(g_A, state, "A", betas, eps), B - ratio * lr * direction(g_B, state, "B", betas, eps)


def vector_step(x, g, lr, state, ratio=16.0, betas=(0.9, 0.999), eps=1e-8):
    return x - ratio * lr * direction(g, state, "vector", betas, eps)

"""LoRA by AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101): x ← (1 − ηλ) x − η m̂/(√v̂ + ε), decay before the step.

Order, and λ = 0.01, are those of torch.optim.AdamW. The vector is decayed as the factors are.
"""

from .adam import direction


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    keep = 1 - lr * weight_decay
    d_A, d_B = direction(g_A, state, "A", betas, eps), direction(g_B, state, "B", betas, eps)
    return keep * A - lr * d_A, keep * B - lr * d_B


def vector_step(x, g, lr, state, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    return (1 - lr * weight_decay) * x - lr * direction(g, state, "vector", betas, eps)

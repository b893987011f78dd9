"""LoRA (Hu et al., 2021, arXiv 2106.09685) by Adam on each factor; defaults of torch.optim.Adam."""

from .adam import direction


def step(A, B, g_A, g_B, s, lr, state, betas=(0.9, 0.999), eps=1e-8):
    return A - lr * direction(g_A, state, "A", betas, eps), B - lr * direction(g_B, state, "B", betas, eps)

"""ALLoRA (Huang and Balestriero, 2024, arXiv 2410.09692), from memory of the paper, not read: Adam, without dropout, on

    g_A  and  g_B,i / √(‖B_i‖ + 1/η²)    for every row i of B,

η being the paper's constant in place of LoRA's scale, not the learning rate. A second-hand reading of its section 4.2
has the norm of row i of B A, and the same division in the gradient of A, row by row of the full gradient.
"""

import numpy as np

from .adam import direction


def step(A, B, g_A, g_B, s, lr, state, eta=1.0, betas=(0.9, 0.999), eps=1e-8):
    g_B = g_B / np.sqrt(np.linalg.norm(B, axis=1, keepdims=True) + 1 / eta**2)
    return A - lr * direction(g_A, state, "A", betas, eps), B - lr * direction(g_B, state, "B", betas, eps)

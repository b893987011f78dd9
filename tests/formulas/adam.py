"""Adam's direction (Kingma and Ba, 2015, arXiv 1412.6980), for whatever is moved by it.

m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  direction m̂ / (√v̂ + ε) with m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ).
"""

import numpy as np


def direction(g, state, key, betas=(0.9, 0.999), eps=1e-8):
    t, m, v = state.get(key, (0, np.zeros_like(g), np.zeros_like(g)))
    t, m, v = t + 1, betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
    state[key] = t, m, v
    return m / (1 - betas[0] ** t) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)


def vector_step(x, g, lr, state, betas=(0.9, 0.999), eps=1e-8, **_):
    """What moves tensors that are no factors."""
    return x - lr * direction(g, state, "vector", betas, eps)

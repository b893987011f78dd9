"""Weighted least squares of a network with two adapted layers and a bias: gradients generic, by hand and by autograd.

    u_i = W_2 tanh(W_1 x_i) + c,    L = ½ Σ_i w_i ‖u_i − y_i‖²,    W_k = W_k0 + s_k B_k A_k

with W_1 (7, 5) of rank 3 and W_2 (4, 7) of rank 2, in float64. The gradients of the factors are s BᵀG and s G Aᵀ.
"""

from dataclasses import dataclass

import numpy as np

SHAPES = ((7, 5, 3), (4, 7, 2))


@dataclass(frozen=True)
class Problem:
    """Inputs x (N, 5), targets y (N, 4), weights w (N,), base weights and scales of the two layers."""

    x: np.ndarray
    y: np.ndarray
    w: np.ndarray
    bases: tuple[np.ndarray, np.ndarray]
    scales: tuple[float, float]

    @classmethod
    def random(cls, scales=(0.7, 1.3), seed=5, samples=11):
        draw = np.random.default_rng(seed).standard_normal
        bases = tuple(draw((m, n)) / np.sqrt(n) for m, n, _ in SHAPES)
        return cls(draw((samples, 5)), draw((samples, 4)), np.exp(0.5 * draw(samples)) / samples, bases, scales)

    def weights(self, pairs):
        return [W0 + s * B @ A for W0, s, (A, B) in zip(self.bases, self.scales, pairs, strict=True)]

    def weight_gradients(self, W, c):
        """G_1, G_2 and the gradient of c, at full weights."""
        h = np.tanh(self.x @ W[0].T)
        e = self.w[:, None] * (h @ W[1].T + c - self.y)
        return [((e @ W[1]) * (1 - h**2)).T @ self.x, e.T @ h], e.sum(0)

    def gradients(self, pairs, c):
        """(g_A, g_B) of both pairs and the gradient of c."""
        G, g_c = self.weight_gradients(self.weights(pairs), c)
        return [(s * B.T @ g, s * g @ A.T) for g, s, (A, B) in zip(G, self.scales, pairs, strict=True)], g_c

    def loss(self, W, c):
        """The loss of full weights: NumPy's arrays or torch's tensors, by what the weights are."""
        u = self.hidden(W[0]) @ W[1].T + c - self.like(self.y, c)
        return 0.5 * (self.like(self.w, c) * (u**2).sum(1)).sum()

    def hidden(self, W):
        z = self.like(self.x, W) @ W.T
        return np.tanh(z) if isinstance(z, np.ndarray) else z.tanh()

    @staticmethod
    def like(array, other):
        return array if isinstance(other, np.ndarray) else other.new_tensor(array)

    def pair_loss(self, pairs, c):
        """The loss of torch's factors, differentiable."""
        W = [self.like(W0, c) + s * B @ A for W0, s, (A, B) in zip(self.bases, self.scales, pairs, strict=True)]
        return self.loss(W, c)


def generic(seed=3):
    """Unbalanced pairs of full rank, and a vector."""
    draw = np.random.default_rng(seed).standard_normal
    return [(0.6 * draw((r, n)), 0.9 * draw((m, r)) / np.sqrt(r)) for m, n, r in SHAPES], 0.1 * draw(4)


def zero(seed=3):
    """The start of LoRA: a random A and B = 0."""
    pairs, c = generic(seed)
    return [(A, np.zeros_like(B)) for A, B in pairs], c

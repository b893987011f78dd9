"""A smooth loss of one product W = W0 + s·B A, on which optimisers of a pair are tried.

L = Σ_ij w_ij log cosh(W_ij - T_ij) ,    G = ∂L/∂W = w tanh(W - T)
"""

import torch

SCALE = 0.7


def normal(*size, generator):
    return torch.randn(*size, generator=generator, dtype=torch.float64)


class Product:
    """Factors A (r, n), B (m, r) of generic values, or of given ones, with their gradients."""

    def __init__(self, m=7, n=6, r=3, seed=3, scale=SCALE, factors=None):
        generator = torch.Generator().manual_seed(seed)
        self.W0, self.target = normal(m, n, generator=generator), normal(m, n, generator=generator)
        self.weights = 0.5 + torch.rand(m, n, generator=generator, dtype=torch.float64)
        A, B = normal(r, n, generator=generator), normal(m, r, generator=generator)
        self.A, self.B = (torch.nn.Parameter(x.clone()) for x in factors or (A, B))
        self.scale = scale

    @property
    def group(self):
        return {"params": [self.A, self.B], "scale": self.scale, "name": "pair"}

    def weight(self):
        """W, (m, n)."""
        return (self.W0 + self.scale * self.B @ self.A).detach()

    def loss(self, W):
        return (self.weights * torch.log(torch.cosh(W - self.target))).sum()

    def gradient(self):
        """G, (m, n)."""
        return self.weights * torch.tanh(self.weight() - self.target)

    def closure(self):
        G = self.gradient()
        self.A.grad, self.B.grad = self.scale * self.B.detach().mT @ G, self.scale * G @ self.A.detach().mT
        return self.loss(self.weight())

    def other_factors(self, seed=5):
        """A pair (T A, B T⁻¹) of the same product."""
        r = len(self.A)
        T = torch.eye(r, dtype=torch.float64) + normal(r, r, generator=torch.Generator().manual_seed(seed)) / 2
        return T @ self.A.detach(), self.B.detach() @ torch.linalg.inv(T)


def path(make, steps=8, **settings):
    """The weights W after each of some steps of an optimiser ``make([group])``."""
    product = Product(**settings)
    optimizer = make([product.group])
    weights = []
    for _ in range(steps):
        optimizer.step(product.closure)
        weights.append(product.weight())
    return torch.stack(weights)

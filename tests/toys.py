"""Small systems with known answers on which every integrator is tried.

``Rotating``   W' = Ω₁W + WΩ₂ + εE + …: of rank r but for ε, singular values as small as one likes, exact solution.
``Layers``     a two-layer network with low-rank weights and a bias: a smooth gradient flow on a product of spaces.
``Sensing``    residuals ⟨M_i, Y⟩ - b_i, bent by a smooth function on demand, for one matrix of fixed rank.
``Linear``     residuals D z - b in a flat space: the linear test equation when D is diagonal.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from pinn_odelora.flows import balanced_flow
from pinn_odelora.integrators import Local
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import LowRank, retract
from pinn_odelora.manifolds.projected import Thin, project


def normal(*size, generator):
    return torch.randn(*size, generator=generator, dtype=torch.float64)


def point(m, n, sigma, generator):
    """A matrix of given singular values with random singular vectors."""
    U, V = (linalg.qr(normal(size, len(sigma), generator=generator)).Q for size in (m, n))
    return LowRank(U, torch.as_tensor(sigma, dtype=torch.float64), V.mT.contiguous())


def ambient(y):
    """A point or a slope as one vector, its matrices formed."""
    return torch.cat([(x.matrix() if isinstance(x, LowRank | Thin) else x).flatten() for x in y])


@dataclass
class Rotating:
    """W' = Ω₁W + WΩ₂ + εE + e^{tΩ₁} K e^{tΩ₂} with skew Ω, state [W, t].

    K, positive in the singular spaces of the start, keeps the rank and makes small singular values grow at its own
    rate; the part of εE that is normal to the manifold does not keep the rank.
    """

    left: Tensor
    right: Tensor
    E: Tensor
    eps: float
    K: Tensor

    @classmethod
    def random(cls, start, eps, growth, generator):
        (m, r), n = start.U.shape, start.V.shape[1]
        skew = lambda size: (X := normal(size, size, generator=generator)) - X.mT
        E, root = normal(m, n, generator=generator), normal(r, r, generator=generator)
        K = start.U @ root @ root.mT @ start.V
        return cls(skew(m) / 12, skew(n) / 12, E / linalg.matrix_norm(E), eps, growth * K / linalg.matrix_norm(K))

    def turned(self, W, time):
        return linalg.matrix_exp(time * self.left) @ W @ linalg.matrix_exp(time * self.right)

    def field(self, W, t):
        return self.left @ W + W @ self.right + self.eps * self.E + self.turned(self.K, t)

    def velocity(self, y):
        """On the manifold: the field's tangent part."""
        W, t = y
        return [project(W, self.field(W.matrix(), t)), torch.ones_like(t)]

    def factors_velocity(self, y):
        """State [A, B, t]: the balanced flow of a loss with minus the field for gradient."""
        A, B, t = y
        G = -self.field(B @ A, t)
        return [*balanced_flow(Factors(A, B), Factors(B.mT @ G, G @ A.mT), 1.0), torch.ones_like(t)]

    def exact(self, W, time):
        """The solution in full matrices, from the exponential of the linear system and its constant term."""
        (m, n) = W.shape
        eye = lambda size: torch.eye(size, dtype=W.dtype)
        M = W.new_zeros(m * n + 1, m * n + 1)
        M[:-1, :-1] = torch.kron(self.left, eye(n)) + torch.kron(eye(m), self.right.mT.contiguous())
        M[:-1, -1] = self.eps * self.E.flatten()
        whole = linalg.matrix_exp(time * M) @ torch.cat([W.flatten(), W.new_ones(1)])
        return whole[:-1].view(m, n) + time * self.turned(self.K, time)


@dataclass
class Layers:
    """L = ½ mean |tanh(W₂ tanh(W₁ x + b)) - t|², state [W₁, W₂, b]."""

    x: Tensor
    t: Tensor
    start: list

    @classmethod
    def random(cls, generator, rank=2, sizes=(5, 7, 6)):
        inside, hidden, out = sizes
        x, t = normal(inside, 20, generator=generator), 0.5 * normal(out, 20, generator=generator)
        sigma = torch.linspace(1.5, 0.8, rank)
        weights = [point(hidden, inside, sigma, generator), point(out, hidden, sigma, generator)]
        return cls(x, t, [*weights, 0.3 * normal(hidden, generator=generator)])

    def gradients(self, weights):
        """∂L/∂W₁, ∂L/∂W₂ and ∂L/∂b at full matrices."""
        leaves = [w.detach().requires_grad_(True) for w in weights]
        W1, W2, b = leaves
        with torch.enable_grad():
            output = torch.tanh(W2 @ torch.tanh(W1 @ self.x + b[:, None]))
            loss = (output - self.t).square().sum(dim=0).mean() / 2
        return torch.autograd.grad(loss, leaves)

    def dense(self, y):
        """The same velocity of full matrices: the flow of full fine-tuning."""
        return [-g for g in self.gradients(y)]

    def velocity(self, y):
        *G, g = self.gradients([x.matrix() if isinstance(x, LowRank) else x for x in y])
        return [*(project(x, -gradient) for x, gradient in zip(y, G, strict=False)), -g]

    def factors_velocity(self, y, scale=1.0):
        """State [A₁, B₁, A₂, B₂, b]."""
        pairs, b = [Factors(*y[0:2]), Factors(*y[2:4])], y[4]
        *G, g = self.gradients([*(scale * p.B @ p.A for p in pairs), b])
        moves = [
            balanced_flow(p, Factors(scale * p.B.mT @ H, scale * H @ p.A.mT), scale)
            for p, H in zip(pairs, G, strict=True)
        ]
        return [*moves[0], *moves[1], -g]

    def factors_start(self, scale=1.0):
        W1, W2, b = self.start
        return [*W1.factors(scale), *W2.factors(scale), b]


@dataclass
class Sensing:
    """Residuals r_i = ⟨M_i, Y⟩ + c sin⟨M_i, Y⟩ - b_i at Y of rank r."""

    M: Tensor
    b: Tensor
    bent: float = 0.0

    @classmethod
    def random(cls, number, m, n, generator, bent=0.0):
        return cls(normal(number, m, n, generator=generator) / number**0.5, normal(number, generator=generator), bent)

    def residuals_at(self, Y):
        x = torch.einsum("imn,mn->i", self.M, Y)
        return x + self.bent * torch.sin(x) - self.b

    def gradient(self, Y):
        x = torch.einsum("imn,mn->i", self.M, Y)
        return torch.einsum("i,imn->mn", self.residuals_at(Y) * (1 + self.bent * torch.cos(x)), self.M)

    def residuals(self, y):
        return self.residuals_at(y.matrix())

    def linearise(self, y):
        frame = y.frame
        x = torch.einsum("imn,mn->i", self.M, y.matrix())
        slopes = (1 + self.bent * torch.cos(x))[:, None, None] * self.M
        return Local(
            self.residuals(y),
            torch.stack([frame.coordinates(D) for D in slopes]),
            lambda z: retract(y, frame, z).point,
            frame.vector,
            frame.coordinates,
        )

    def velocity(self, y):
        """For explicit schemes, state [Y]."""
        return [project(x, -self.gradient(x.matrix())) for x in y]


@dataclass
class Linear:
    """Residuals D z - b in the flat space of z."""

    D: Tensor
    b: Tensor

    def residuals(self, y):
        return self.D @ y - self.b

    def linearise(self, y):
        same = lambda z: z
        return Local(self.residuals(y), self.D, lambda z: y + z, same, same)


def followed(step, y, steps):
    """The state after a number of steps ``y = step(y)``."""
    for _ in range(steps):
        y = step(y)
    return y

"""The damped least-squares solution by preconditioned conjugate gradients, for a J that is too large to be formed.

CGLS (Hestenes and Stiefel, 1952; Björck, 1996, 7.4) on  (JᵀJ + μ) z = Jᵀ w : one product with J and one with Jᵀ an
iteration, no matrix of P × P or R × R numbers. The eigenvalues of JᵀJ of a network that solves an equation fall off
fast, so that few of them are above μ. A Nyström approximation from a random sketch Ω (P, l) finds those,

    JᵀJ ≈ Y (ΩᵀY)⁺ Yᵀ = U Λ Uᵀ ,        Y = Jᵀ(J Ω) ,

and preconditions the rest away (Frangella, Tropp and Udell, 2023, arXiv 2110.02820):

    M⁻¹ = (λ_l + μ) U (Λ + μ)⁻¹ Uᵀ + (I - U Uᵀ) .

The sketch costs two products with l vectors at once, serves every solution of a step, and grows until its smallest
eigenvalue λ_l is well below μ, or to ``largest`` columns.

The iteration ends where the residual s has sᵀM⁻¹s below ``tolerance``² of its first value, or after ``iterations``.
As M is close to JᵀJ + μ this is the error in the energy norm, in which weak directions count by what they take off the
loss; the Euclidean norm of s sees the strong ones only. What is then at hand is a damped solution on a smaller space: a
descent direction all the same, whose promise the integrator judges.
"""

from __future__ import annotations

import torch
from torch import Tensor, linalg

from pinn_odelora.linalg.damped import Operator, SolverUsed

FIRST = 64
"""Columns of the first sketch."""
BELOW = 0.3
"""The sketch is large enough where λ_l is below this part of μ."""
SEED = 0
"""Every sketch is drawn from the same numbers, so that a step is a function of where it starts."""


class Nystrom:
    """U Λ Uᵀ ≈ JᵀJ from a sketch that grows on demand.

    Args:
        J: (R, P).
        largest: columns of the sketch at most.
    """

    def __init__(self, J: Operator | Tensor, largest: int) -> None:
        self.J = J
        self.largest = min(largest, J.shape[1])
        self._generator = torch.Generator().manual_seed(SEED)
        self._sketch: Tensor | None = None
        self._image: Tensor | None = None
        self.values = torch.empty(0)
        self.vectors = torch.empty(0, 0)
        self.last = float("inf")

    @property
    def columns(self) -> int:
        """l, those of the sketch."""
        return 0 if self._sketch is None else self._sketch.shape[1]

    def prepare(self, mu: float, like: Tensor) -> None:
        """Let the sketch grow until λ_l is below μ by ``BELOW``, or there is no room."""
        while self.columns < self.largest and not self.last <= BELOW * mu:
            self._grow(min(max(FIRST, self.columns), self.largest - self.columns), like)

    def solve(self, v: Tensor, mu: float) -> Tensor:
        """M⁻¹ v."""
        if not self.columns:
            return v
        inside = self.vectors.mT @ v
        return v + self.vectors @ ((self.last + mu) / (self.values + mu) * inside - inside)

    def _grow(self, number: int, like: Tensor) -> None:
        new = torch.randn(self.J.shape[1], number, generator=self._generator, dtype=torch.float64).to(like)
        if self._sketch is not None:
            new -= self._sketch @ (self._sketch.mT @ new)
        new = linalg.qr(new).Q
        image = self.J.mT @ (self.J @ new)
        self._sketch = new if self._sketch is None else torch.cat([self._sketch, new], dim=1)
        self._image = image if self._image is None else torch.cat([self._image, image], dim=1)
        self._decompose()

    def _decompose(self) -> None:
        core = self._sketch.mT @ self._image
        w, Q = linalg.eigh((core + core.mT) / 2)
        # What is below is rounding; the sketch then holds all that JᵀJ has.
        seen = w > len(w) * torch.finfo(w.dtype).eps * w[-1].clamp(min=0)
        self.vectors, sigma, _ = linalg.svd(self._image @ (Q[:, seen] / w[seen].sqrt()), full_matrices=False)
        self.values = sigma.square()
        self.last = float(self.values[-1]) if bool(seen.all()) else 0.0


class ConjugateGradients:
    """``S = ConjugateGradients(J); S(w, mu)``.

    Args:
        J: (R, P), of which products and the diagonal of JᵀJ are asked.
        tolerance: of the error, against the solution, both in the energy norm as the preconditioner knows it.
        iterations: for a solution, at most.
        largest: columns of the sketch at most; 0 for no preconditioner.
    """

    used = SolverUsed("cg", torch.float64)

    def __init__(self, J: Operator, tolerance: float = 1e-3, iterations: int = 200, largest: int = 256) -> None:
        self.J = J
        self.tolerance = tolerance
        self.limit = iterations
        self.largest = float(J.squares().max())
        self.preconditioner = Nystrom(J, largest)
        self.iterations = 0

    def __call__(self, w: Tensor, mu: float) -> Tensor:
        s = self.J.mT @ w
        self.preconditioner.prepare(mu, s)
        z, r, p, rho, first = torch.zeros_like(s), w, None, 0.0, None
        for _ in range(self.limit):
            y = self.preconditioner.solve(s, mu)
            rho, before = float(s @ y), rho
            first = rho if first is None else first
            if not rho > self.tolerance**2 * first:
                break
            p = y if p is None else y + (rho / before) * p
            Jp = self.J @ p
            alpha = rho / float(Jp @ Jp + mu * (p @ p))
            z, r = z + alpha * p, r - alpha * Jp
            s = self.J.mT @ r - mu * z
            self.iterations += 1
        return z

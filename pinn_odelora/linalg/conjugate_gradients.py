"""The damped least-squares solution by preconditioned conjugate gradients, for a J too large to be formed.

CGLS (Hestenes and Stiefel, 1952; Björck, 1996, 7.4) on  (JᵀJ + μ) z = Jᵀ w : one product with J and one with Jᵀ per
iteration, and no P × P or R × R matrix. For a physics-informed network the eigenvalues of JᵀJ decay fast, so that few
of them exceed μ. A Nyström approximation from a random sketch Ω (P, l) captures these,

    JᵀJ ≈ Y (ΩᵀY)⁺ Yᵀ = U Λ Uᵀ ,        Y = Jᵀ(J Ω) ,

and gives the preconditioner (Frangella, Tropp and Udell, 2023, arXiv 2110.02820)

    M⁻¹ = (λ_l + μ) U (Λ + μ)⁻¹ Uᵀ + (I - U Uᵀ) .

The sketch costs two products with l vectors at once, is shared by all solutions of a step, and grows until its smallest
eigenvalue λ_l is well below μ, or to ``largest`` columns.

The iteration ends when sᵀM⁻¹s of the residual s falls below ``tolerance``² times its initial value, or after
``iterations``. Since M is close to JᵀJ + μ this measures the error in the energy norm, which weights every direction by
its contribution to the loss; the Euclidean norm of s is dominated by the stiff directions. An iterate before
convergence is the damped solution on a Krylov space, still a descent direction, and the integrator checks its gain.
"""

from __future__ import annotations

import torch
from torch import Tensor, linalg

from pinn_odelora.linalg.damped import Operator, SolverUsed

FIRST = 64
"""Columns of the first sketch."""
BELOW = 0.3
"""The sketch is large enough when λ_l is below this fraction of μ."""
SEED = 0
"""All sketches use the same random numbers, so that a step is a function of its starting point."""


class Nystrom:
    """U Λ Uᵀ ≈ JᵀJ from a sketch that grows on demand.

    Args:
        J: (R, P).
        largest: most columns of the sketch.
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
        """l, the number of columns of the sketch."""
        return 0 if self._sketch is None else self._sketch.shape[1]

    def prepare(self, mu: float, like: Tensor) -> None:
        """Enlarge the sketch until λ_l ≤ ``BELOW`` · μ, or it has ``largest`` columns.

        Args:
            mu: μ.
            like: a vector (P,) with the dtype and device of the sketch.
        """
        while self.columns < self.largest and not self.last <= BELOW * mu:
            self._grow(min(max(FIRST, self.columns), self.largest - self.columns), like)

    def solve(self, v: Tensor, mu: float) -> Tensor:
        """M⁻¹ v for v (P,)."""
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
        # Smaller eigenvalues are rounding errors; the sketch then contains the whole range of JᵀJ.
        seen = w > len(w) * torch.finfo(w.dtype).eps * w[-1].clamp(min=0)
        self.vectors, sigma, _ = linalg.svd(self._image @ (Q[:, seen] / w[seen].sqrt()), full_matrices=False)
        self.values = sigma.square()
        self.last = float(self.values[-1]) if bool(seen.all()) else 0.0


class ConjugateGradients:
    """``S = ConjugateGradients(J); S(w, mu)`` is the damped solution (P,) for w (R,).

    Args:
        J: (R, P), an operator with products and the diagonal of JᵀJ.
        tolerance: relative error in the energy norm, as estimated by the preconditioner.
        iterations: most iterations per solution.
        largest: most columns of the sketch; 0 for no preconditioner.
    """

    used = SolverUsed("cg", torch.float64)

    def __init__(self, J: Operator, tolerance: float = 1e-3, iterations: int = 200, largest: int = 256) -> None:
        self.J = J
        self.tolerance = tolerance
        self.limit = iterations
        self.largest, self.trusted = float(J.squares().max()), 0.0
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

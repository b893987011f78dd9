"""The damped least-squares solution  S(w) = (JᵀJ + μ)⁻¹ Jᵀ w  for one J (R, P), several μ and several w.

Three ways to the same vector, by what they cost and how far they can be trusted:

* ``normal``: Cholesky factor of JᵀJ + μ, P × P;
* ``kernel``: S(w) = Jᵀ (J Jᵀ + μ)⁻¹ w, Cholesky factor of an R × R matrix, for fewer rows than columns;
* ``qr``: QR factor of the stacked matrix [J; √μ I], about four times dearer.

The product with Jᵀ squares the condition number: rounding puts an error of about ε λ_max on the small eigenvalues, ε
that of the dtype, λ_max the largest. Where μ is not above that error the first two have lost the directions that μ is
there to damp, or cannot be factored at all, and the third is used instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, linalg

from pinn_odelora.linearisation.gram import gram

TRUSTED = 10.0
"""How far μ must be above ε λ_max for the Gram matrix to be factored."""


class Damped:
    """``S = Damped(J); S(w, mu)``. The Gram matrix is formed once, a factor kept for as long as μ stays.

    Args:
        J: (R, P), float64.
    """

    def __init__(self, J: Tensor) -> None:
        self.J = J
        self.form = "normal" if J.shape[1] <= J.shape[0] else "kernel"
        self.G = gram(J) if self.form == "normal" else gram(J.mT)
        self._kept: tuple[float, str, Callable[[Tensor], Tensor]] | None = None

    @property
    def largest(self) -> float:
        """A lower bound of λ_max within the trace: the largest diagonal entry of the Gram matrix."""
        return float(self.G.diagonal().max())

    @property
    def used(self) -> str:
        """The way of the last solution."""
        return self.form if self._kept is None else self._kept[1]

    def __call__(self, w: Tensor, mu: float) -> Tensor:
        if self._kept is None or self._kept[0] != mu:
            self._kept = (mu, *self._factored(mu))
        return self._kept[2](w)

    def _factored(self, mu: float) -> tuple[str, Callable[[Tensor], Tensor]]:
        if mu > TRUSTED * torch.finfo(self.G.dtype).eps * float(self.G.trace()):
            M = self.G.clone()
            M.diagonal().add_(mu)
            L, failed = linalg.cholesky_ex(M)
            if not bool(failed):
                return self.form, self._by_cholesky(L)
        damping = math.sqrt(mu) * torch.eye(self.J.shape[1], dtype=self.J.dtype, device=self.J.device)
        Q, R = linalg.qr(torch.cat([self.J, damping]))
        top = Q[: len(self.J)]
        return "qr", lambda w: linalg.solve_triangular(R, (top.mT @ w)[:, None], upper=True)[:, 0]

    def _by_cholesky(self, L: Tensor) -> Callable[[Tensor], Tensor]:
        solve = lambda b: torch.cholesky_solve(b[:, None], L)[:, 0]
        if self.form == "kernel":
            return lambda w: self.J.mT @ solve(w)
        return lambda w: solve(self.J.mT @ w)

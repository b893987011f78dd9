"""The damped least-squares solution  S(w) = (JᵀJ + μ)⁻¹ Jᵀ w  for one J (R, P), several μ and several w.

Solver variants, by cost and numerical stability:

* ``normal``: Cholesky factor of JᵀJ + μ, P × P;
* ``kernel``: S(w) = Jᵀ (J Jᵀ + μ)⁻¹ w, Cholesky factor of an R × R matrix, for fewer rows than columns;
* ``qr``: QR factor of the stacked matrix [J; √μ I], about four times as expensive; for fewer rows than columns, with
  the QR factorisation Jᵀ = U T, it is U times the solution for Tᵀ, which is R × R;
* ``eigen``: the kernel form by the eigendecomposition of J Jᵀ, if J itself is not formed;
* ``cg``: conjugate gradients, see ``conjugate_gradients``, if no matrix of that size is formed.

Forming a Gram matrix squares the condition number: rounding perturbs its small eigenvalues by about ε λ_max, with ε the
machine precision and λ_max ≤ tr JᵀJ its largest eigenvalue. If μ is not above that error in float64, the first two
forms lose the directions that μ damps, or the factorisation fails, and ``qr`` or ``eigen`` is used instead. If μ is
far above it even in float32, Gram matrix and factor are formed in float32, in half the time, with iterative refinement
by residuals in float64 down to 1e-10 of the right-hand side. If the refinement does not converge, float64 is used.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, linalg

from pinn_odelora.linalg.cholesky import factored, solution
from pinn_odelora.linalg.gram import gram

TRUSTED = 10.0
"""A Gram matrix is factored in float64 if μ is at least so many times ε tr JᵀJ."""
SINGLE = 30.0
"""The same for float32; each refinement reduces the residual by about this factor."""
REFINEMENTS = 8
ENOUGH = 1e-10
"""Residual relative to the right-hand side at which the refinement ends."""


class Operator(Protocol):
    """A J (R, P) that is not formed: the products ``J @ z`` and ``J.mT @ w``, and what else the solvers use."""

    shape: tuple[int, int]

    def __matmul__(self, z: Tensor) -> Tensor: ...

    @property
    def mT(self) -> Operator:
        """Jᵀ."""

    def squares(self) -> Tensor:
        """The diagonal of JᵀJ, (P,)."""

    @property
    def has_kernel(self) -> bool:
        """Whether J Jᵀ is available without J."""

    def kernel(self) -> Tensor:
        """J Jᵀ, (R, R)."""

    @property
    def dtype(self) -> torch.dtype:
        """In which the kernel is computed."""


class SolverUsed(NamedTuple):
    """The form of a solution, and the dtype of its factor."""

    form: str
    dtype: torch.dtype

    @property
    def bits(self) -> float:
        """Bits of the factor's dtype; NaN for conjugate gradients, which use no factor."""
        return math.nan if self.form == "cg" else torch.finfo(self.dtype).bits

    @property
    def fallback(self) -> bool:
        """Whether μ was too small, compared with rounding errors, for a Cholesky factor."""
        return self.form in ("qr", "eigen")


class Solver(Protocol):
    """The map S(w) of one J: ``solver(w, mu)`` is (P,) for w (R,).

    Attributes:
        largest: the largest diagonal entry of JᵀJ.
        trusted: the least μ for which a Cholesky factor of float64 serves; 0 where none is formed.
    """

    largest: float
    trusted: float

    @property
    def used(self) -> SolverUsed | None:
        """Form and dtype of the last solution; None before the first."""

    def __call__(self, w: Tensor, mu: float) -> Tensor: ...


class Damped:
    """``S = Damped(J); S(w, mu)`` is the damped solution (P,) for w (R,).

    Gram matrices are formed once, and a factor is reused while μ is unchanged.

    Args:
        J: (R, P), float64; or an operator with ``has_kernel``, of which only the kernel, R × R, is formed, with the
            rounding errors of its dtype.
        single: whether float32 may be used if it is accurate enough.
    """

    def __init__(self, J: Tensor | Operator, single: bool = True) -> None:
        self.J = J
        formed = isinstance(J, Tensor)
        self.form = "normal" if formed and J.shape[1] <= J.shape[0] else "kernel"
        self.single = single
        squares = linalg.vector_norm(J, dim=0).square() if formed else J.squares()
        self.trace, self.largest = float(squares.sum()), float(squares.max())
        self.trusted = TRUSTED * torch.finfo(J.dtype).eps * self.trace
        self._grams: dict[torch.dtype, Tensor] = {} if formed else {torch.float64: J.kernel()}
        self._eigen: tuple[Tensor, ...] = ()
        self._kept: tuple[float, SolverUsed, tuple[Tensor, ...]] | None = None

    @property
    def used(self) -> SolverUsed | None:
        """Form and dtype of the last solution; None before the first."""
        return None if self._kept is None else self._kept[1]

    def __call__(self, w: Tensor, mu: float) -> Tensor:
        if self._kept is None or self._kept[0] != mu:
            self._kept = (mu, *self._factored(mu))
        _, solver, factors = self._kept
        if solver.form == "qr":
            Q, R, *U = factors
            x = linalg.solve_triangular(R, (Q.mT @ w)[:, None], upper=True)[:, 0]
            return U[0] @ x if U else x
        if solver.form == "eigen":
            values, Q = factors
            return self.J.mT @ (Q @ ((Q.mT @ w) / (values.clamp(min=0) + mu)))
        if solver.dtype == torch.float32:
            return self._refined(w, mu, *factors)
        return self._outer(_solve(*factors, self._inner(w)))

    def _factored(self, mu: float) -> tuple[SolverUsed, tuple[Tensor, ...]]:
        least = {torch.float32: SINGLE * torch.finfo(torch.float32).eps * self.trace, torch.float64: self.trusted}
        for dtype in (torch.float32, torch.float64) if self.single else (torch.float64,):
            if mu >= least[dtype]:
                L = factored(self._gram(mu, dtype))
                if L is not None:
                    return SolverUsed(self.form, dtype), (L,)
        if not isinstance(self.J, Tensor):
            self._eigen = self._eigen or tuple(linalg.eigh(self._grams[torch.float64]))
            return SolverUsed("eigen", torch.float64), self._eigen
        if self.form == "normal":
            return SolverUsed("qr", torch.float64), _stacked(self.J, mu)
        U, T = linalg.qr(self.J.mT)
        return SolverUsed("qr", torch.float64), (*_stacked(T.mT, mu), U)

    def _gram(self, mu: float, dtype: torch.dtype) -> Tensor:
        """The damped Gram matrix."""
        if dtype not in self._grams:
            self._grams[dtype] = self._formed(dtype)
        M = self._grams[dtype].clone()
        M.diagonal().add_(mu)
        return M

    def _formed(self, dtype: torch.dtype) -> Tensor:
        if not isinstance(self.J, Tensor):
            return self._grams[torch.float64].to(dtype)
        J = self.J.to(dtype)
        return gram(J if self.form == "normal" else J.mT)

    def _inner(self, w: Tensor) -> Tensor:
        """The right-hand side of the damped system, for the present form."""
        return self.J.mT @ w if self.form == "normal" else w

    def _outer(self, x: Tensor) -> Tensor:
        """S(w) from the solution of the damped system."""
        return x if self.form == "normal" else self.J.mT @ x

    def _product(self, x: Tensor, mu: float) -> Tensor:
        """The damped Gram matrix times x, in float64, without forming the matrix."""
        J = self.J
        if not isinstance(J, Tensor):
            return self._grams[torch.float64] @ x + mu * x
        return (J.mT @ (J @ x) if self.form == "normal" else J @ (J.mT @ x)) + mu * x

    def _refined(self, w: Tensor, mu: float, L: Tensor) -> Tensor:
        b = self._inner(w)
        x, residual = torch.zeros_like(b), b
        for _ in range(REFINEMENTS):
            x = x + _solve(L, residual)
            residual = b - self._product(x, mu)
            if float(residual.norm()) <= ENOUGH * float(b.norm()):
                return self._outer(x)
        self.single, self._kept = False, None
        return self(w, mu)


def _stacked(J: Tensor, mu: float) -> tuple[Tensor, Tensor]:
    """The QR factors of [J; √μ I], with Q restricted to the rows of J."""
    Q, R = linalg.qr(torch.cat([J, math.sqrt(mu) * torch.eye(J.shape[1], dtype=J.dtype, device=J.device)]))
    return Q[: len(J)], R


def _solve(L: Tensor, b: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ b in the dtype of b."""
    return solution(L, b.to(L.dtype)).to(b.dtype)

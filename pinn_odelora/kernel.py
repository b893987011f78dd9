"""The neural tangent kernel of a linearised system, K = J Jᵀ, by its spectrum.

With J = ∂r/∂z in the coordinates z of what is trained, K = Σ_i λ_i q_i q_iᵀ says how training removes a residual
(Jacot, Gabriel and Hongler, 2018, arXiv 1806.07572): to first order the gradient flow of ½‖r‖² turns the component
q_iᵀr into exp(-λ_i t) q_iᵀr, and an implicit step of size h into q_iᵀr / (1 + h λ_i). From it follow

    κ = λ_1 / λ_p                        the condition number, p = min(R, P) the largest rank that K can have,
    a_k = Σ_{i ≤ k} (q_iᵀr)² / ‖r‖²      the alignment of the residual with the first k eigenvectors,
    d(μ) = tr K (K + μ)⁻¹                the effective dimension: directions that a penalty μ = 1/h lets a step reduce.

The diagonal block of a term has a spectrum of its own, that of the residuals of this term alone.

Where J fits, the spectrum is whole and exact: λ_i = σ_i² and q_i from a thin singular value decomposition of J, so that
small λ_i have no errors of the size of rounding in K. Beyond, the leading eigenpairs come from Lanczos' method with
products J (Jᵀw), which needs neither J nor K (``scipy.sparse.linalg.eigsh``; Lehoucq, Sorensen and Yang, 1998); their
errors are of the size of 1e-16 λ_1. With the trace, which the linearisation has exactly, d(μ) is then known between two
bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, linalg

from pinn_odelora.errors import unknown
from pinn_odelora.linearisation import Coordinates, Linearisation
from pinn_odelora.linearisation.coordinates import Frames
from pinn_odelora.rules import null, whole

EXACT = 2000
"""min(R, P) up to which the spectrum is whole."""
FORMED = 2.0**28
"""Most bytes of a J that is formed for it."""
LEADING = 64
"""Eigenpairs beyond."""
ALL = "all"
"""The name of the whole kernel among those of the terms."""


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of K, or its leading part.

    Attributes:
        values: λ_1 ≥ λ_2 ≥ …, (k,), float64 on the CPU.
        vectors: q_1, q_2, …, (R, k), orthonormal.
        residual: r, (R,), to which the kernel belongs.
        trace: tr K, of all eigenvalues.
        rank: p = min(R, P), the most eigenvalues that can be other than zero.
    """

    values: Tensor
    vectors: Tensor
    residual: Tensor
    trace: float
    rank: int

    @property
    def complete(self) -> bool:
        """Whether all eigenvalues that can be other than zero are known."""
        return len(self.values) == self.rank

    @property
    def condition(self) -> float:
        """κ = λ_1 / λ_p; infinite where λ_p is zero, NaN where it is not known."""
        if not self.complete:
            return math.nan
        return float(self.values[0] / self.values[-1]) if self.values[-1] > 0 else math.inf

    @property
    def alignment(self) -> Tensor:
        """a_1 ≤ a_2 ≤ …, (k,); NaN where the residual vanishes."""
        return (self.vectors.mT @ self.residual).square().cumsum(0) / self.residual.square().sum()

    def effective_dimension(self, mu: float) -> tuple[float, float]:
        """Bounds on d(μ), equal where the spectrum is whole.

        The eigenvalues that are not known sum to τ = tr K - Σ_i λ_i, and none is above the last one that is, λ_k. As
        λ/(λ + μ) is concave in λ, τ counts most where it is spread over all p - k of them, and least where it is
        gathered in eigenvalues λ_k.

        Args:
            mu: the penalty μ, positive; for a step of size h it is 1/h.
        """
        known = float((self.values / (self.values + mu)).sum())
        rest, left = self.trace - float(self.values.sum()), self.rank - len(self.values)
        if not left or rest <= 0:
            return known, known
        return known + rest / (float(self.values[-1]) + mu), known + rest / (rest / left + mu)


class Kernel:
    """K = J Jᵀ, or its diagonal block of a term, as an operator: ``K @ w``, ``K.dense()``, ``K.spectrum()``.

    Args:
        linearised: the linearised system.
        frames: coordinates of its variables, see ``Coordinates``; without one a variable moves freely.
        term: name of the term; None for the whole kernel.
        memory: bytes for the parts of J; if they need more, they are recomputed for every product.

    Attributes:
        shape: (R, R).
        residual: r, (R,), float64.

    Raises:
        InputError: for an unknown term.
    """

    def __init__(
        self, linearised: Linearisation, frames: Frames | None = None, term: str | None = None, memory: float = 2.0**29
    ) -> None:
        if term is not None and term not in linearised.terms:
            raise unknown("term", term, linearised.terms)
        self.J = Coordinates(linearised, frames or {}, memory)
        self.at = slice(0, linearised.rows) if term is None else linearised.terms[term]
        self.shape = (self.at.stop - self.at.start,) * 2
        self.residual = linearised.r[self.at].detach().double()

    def __matmul__(self, w: Tensor) -> Tensor:
        """K w, (R,) or (R, vectors)."""
        padded = self.residual.new_zeros(self.J.shape[0], *w.shape[1:])
        padded[self.at] = w.to(padded)
        return (self.J @ (self.J.mT @ padded))[self.at]

    def trace(self) -> float:
        """tr K, exactly."""
        return float(self.J.diagonal()[self.at].sum())

    def dense(self) -> Tensor:
        """K, (R, R), float64."""
        J = self.J.dense()[self.at]
        return J @ J.mT

    def spectrum(self, leading: int | None = None) -> Spectrum:
        """The whole spectrum, or its leading part.

        Args:
            leading: how many eigenpairs; None is all of them where J fits and has at most 2,000 rows or columns, and 64
                beyond.

        Raises:
            InputError: if ``leading`` is not a whole number of at least 1.
        """
        leading = (whole(1) | null).check("leading", leading)
        R, P = self.shape[0], self.J.shape[1]
        rank = min(R, P)
        if leading is None and rank <= EXACT and 8 * self.J.shape[0] * P <= FORMED:
            U, sigma, _ = linalg.svd(self.J.dense()[self.at], full_matrices=False)
            values = sigma.square()
            return self._spectrum(values, U, float(values.sum()), rank)
        # ARPACK finds fewer pairs than there are rows.
        k = min(leading or LEADING, rank, R - 1)
        if not k:
            return self._spectrum(self.dense()[0], self.residual.new_ones(1, 1), self.trace(), rank)
        values, vectors = eigsh(self._operator(), k, which="LA", v0=np.ones(R))
        order = np.argsort(-values)
        values = torch.from_numpy(values[order]).clamp(min=0)
        return self._spectrum(values, torch.from_numpy(vectors[:, order].copy()), self.trace(), rank)

    def _operator(self) -> LinearOperator:
        def product(w: np.ndarray) -> np.ndarray:
            return (self @ torch.from_numpy(w.reshape(-1))).cpu().numpy()

        return LinearOperator(self.shape, matvec=product, dtype=np.float64)

    def _spectrum(self, values: Tensor, vectors: Tensor, trace: float, rank: int) -> Spectrum:
        return Spectrum(values.cpu(), vectors.cpu(), self.residual.cpu(), trace, rank)


def spectra(
    linearised: Linearisation, frames: Frames | None = None, leading: int | None = None
) -> Mapping[str, Spectrum]:
    """The spectrum of every term by name, and that of the whole kernel under ``all``; for the arguments see ``Kernel``.

    Args:
        linearised: the linearised system.
        frames: coordinates of its variables.
        leading: how many eigenpairs, see ``Kernel.spectrum``.
    """
    terms = {name: name for name in linearised.terms} if len(linearised.terms) > 1 else {}
    return {key: Kernel(linearised, frames, term).spectrum(leading) for key, term in {ALL: None, **terms}.items()}

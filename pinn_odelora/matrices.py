"""Matrices as points: a linear functional  u(M) = ⟨M, W⟩ = Σ_kl M_kl W_kl  of m × n matrices M, and where it is asked.

A point is a matrix M; its coordinates are the m·n entries, row by row. Over the unit matrices E_kl the values of u are
the entries of W, so that the relative L2 error there is the Frobenius ratio ‖W − W*‖ / ‖W*‖ exactly, not an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from pinn_odelora.geometry import Uniform
from pinn_odelora.points import Points

ENTRIES = 4096
"""The most entries of a matrix: the unit matrices together are the square of it in numbers, 128 MiB of them."""


def entry_names(m: int, n: int) -> tuple[str, ...]:
    """M_1_1, M_1_2, …, M_m_n."""
    return tuple(f"M_{k}_{l}" for k in range(1, m + 1) for l in range(1, n + 1))


def matrix_points(M: Tensor) -> Points:
    """Matrices (N, m, n) as N points."""
    return Points.from_rows(entry_names(*M.shape[1:]), M.flatten(1))


@dataclass(frozen=True)
class UnitMatrices:
    """All m·n matrices E_kl with a single entry 1, row by row, at every draw; columns k and l say which."""

    m: int
    n: int
    interior: bool = True

    def sample(self, n: int, uniform: Uniform) -> Points:
        E = torch.eye(self.m * self.n, dtype=torch.float64).unflatten(1, (self.m, self.n))
        k, l = torch.meshgrid(torch.arange(1.0, self.m + 1), torch.arange(1.0, self.n + 1), indexing="ij")
        return Points(matrix_points(E) | {"k": k.double().reshape(-1, 1), "l": l.double().reshape(-1, 1)})


@dataclass(frozen=True)
class GaussianMatrices:
    """Matrices with independent standard normal entries, by the inverse of the distribution function.

    ``W`` adds the column b = ⟨M, W⟩ of their exact measurements.
    """

    W: Tensor
    interior: bool = True

    def sample(self, n: int, uniform: Uniform) -> Points:
        z = uniform(n, self.W.numel())
        # A sequence in [0, 1) may hold 0, whose quantile is infinite.
        rows = torch.special.ndtri(z.clamp(min=torch.finfo(z.dtype).tiny))
        return Points(matrix_points(rows.unflatten(1, self.W.shape)) | {"b": rows @ self.W.flatten()[:, None]})


def orthonormal(m: int, r: int, generator: torch.Generator) -> Tensor:
    """A uniformly distributed m × r matrix with orthonormal columns (Mezzadri, 2007, arXiv math-ph/0609050)."""
    Q, R = linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64))
    return Q * torch.sign(R.diagonal())


def spectrum(r: int, condition: float) -> Tensor:
    """r singular values in geometric progression from 1 down to 1/condition; a single one is 1."""
    exponents = torch.arange(r, dtype=torch.float64) / max(r - 1, 1)
    return condition**-exponents


def low_rank_matrix(m: int, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """U diag(σ) V with random orthonormal U (m, r) and Vᵀ (n, r)."""
    U, V = orthonormal(m, len(sigma), generator), orthonormal(n, len(sigma), generator).mT
    return U * sigma @ V

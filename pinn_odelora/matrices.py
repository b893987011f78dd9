"""Matrices as points of a linear functional  u(M) = ⟨M, W⟩ = Σ_kl M_kl W_kl.

A point is an m × n matrix M; its coordinates are the m·n entries, row by row. At the unit matrices E_kl the values of u
are the entries of W, so that the relative L2 error over them is exactly ‖W − W*‖ / ‖W*‖ in the Frobenius norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from pinn_odelora.geometry import Uniform
from pinn_odelora.points import Points

ENTRIES = 4096
"""Most entries of a matrix: the unit matrices together have that number squared, 128 MiB."""


def entry_names(m: int, n: int) -> tuple[str, ...]:
    """M_1_1, M_1_2, …, M_m_n."""
    return tuple(f"M_{k}_{l}" for k in range(1, m + 1) for l in range(1, n + 1))


def matrix_points(M: Tensor) -> Points:
    """Matrices M (N, m, n) as N points, with a column (N, 1) per entry."""
    return Points.from_rows(entry_names(*M.shape[1:]), M.flatten(1))


@dataclass(frozen=True)
class UnitMatrices:
    """The m·n unit matrices E_kl, in row-major order; every draw returns all of them.

    Args:
        m, n: rows and columns of a matrix.
        interior: whether they count as interior points.
    """

    m: int
    n: int
    interior: bool = True

    def sample(self, n: int, uniform: Uniform) -> Points:
        """All m·n points, for any ``n``, with the indices k and l as further columns."""
        E = torch.eye(self.m * self.n, dtype=torch.float64).unflatten(1, (self.m, self.n))
        k, l = torch.meshgrid(torch.arange(1.0, self.m + 1), torch.arange(1.0, self.n + 1), indexing="ij")
        return Points(matrix_points(E) | {"k": k.double().reshape(-1, 1), "l": l.double().reshape(-1, 1)})


@dataclass(frozen=True)
class GaussianMatrices:
    """Matrices M with independent standard normal entries, by inversion, and their exact measurements ⟨M, W⟩.

    Args:
        W: the matrix that is measured, (m, n).
        interior: whether they count as interior points.
    """

    W: Tensor
    interior: bool = True

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n matrices, with b = ⟨M, W⟩ as a further column, (n, 1)."""
        z = uniform(n, self.W.numel())
        # A sequence in [0, 1) may contain 0, whose quantile is infinite.
        rows = torch.special.ndtri(z.clamp(min=torch.finfo(z.dtype).tiny))
        return Points(matrix_points(rows.unflatten(1, self.W.shape)) | {"b": rows @ self.W.flatten()[:, None]})


def orthonormal(m: int, r: int, generator: torch.Generator) -> Tensor:
    """A uniformly distributed matrix with orthonormal columns, (m, r) (Mezzadri, 2007, arXiv math-ph/0609050)."""
    Q, R = linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64))
    return Q * torch.sign(R.diagonal())


def spectrum(r: int, condition: float) -> Tensor:
    """Singular values in geometric progression from 1 to 1/condition, (r,); for r = 1 it is 1."""
    exponents = torch.arange(r, dtype=torch.float64) / max(r - 1, 1)
    return condition**-exponents


def low_rank_matrix(m: int, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """U diag(σ) V with random U (m, r) and Vᵀ (n, r) with orthonormal columns, and given σ (r,)."""
    U, V = orthonormal(m, len(sigma), generator), orthonormal(n, len(sigma), generator).mT
    return U * sigma @ V

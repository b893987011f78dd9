"""The linearisation at the target: the spectrum of every contender, and the rate that follows from it.

L is quadratic in W with Hessian H (mn × mn), and at an exact target no residual is left, so that the curvature of the
manifold of rank-r matrices does not enter. An error D in its tangent space at W* = B A, balanced, moves by

    flow       dD/dt = −P_T H D                        T the tangent space, P_T the orthogonal projection on it
    scaled     dD/dt = −(P_T + P_B ⊗ P_A) H D          the part in both spaces counts twice
    factors    dD/dt = −(B Bᵀ ⊗ I + I ⊗ AᵀA) H D       BBᵀ and AᵀA have the singular values of W*

With eigenvalues λ_1 ≤ … ≤ λ_d a step multiplies the error by max_j |R(−h λ_j)| in the end, R(z) = 1 + z, that of the
classical Runge–Kutta scheme, or 1 / (1 − z) for the linearly implicit one.

Everything here is formed from the problem's points by itself and asks neither flows nor linearisations.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, linalg

from convergence.setups import FREEDOMS, MEASUREMENTS, RANK, Contender, Setup
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.tangent import FactorFrame, Frame, complement
from pinn_odelora.matrix_problem import MatrixProblem


class Modes(NamedTuple):
    """λ, ascending, (d,), and the matrices D (m, n), ‖D‖ = 1, that belong to the smallest and the largest."""

    eigenvalues: Tensor
    slowest: Tensor
    fastest: Tensor


def weighted_points(problem: MatrixProblem) -> tuple[Tensor, Tensor]:
    """√(2w/N) M_i as rows (N, mn), and √(2w/N) b (N,): L = ½‖rows · vec W − b‖²."""
    (term,) = problem.terms().values()
    p = term.where.sample(1, None)
    root = math.sqrt(2 * term.weight / p.number)
    return root * p.rows(problem.coords), root * p.b[:, 0]


def hessian(problem: MatrixProblem) -> Tensor:
    """H, (mn, mn)."""
    M, _ = weighted_points(problem)
    return M.mT @ M


@lru_cache(maxsize=256)
def modes(setup: Setup, spectrum: str) -> Modes:
    """Of the linearisation at the target, for factors of its rank."""
    problem = setup.posed()
    U, sigma, Vh = linalg.svd(problem.matrix, full_matrices=False)
    U, sigma, V, H = U[:, :RANK], sigma[:RANK], Vh[:RANK], hessian(problem)
    if spectrum == "factors":
        root = sigma.sqrt()
        F = _changes(Factors(root[:, None] * V, U * root))
        values, vectors = linalg.eigh(F.mT @ H @ F)
        # Changes of the factors that leave their product as it is, X A against −B X, have r² eigenvalues 0.
        return _modes(values[RANK**2 :], F @ vectors[:, RANK**2 :], problem)
    frame = Frame(U, complement(U), V)
    T = torch.stack([frame.vector(z).flatten() for z in torch.eye(frame.dimension, dtype=U.dtype)], dim=1)
    root = torch.eye(frame.dimension, dtype=U.dtype)
    if spectrum == "scaled":
        # M H with M = I + P, P a projection, has the spectrum of M^½ H M^½.
        root = root + (math.sqrt(2) - 1) * T.mT @ torch.kron(U @ U.mT, V.mT @ V) @ T
    values, vectors = linalg.eigh(root @ (T.mT @ H @ T) @ root)
    return _modes(values, T @ root @ vectors, problem)


def rate(eigenvalues: Tensor, contender: Contender, h: float) -> float:
    """−log of the factor by which a step shrinks the error in the end."""
    return -math.log(float(contender.factor(-h * eigenvalues).abs().max()))


def best_rate(eigenvalues: Tensor) -> float:
    """Of Euler's scheme at h = 2 / (λ_1 + λ_d): log((λ_d + λ_1) / (λ_d − λ_1))."""
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    return math.log((high + low) / (high - low))


def marchenko_pastur(freedoms: int = FREEDOMS, measurements: int = MEASUREMENTS) -> tuple[float, float]:
    """2 (1 ∓ √(d/R))², about the ends of the spectrum of sensing (Marchenko and Pastur, 1967)."""
    root = math.sqrt(freedoms / measurements)
    return 2 * (1 - root) ** 2, 2 * (1 + root) ** 2


def _changes(y: Factors) -> Tensor:
    """The change of the product for every unit change of the factors, (mn, r (m + n))."""
    frame = FactorFrame(y, 1.0)
    moved = (frame.moved(z) for z in torch.eye(frame.dimension, dtype=y.A.dtype))
    return torch.stack([(y.B @ (x.A - y.A) + (x.B - y.B) @ y.A).flatten() for x in moved], dim=1)


def _modes(values: Tensor, vectors: Tensor, problem: MatrixProblem) -> Modes:
    ends = ((D / D.norm()).view(problem.rows, problem.columns) for D in (vectors[:, 0], vectors[:, -1]))
    return Modes(values, *ends)

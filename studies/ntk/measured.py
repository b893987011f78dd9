"""Random linearised models of one matrix, and flows of many pairs of factors of it at once.

Rows are measurements ⟨J_i, δ⟩ + f_i(0); the features J_i are Gaussian with ‖J_i‖_F of mean square 1, or structured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, linalg
from torch.func import grad, jacrev

from pinn_odelora.integrators.runge_kutta import rk_step
from pinn_odelora.integrators.tableau import RK4, Tableau
from pinn_odelora.linearisation.blocks import Formed, Group
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.ntk.losses import ConvexLoss, CrossEntropy, Logistic, SquaredError
from pinn_odelora.ntk.model import Linearised


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=generator(seed), dtype=torch.float64)


def model_of(J: Tensor, start: Tensor, loss: ConvexLoss, outputs: int = 1) -> Linearised:
    """One matrix W with features J (R, m, n)."""
    group = Group("rows", slice(0, len(start)), start, {"W": Formed(J)}, {})
    return Linearised(start, [group], {"W": tuple(J.shape[1:])}, loss, {"rows": group.rows}, outputs)


def gaussian(m: int, n: int, rows: int, seed: int, loss: str = "squared") -> Linearised:
    """Gaussian features; targets, or random labels of three classes for ``cross_entropy``."""
    J = normal(rows, m, n, seed=seed) / math.sqrt(m * n)
    if loss == "squared":
        return model_of(J, torch.zeros(rows).double(), SquaredError(normal(rows, seed=seed + 1)))
    if loss == "logistic":
        return model_of(J, torch.zeros(rows).double(), Logistic(torch.sign(normal(rows, seed=seed + 1))))
    labels = torch.randint(3, (rows // 3,), generator=generator(seed + 1))
    return model_of(J, normal(rows, seed=seed + 2), CrossEntropy(labels, 3), 3)


def repeated(m: int, rows: int, copies: int, seed: int) -> Linearised:
    """Features a_i ⊗ I: minimisers are many, and proximal steps from zero find one of high rank."""
    a = normal(rows, m // copies, m // copies, seed=seed) / m
    J = torch.stack([torch.kron(x, torch.eye(copies).double()) for x in a])
    return model_of(J, torch.zeros(rows).double(), SquaredError(normal(rows, seed=seed + 1)))


def hessian(F: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """x ↦ ∂²F/∂x², reverse mode twice: forward mode loads what torch has deprecated."""
    return jacrev(grad(F))


def pairs(m: int, n: int, r: int, number: int, size: float, seed: int) -> Factors:
    """Balanced pairs with r singular values ``size`` and random vectors; A (number, r, n), B (number, m, r)."""
    Q = linalg.qr(normal(number, m, r, seed=seed)).Q
    P = linalg.qr(normal(number, n, r, seed=seed + 1)).Q
    return Factors(math.sqrt(size) * P.mT, math.sqrt(size) * Q)


def value(model: Linearised, y: Factors, decay: float) -> Tensor:
    """φ(f(B A)) + (λ/2)(‖A‖² + ‖B‖²) of every pair, (number,), for a squared error."""
    f = model.start + torch.einsum("rmn,bmn->br", model.groups[0].blocks["W"].J, y.B @ y.A)
    squares = sum(x.square().sum((-2, -1)) for x in y)
    return model.loss.c / 2 * (f - model.loss.y).square().sum(-1) + decay / 2 * squares


def gradient(model: Linearised, X: Tensor) -> Tensor:
    """∂φ/∂δ at many matrices (number, m, n), for a squared error."""
    J = model.groups[0].blocks["W"].J
    f = model.start + torch.einsum("rmn,bmn->br", J, X)
    return torch.einsum("br,rmn->bmn", model.loss.c * (f - model.loss.y), J)


def descent(model: Linearised, decay: float) -> Callable[[list[Tensor]], list[Tensor]]:
    """The velocity of the factors of many pairs by gradient flow of ``value``."""

    def velocity(y: list[Tensor]) -> list[Tensor]:
        A, B = y
        G = gradient(model, B @ A)
        return [-(B.mT @ G + decay * A), -(G @ A.mT + decay * B)]

    return velocity


def product_steps(model: Linearised, y: Factors, decay: float, h: float, steps: int) -> Factors:
    """Euler steps of ODELoRA's flow by its product, in which balanced pairs lose no rank on the way.

    X ← the best approximation of rank r to X − h P_T(G + λ U Vᵀ), with λ U Vᵀ the gradient of the decay λ tr Σ.
    """
    r = y.A.shape[-2]
    U, sigma, V = (x[..., :r] for x in _svd(y.B @ y.A))
    for _ in range(steps):
        X = U * sigma[..., None, :] @ V.mT
        G = gradient(model, X)
        GV, UG = G @ V, U.mT @ G
        D = GV @ V.mT + U @ UG - U @ (UG @ V) @ V.mT + decay * U @ V.mT
        U, sigma, V = (x[..., :r] for x in _svd(X - h * D))
    root = sigma.sqrt()
    return Factors(root[..., None] * V.mT, U * root[..., None, :])


def _svd(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, sigma, Vh = linalg.svd(X, full_matrices=False)
    return U, sigma, Vh.mT


def followed(
    velocity: Callable[[list[Tensor]], list[Tensor]], y: Sequence[Tensor], h: float, steps: int, tableau: Tableau = RK4
) -> list[Tensor]:
    """Steps of a scheme of fixed size."""
    point = [*y]
    for _ in range(steps):
        point = rk_step(velocity, point, h, tableau, velocity(point))
    return point

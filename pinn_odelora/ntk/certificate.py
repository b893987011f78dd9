"""How far a δ is from the minimum of F(δ) = φ(f(δ)) + μ‖δ‖_*: a duality gap, and the optimality conditions.

From φ(f) = max_w ⟨w, f⟩ − φ*(w) the dual problem is

    max_w  ⟨w, f(W0)⟩ − φ*(w)    subject to    ‖J_lᵀ w‖₂ ≤ μ for every layer l .

The gradient w = ∇φ(f(δ)), scaled into the constraint, is feasible: F(δ) minus its dual value bounds F(δ) − min F from
above. The minimum is attained where the gradients G_l = J_lᵀ w satisfy, with δ_l = U Σ Vᵀ,

    Uᵀ G_l V = −μ I ,   G_l V = −μ U ,   Uᵀ G_l = −μ Vᵀ ,   ‖G_l‖₂ ≤ μ .
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, linalg

from pinn_odelora.ntk.model import Linearised, spectral_norm


@torch.no_grad()
def duality_gap(model: Linearised, delta: Mapping[str, Tensor], weight: float) -> float:
    """An upper bound on F(δ) − min F; infinite for μ = 0 with a gradient, NaN for a loss without a known conjugate.

    Args:
        model: the linearised model.
        delta: δ by layer, (m, n).
        weight: μ ≥ 0.
    """
    w = model.loss.gradient(model.values(delta))
    largest = spectral_norm(model.adjoint(w))
    scale = 1.0 if largest <= weight else weight / largest
    conjugate = model.loss.conjugate(scale * w)
    if conjugate is None:
        return math.nan
    dual = scale * w @ model.start - conjugate
    return float(model.penalised(delta, weight) - dual)


@torch.no_grad()
def optimality(model: Linearised, delta: Mapping[str, Tensor], weight: float, tolerance: float = 1e-7) -> float:
    """The largest violation of the optimality conditions, relative to μ (to the gradient at δ = 0 where μ = 0).

    Args:
        model: the linearised model.
        delta: δ by layer, (m, n).
        weight: μ ≥ 0.
        tolerance: singular values below this part of the largest one of all layers count as zero.
    """
    G = model.gradient(delta)
    unit = weight or model.largest_weight()
    factors = {name: linalg.svd(x, full_matrices=False) for name, x in delta.items()}
    bound = tolerance * max(float(sigma[0]) for _, sigma, _ in factors.values())
    worst = (spectral_norm(G) - weight) / unit
    for name, (U, sigma, Vh) in factors.items():
        support = sigma > bound
        if bool(support.any()):
            U, V = U[:, support], Vh[support].mT
            worst = max(worst, float(linalg.matrix_norm(G[name] @ V + weight * U, 2)) / unit)
            worst = max(worst, float(linalg.matrix_norm(G[name].mT @ U + weight * V, 2)) / unit)
    return max(worst, 0.0)

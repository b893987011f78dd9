"""What adapters of a given rank can do in the linearised model, from the kernels of their tangent spaces.

Around the pretrained weights  r(W0 + δ) ≈ r + J δ. Factors that start at the best approximation of rank r_l of the
weight of layer l move, to first order, in the tangent space T of the matrices of these ranks there
(``manifolds.tangent``); what is trained besides them, such as the last layer, moves freely. With the kernel

    K = J_T J_Tᵀ = Σ_l K_l(r_l) + K_rest

of J in coordinates of T, the smallest penalised residual is

    q² = min_{δ ∈ T} ‖r + J δ‖² + μ ‖δ‖² = μ rᵀ (K + μ)⁻¹ r .

Best approximations of increasing rank have nested tangent spaces, K_l(r) ⪯ K_l(r + 1), so that q decreases in the rank
of every layer, towards that of the neural tangent kernel of whole weights (Jacot, Gabriel and Hongler, 2018, arXiv
1806.07572). The effective dimension  tr K (K + μ)⁻¹ = Σ_i λ_i / (λ_i + μ)  counts the directions of residuals that can
be reduced at this penalty (Zhang, 2005; Caponnetto and De Vito, 2007).

A kernel is R × R whatever the width, and each choice of ranks costs one Cholesky factorisation of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, linalg

from pinn_odelora.linalg.gram import gram
from pinn_odelora.linearisation import Linearisation
from pinn_odelora.manifolds.tangent import Frame


class TangentKernels:
    """K_l(r) of every adapted layer l and rank r, and K_rest.

    Args:
        linearised: the system at the pretrained network; its layers and other tensors are all that is trained.
        adapted: names of the layers that have factors.
        ranks: ascending; layers have min(m, n) where it is less.

    Attributes:
        r: residuals, (R,), float64.
        layers: K_l(r) by layer and rank, (R, R).
        rest: K_rest, (R, R).
        full: the neural tangent kernel, in which adapted layers move freely, (R, R).
    """

    def __init__(self, linearised: Linearisation, adapted: Sequence[str], ranks: Sequence[int]) -> None:
        self.r = linearised.r.double()
        self.full = linearised.kernel().double()
        decomposed = {name: linalg.svd(linearised.layers[name].weight.detach()) for name in adapted}
        self.layers: dict[str, dict[int, Tensor]] = {name: {} for name in adapted}
        for rank in ranks:
            own = {name: min(rank, len(sigma)) for name, (_, sigma, _) in decomposed.items()}
            frames = {n: Frame(U[:, : own[n]], U[:, own[n] :], V[: own[n]]) for n, (U, _, V) in decomposed.items()}
            rest = []
            for name, columns in _by_variable(linearised, frames):
                if name in frames:
                    self.layers[name][own[name]] = gram(columns.mT)
                else:
                    rest.append(columns)
        self.rest = gram(torch.cat(rest, dim=1).mT) if rest else torch.zeros_like(self.full)

    def kernel(self, ranks: Mapping[str, int]) -> Tensor:
        """K, (R, R), with these ranks of the adapted layers."""
        return self.rest + sum(self.layers[name][rank] for name, rank in ranks.items())


def _by_variable(linearised: Linearisation, frames: Mapping[str, Frame]) -> Iterator[tuple[str, Tensor]]:
    """The columns of J, float64, by the names of layers and other tensors."""
    sizes = {n: frames[n].dimension if n in frames else x.weight.numel() for n, x in linearised.layers.items()}
    sizes |= {name: x.numel() for name, x in linearised.others.items()}
    J = linearised.columns(frames).double()
    return zip(sizes, (J[:, a:b] for a, b in pairwise(accumulate(sizes.values(), initial=0))), strict=True)


def predicted_residual(K: Tensor, r: Tensor, mu: float) -> float:
    """q / ‖r‖ = √(μ rᵀ (K + μ)⁻¹ r) / ‖r‖, from 0 to 1.

    Args:
        K: a kernel, (R, R).
        r: residuals, (R,).
        mu: μ, well above the rounding error of K.
    """
    w = linalg.solve_triangular(_factor(K, mu), r[:, None], upper=False)
    return math.sqrt(mu) * float(w.norm() / r.norm())


def dual_solution(K: Tensor, r: Tensor, mu: float) -> Tensor:
    """(K + μ)⁻¹ r, (R,): the penalised solution is δ = -Jᵀ of it; arguments as of ``predicted_residual``."""
    return torch.cholesky_solve(r[:, None], _factor(K, mu))[:, 0]


def _factor(K: Tensor, mu: float) -> Tensor:
    shifted = K.clone()
    shifted.diagonal().add_(mu)
    return linalg.cholesky(shifted)


def effective_dimension(spectrum: Tensor, mu: float) -> float:
    """tr K (K + μ)⁻¹, from 0 to R.

    Args:
        spectrum: the eigenvalues of K, (R,).
        mu: μ > 0.
    """
    eigenvalues = spectrum.clamp(min=0)
    return float((eigenvalues / (eigenvalues + mu)).sum())

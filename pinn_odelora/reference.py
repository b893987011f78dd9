"""Building blocks of reference solutions: quadrature rules, and spectral solutions that can be differentiated."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def gauss_hermite(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes z and log-weights of ∫ exp(-z²) f(z) dz ≈ Σ exp(log w_j) f(z_j), each (n,), with dtype and device of ``like``.

    Weights smaller than the smallest float are given as -inf and drop out of any sum.
    """
    nodes, weights = np.polynomial.hermite.hermgauss(n)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    return torch.as_tensor(nodes).to(like), torch.as_tensor(log_weights).to(like)

"""Eigendecomposition of the Gram matrices S_A = AAᵀ and S_B = BᵀB that a flow inverts; an error if one is singular."""

from __future__ import annotations

import torch
from torch import Tensor, linalg

from pinn_odelora.errors import InputError

# Below this ratio of eigenvalues the inverse has no correct digit in float64.
SINGULAR = 1e-14


def gram_spectrum(factor: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues (…, r), ascending, and eigenvectors (…, r, r) of F Fᵀ.

    Args:
        factor: F (…, r, n), which is A or Bᵀ.
        name: name of the factor, for the message.

    Raises:
        InputError: if the factor does not have full rank, in particular at the zero adapter B = 0.
        FloatingPointError: if it is not finite, or its Gram matrix overflows.
    """
    values, vectors = spectrum(factor, name)
    if bool((values[..., 0] <= SINGULAR * values[..., -1]).any()):
        raise InputError(
            f"the flow is singular here, because the factor {name} has lost rank; start from factors of full rank "
            "(orthonormal or pissa), or choose a smaller rank"
        )
    return values, vectors


def spectrum(factor: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors as ``gram_spectrum``, for a factor of any rank.

    Args:
        factor: F (…, r, n), which is A or Bᵀ.
        name: name of the factor, for the message.

    Raises:
        FloatingPointError: if the factor is not finite, or its Gram matrix overflows.
    """
    gram = factor @ factor.mT
    if not bool(torch.isfinite(gram).all()):
        raise FloatingPointError(f"the factor {name} is NaN or infinite, or its Gram matrix overflows")
    return linalg.eigh(gram)

"""Eigendecomposition of the Gram matrices S_A = AAᵀ and S_B = BᵀB that a flow inverts; an error if one is singular."""

from __future__ import annotations

import torch
from torch import Tensor, linalg
from torch.nn import functional

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
    """The same, whatever the rank.

    From the singular values of the factor: those of its Gram matrix, formed, would have an error of 1e-16 of the
    largest one. In a gauge where the Gram matrix is not diagonal that is all of the digits of a direction that is not
    needed, whose singular value goes to zero.

    Raises:
        FloatingPointError: as ``gram_spectrum``.
    """
    R = linalg.qr(factor.mT, mode="r").R
    R = functional.pad(R, (0, 0, 0, factor.shape[-2] - R.shape[-2]))  # zeros where r > n
    if not bool(torch.isfinite(R.square().sum())):
        raise FloatingPointError(f"the factor {name} is NaN or infinite, or its Gram matrix overflows")
    _, sigma, V = linalg.svd(R)
    return sigma.square().flip(-1), V.mT.flip(-1)

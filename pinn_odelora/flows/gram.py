"""The Gram matrices S_A = AAᵀ and S_B = BᵀB of the factors, by which a flow divides; refused where singular."""

from __future__ import annotations

import torch
from torch import Tensor, linalg

from pinn_odelora.errors import InputError

# Below this ratio of eigenvalues the r × r inverses have no correct digit left in float64.
SINGULAR = 1e-14


def gram_spectrum(factor: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues (…, r), ascending, and eigenvectors (…, r, r) of F Fᵀ.

    Args:
        factor: F (…, r, n), which is A or Bᵀ.
        name: of the factor, for the refusal.

    Raises:
        InputError: where the factor has lost rank, in particular at the zero adapter B = 0.
    """
    values, vectors = linalg.eigh(factor @ factor.mT)
    if bool((values[..., 0] <= SINGULAR * values[..., -1]).any()) or not bool(torch.isfinite(values).all()):
        raise InputError(
            f"the flow is singular here, because the factor {name} has lost rank (it has at a start with B = 0); "
            "start from lora.start=orthonormal or lora.start=pissa, or choose a smaller lora.rank"
        )
    return values, vectors

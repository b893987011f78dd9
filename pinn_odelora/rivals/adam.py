"""Adam (Kingma and Ba, 2015, arXiv 1412.6980) on the factors or on all weights, each entry by itself, as torch has it.

m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²,   p ← p − η · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε),   ε = 1e-8
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from pinn_odelora.optim.groups import parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import adam_settings


def lora_adam(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam on the factors (Kingma and Ba, 2015, arXiv 1412.6980; Hu et al., 2022, arXiv 2106.09685).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
    """
    return _adam("lora_adam", "factors", lr, betas)


def full_adam(lr: float = 1e-3, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam on all weights (Kingma and Ba, 2015, arXiv 1412.6980).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
    """
    return _adam("full_adam", "weights", lr, betas)


def _adam(name: str, trains: Literal["factors", "weights"], lr: float, betas: Sequence[float]) -> Method:
    lr, betas = adam_settings(lr, betas)
    make = lambda groups: torch.optim.Adam(parameters(groups), lr=lr, betas=betas)
    return Method(name, trains, make, settings={"lr": lr, "betas": [*betas]})

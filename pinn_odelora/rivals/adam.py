"""Adam and AdamW on the factors or on all weights, each entry by itself, as torch has them.

With g the gradient of a tensor p,

    m ← β₁ m + (1 − β₁) g ,    v ← β₂ v + (1 − β₂) g²
    p ← (1 − ηλ) p − η · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)

Adam (Kingma and Ba, 2015, arXiv 1412.6980) is λ = 0; AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101) has the
weight decay λ, 0.01 in torch. β = (0.9, 0.999) and ε = 1e-8 unless said otherwise. The decay pulls factors to zero, and
so W to W0 − s B0 A0: meant for a start at B0 = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from pinn_odelora.optim.groups import parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import NOT_NEGATIVE, adam_settings


def lora_adam(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam on the factors (Kingma and Ba, 2015, arXiv 1412.6980; Hu et al., 2022, arXiv 2106.09685).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
    """
    return _adam("lora_adam", "factors", lr, betas)


def lora_adamw(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999), weight_decay: float = 0.01) -> Method:
    """AdamW on the factors (Loshchilov and Hutter, 2019, arXiv 1711.05101; Hu et al., 2022, arXiv 2106.09685).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        weight_decay: λ, of the factors and of all that is trained beside them.
    """
    lr, betas = adam_settings(lr, betas)
    decay = NOT_NEGATIVE.check("weight_decay", weight_decay)
    make = lambda groups: torch.optim.AdamW(parameters(groups), lr=lr, betas=betas, weight_decay=decay)
    return Method("lora_adamw", "factors", make, settings={"lr": lr, "betas": [*betas], "weight_decay": decay})


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

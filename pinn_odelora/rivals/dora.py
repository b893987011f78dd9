"""DoRA: Adam on the factors of a weight's directions and on the magnitudes of its rows.

Liu, Wang, Yin, Molchanov, Wang, Cheng and Chen, "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, arXiv
2402.09353. The layer is ``lowrank.magnitude.MagnitudeLinear``,

    W = diag(μ / ‖V‖) V ,    V = W0 + s·(B A − B₀ A₀) ,

norms of rows, constant in the gradient; with G = ∂L/∂W and H = diag(μ / ‖V‖) G the gradients are s BᵀH, s HAᵀ and, of
μ_i, ⟨G_i, V_i⟩ / ‖V_i‖. The norms are those of the rows of a weight (outputs, inputs), as in PEFT, with whose layer
this agrees to rounding. Adam as in ``lora_adam``; the paper starts from B = 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pinn_odelora.lowrank.magnitude import MagnitudeLinear
from pinn_odelora.optim.groups import parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import adam_settings


def dora(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """DoRA: Adam on directions of low-rank change and on magnitudes (Liu et al., 2024, arXiv 2402.09353).

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
    """
    lr, betas = adam_settings(lr, betas)
    make = lambda groups: torch.optim.Adam(parameters(groups), lr=lr, betas=betas)
    return Method("dora", "factors", make, settings={"lr": lr, "betas": [*betas]}, layer=MagnitudeLinear)

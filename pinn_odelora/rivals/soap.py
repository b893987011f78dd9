"""SOAP (Vyas, Morwani, Zhao, Kwun, Shapira, Brandfonbrener, Janson and Kakade, 2024, arXiv 2409.11321) on all weights.

Adam in the eigenbases Q_L, Q_R of L ← βL + (1 − β)GGᵀ and R ← βR + (1 − β)GᵀG, which one step of QR iteration renews
every ten steps: v is the second moment of Q_LᵀG Q_R, and

    W ← W − η Q_L (Q_LᵀM Q_R / (√v + ε)) Q_Rᵀ ,    β₁ = β₂ = β = 0.95 ,    ε = 1e-8 ,

with the bias corrections of Adam; vectors go by Adam itself. The first step only begins L and R. It is that of the
package pytorch_optimizer, with the paper's defaults but for the weight decay: the published 0.01 pulls the weights to
zero, away from every solution, and would be all that is left to see at small losses. It is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from pinn_odelora.errors import InputError
from pinn_odelora.optim.groups import Group, parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import adam_settings
from pinn_odelora.rules import whole


def full_soap(lr: float = 3e-3, betas: Sequence[float] = (0.95, 0.95), frequency: int = 10) -> Method:
    """SOAP on all weights (Vyas et al., 2024, arXiv 2409.11321), by the package pytorch_optimizer.

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1); the second also of the matrices L and R.
        frequency: steps between two bases.

    Raises:
        InputError: if the package is missing.
    """
    lr, betas = adam_settings(lr, betas)
    frequency = whole(1).check("frequency", frequency)
    SOAP = _package()

    def optimizer(groups: Sequence[Group]) -> Optimizer:
        return SOAP(parameters(groups), lr=lr, betas=betas, precondition_frequency=frequency, weight_decay=0.0)

    return Method("full_soap", "weights", optimizer, settings={"lr": lr, "betas": [*betas], "frequency": frequency})


def _package() -> Any:
    try:
        from pytorch_optimizer import SOAP
    except ImportError:
        raise InputError(
            "full_soap needs the package pytorch_optimizer: pip install 'pinn-odelora[baselines]'; full_adam does "
            "without."
        ) from None
    return SOAP

"""LoRA+ (Hayou, Ghosh and Yu, 2024, arXiv 2402.12354): Adam with a learning rate of B that is λ times that of A.

    A ← A − η · Adam(g_A),    B ← B − λη · Adam(g_B)

The paper advises λ ≫ 1; λ = 16 is the default of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import POSITIVE, adam_settings


def lora_plus(lr: float = 1e-3, ratio: float = 16.0, betas: Sequence[float] = (0.9, 0.999)) -> Method:
    """Adam with a larger learning rate for B (LoRA+; Hayou, Ghosh and Yu, 2024, arXiv 2402.12354).

    Args:
        lr: learning rate of A, and of whole weights that are trained beside the factors.
        ratio: the learning rate of B, and of biases, divided by that of A, as in the authors' code and in PEFT.
        betas: decay rates of the two moments, in [0, 1).
    """
    lr, betas = adam_settings(lr, betas)
    ratio = POSITIVE.check("ratio", ratio)

    def optimizer(groups: Sequence[Group]) -> Optimizer:
        slow: list[Tensor] = []
        fast: list[Tensor] = []
        for group in groups:
            A, *B = group["params"]
            (slow if A.ndim == 2 else fast).append(A)
            fast += B
        return torch.optim.Adam([{"params": slow}, {"params": fast, "lr": ratio * lr}], lr=lr, betas=betas)

    return Method("lora_plus", "factors", optimizer, settings={"lr": lr, "ratio": ratio, "betas": [*betas]})

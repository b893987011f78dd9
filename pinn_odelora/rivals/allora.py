"""ALLoRA (Huang and Balestriero, 2024, arXiv 2410.09692): a learning rate for each row of B, without scale and dropout.

The gradient of row i of B is divided by the root of the norm of that row,

    g_i ← g_i / √(‖B_i‖ + 1/η²) ,

so that rows move η times as fast at B = 0, and slower as they grow; Adam is given these gradients, and g_A as it is.
There is no scale: s must be 1. The update is known to us second-hand: another reading has the norm of row i of B A, and
applies the factor to the rows of ∂L/∂W, and so to g_A too. That Adam follows is our choice, and so is η = 1, which
takes the place of α/r of LoRA. β = (0.9, 0.999), ε = 1e-8, no weight decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import linalg

from pinn_odelora.errors import InputError
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.optim.groups import Group
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import POSITIVE, PairOptimizer, State, adam_settings, adamw


class ALLoRA(PairOptimizer):
    """Adam on pairs, the gradients of the rows of B divided, Adam on other tensors.

    Args:
        groups: as ``factor_pairs`` or ``trainable_groups`` gives them.
        lr: learning rate of Adam.
        betas: β₁, β₂.
        eps: ε.
        eta: η.

    Raises:
        InputError: for a pair whose scale s is not 1.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eta: float = 1.0,
    ) -> None:
        super().__init__(groups, lr, betas=betas, eps=eps, eta=eta)

    def check_pair(self, group: Group) -> None:
        if (scale := group.get("scale", 1.0)) != 1:
            raise InputError(f"the scale of {group['name']} is {scale}, but ALLoRA has 1.")

    def pair(self, y: Factors, g: Factors, state: State, group: Group) -> Factors:
        rows = linalg.vector_norm(y.B, dim=1, keepdim=True)
        g_B = g.B / (rows + group["eta"] ** -2).sqrt()
        return Factors(adamw(y.A, g.A, state, group, "_A"), adamw(y.B, g_B, state, group, "_B"))


def allora(lr: float = 3e-3, betas: Sequence[float] = (0.9, 0.999), eta: float = 1.0) -> Method:
    """Adam with a learning rate for each row of B (ALLoRA; Huang and Balestriero, 2024, arXiv 2410.09692).

    The update is known to us second-hand.

    Args:
        lr: learning rate.
        betas: decay rates of the two moments, in [0, 1).
        eta: η, the factor of a row that is zero.
    """
    lr, betas = adam_settings(lr, betas)
    eta = POSITIVE.check("eta", eta)
    make = lambda groups: ALLoRA(groups, lr, betas, eta=eta)
    return Method("allora", "factors", make, settings={"lr": lr, "betas": [*betas], "eta": eta})

"""Muon on hidden weights, and Adam on all others, as one ``torch.optim.Optimizer``.

    M ← μ M + (1 − μ) G,    W ← W − η √max(1, m/n) · msign((1 − μ) G + μ M)

for every weight W (m, n) but those of the first and the last layer, which go by Adam with the biases, as Jordan et al.
(2024, https://kellerjordan.github.io/posts/muon/) advise; where none is between them, all weights go by Muon. msign is
that of ``factor_muon``. The weight decay is off, as it would pull the weights to zero, away from every solution.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.optim.groups import Group, parameters
from pinn_odelora.optim.methods import Method
from pinn_odelora.rivals.base import POSITIVE
from pinn_odelora.rivals.factor_muon import FactorMuon
from pinn_odelora.rules import below_one


class WeightMuon(FactorMuon):
    """Muon for the weights between the first and the last, or all, Adam with the same learning rate for all else.

    Args:
        groups: single tensors, in the order of the layers.
        lr: η.
        momentum: μ.

    Raises:
        InputError: if no weight is a matrix.
    """

    @staticmethod
    def split(groups: Sequence[Group]) -> tuple[list[Tensor], list[Tensor]]:
        tensors = parameters(groups)
        weights = [p for p in tensors if p.ndim == 2]
        hidden = weights[1:-1] or weights
        if not hidden:
            raise InputError("full_muon is for weights that are matrices, but the network has none.")
        chosen = {id(p) for p in hidden}
        return hidden, [p for p in tensors if id(p) not in chosen]


def full_muon(lr: float = 1e-3, momentum: float = 0.95) -> Method:
    """Muon on hidden weights, Adam on those of the first and the last layer and on biases (Jordan et al., 2024).

    Args:
        lr: learning rate of both.
        momentum: of Muon, in [0, 1).
    """
    lr, momentum = POSITIVE.check("lr", lr), below_one.check("momentum", momentum)
    make = lambda groups: WeightMuon(groups, lr, momentum)
    return Method("full_muon", "weights", make, settings={"lr": lr, "momentum": momentum})

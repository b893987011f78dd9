"""How the terms of the loss are weighted while a network is adapted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pinn_odelora.rules import below_one, check, null, one_of, whole

KINDS = ("fixed", "ntk", "gradnorm")


@dataclass(frozen=True)
class Weighting:
    """Multipliers λ_k of the terms of the loss, on top of the problem's own weights w_k: Σ_k λ_k w_k mean|r_k|².

    Args:
        kind: ``fixed``, all λ_k = 1; ``ntk``, by the traces of the neural tangent kernel (Wang, Yu and Perdikaris,
            2022, arXiv 2007.14527); ``gradnorm``, by the norms of the gradients of the terms (Wang, Teng and
            Perdikaris, 2021, arXiv 2001.04536; Wang, Sankaran, Wang and Perdikaris, 2023, arXiv 2308.08468).
        every: steps between two renewals; None is 1 for schemes that linearise, where a renewal costs no evaluation,
            and 100 for others, where the evaluation at the start of the step is replaced by a linearisation.
        average: the part of the former λ_k that a renewal keeps; the first one keeps nothing.

    Raises:
        InputError: for an unknown kind, or a number out of its range.
    """

    kind: Literal["fixed", "ntk", "gradnorm"] = "fixed"
    every: int | None = None
    average: float = 0.9

    def __post_init__(self) -> None:
        check(self, kind=one_of(*KINDS), every=whole(1) | null, average=below_one)

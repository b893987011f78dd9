"""Settings of the regime of a run: the network itself, or its linearisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pinn_odelora.errors import RefusedValueError
from pinn_odelora.rules import check, number, one_of

LINEARISED = "linearised"


@dataclass(frozen=True)
class Regime:
    """What is trained.

    Args:
        regime: the ``network`` itself, or the ``linearised`` model f(W0) + ⟨J, δ⟩.
        decay: λ, weight decay on both factors of the linearised model.

    Raises:
        InputError: if a value is not allowed, or the network itself is to have a decay.
    """

    regime: Literal["network", "linearised"] = "network"
    decay: float = 0.0

    def __post_init__(self) -> None:
        check(self, regime=one_of("network", LINEARISED), decay=number(least=0))
        if self.decay and self.regime != LINEARISED:
            raise RefusedValueError("decay", self.decay, f"0 unless the regime is {LINEARISED}")

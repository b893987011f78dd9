"""Settings of the stations of a family, and the forms of its answers."""

from __future__ import annotations

from dataclasses import dataclass

from pinn_odelora.rules import check, number, one_of, whole

SCALE = one_of("auto", "log", "linear")
COMBINATION, ADAPTER = "combination", "adapter"
FORMS = ("auto", COMBINATION, ADAPTER)
"""What an answer is: a sum of the stations' solutions, one adapter, or whichever suits."""


@dataclass(frozen=True)
class Stations:
    """How good the answers between them are to be, and how many there may be.

    Args:
        tolerance: estimated relative L2 error of answers at which refinement ends.
        most: stations.
        scale: of the parameters, ``log``, ``linear``, or ``auto``, see ``families.ranges``.

    Raises:
        InputError: if a value is not allowed.
    """

    tolerance: float = 1e-5
    most: int = 80
    scale: str = "auto"

    def __post_init__(self) -> None:
        check(self, tolerance=number(above=0), most=whole(2), scale=SCALE)

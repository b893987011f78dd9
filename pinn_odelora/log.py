"""How often a run is measured, and on how many points."""

from __future__ import annotations

from dataclasses import dataclass

from pinn_odelora.rules import boolean, check, null, whole


@dataclass(frozen=True)
class Log:
    """What is measured during adaptation, outside of the time that counts.

    Args:
        every: steps between two rows of the history.
        heldout: points inside the domain on which the held-out loss is measured; a fifth as many on each part of the
            boundary.
        test: points at which the solution is compared with the reference.
        kernel: whether rows have the spectrum of the neural tangent kernel, at the held-out points.
        estimate: whether the error is estimated at the end, see ``error_estimate``; None for where there is no
            reference.

    Raises:
        InputError: if a number is not a whole one of at least 1, or kernel or estimate is neither true nor false.
    """

    every: int = 10
    heldout: int = 256
    test: int = 512
    kernel: bool = False
    estimate: bool | None = None

    def __post_init__(self) -> None:
        check(self, every=whole(1), heldout=whole(1), test=whole(1), kernel=boolean, estimate=boolean | null)

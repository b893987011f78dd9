"""How much a run may cost, and what it has cost so far."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from pinn_odelora.errors import RefusedValueError
from pinn_odelora.rules import check, null, number, whole


@dataclass
class Progress:
    """The counters of a run.

    ``gradient_evals`` counts every evaluation of loss and gradient, those of stages, trial steps and line searches
    included; ``seconds`` is the time spent in optimiser steps, measurements excluded; ``rises`` counts the steps whose
    training loss was above that of the step before.
    """

    step: int = 0
    gradient_evals: int = 0
    seconds: float = 0.0
    rises: int = 0
    largest_rise: float = 0.0
    loss: float = math.nan
    heldout_loss: float = math.nan
    first_heldout_loss: float = math.nan

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """The limits of a run; it ends at the first that is reached.

    Args:
        gradient_evals: evaluations of loss and gradient, those of stages, rejected steps and line searches included;
            None is no limit.
        seconds: time spent in steps, in seconds, measurements excluded; None is no limit.
        steps: steps; None is no limit.
        wall: seconds since this process was started, pretraining and measurements included, at which the run is left
            to be continued by another process: no step is begun that, by the longest one and the longest saving of the
            state so far, would not end before. It is part of no cost, and what a run has spent does not depend on it.
            None is no limit.

    Raises:
        InputError: if a limit is not positive, or none is given.
    """

    gradient_evals: int | None = None
    seconds: float | None = None
    steps: int | None = None
    wall: float | None = None

    def __post_init__(self) -> None:
        check(self, gradient_evals=whole(1) | null, seconds=number(above=0) | null, steps=whole(1) | null)
        check(self, wall=number(above=0) | null)
        if all(limit is None for limit in asdict(self).values()):
            raise RefusedValueError("steps", None, "a whole number where neither gradient_evals nor seconds is given")

    @property
    def ends(self) -> bool:
        """Whether there is a limit at which a run is finished."""
        return any(limit is not None for limit in (self.gradient_evals, self.seconds, self.steps))

    def used(self, progress: Progress) -> float:
        """The part of the budget that is spent, 1 or more when it is over; 0 where ``wall`` is the only limit."""
        costs = (
            (progress.gradient_evals, self.gradient_evals),
            (progress.seconds, self.seconds),
            (progress.step, self.steps),
        )
        return max((cost / limit for cost, limit in costs if limit is not None), default=0.0)

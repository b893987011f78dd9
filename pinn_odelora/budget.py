"""How much a run may cost, and what it has cost so far."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from pinn_odelora.errors import InputError


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
    """The limits of a run, whichever is reached first; None is no limit.

    Raises:
        InputError: if a limit is not positive, or there is none.
    """

    gradient_evals: float | None = None
    seconds: float | None = None
    steps: float | None = None

    def __post_init__(self) -> None:
        limits = {name: value for name, value in asdict(self).items() if value is not None}
        for name, value in limits.items():
            if not value > 0:
                raise InputError(f"budget.{name} is {value!r}, but a budget is a positive number.")
        if not limits:
            raise InputError("No budget is set; give budget.gradient_evals, budget.seconds or budget.steps.")

    def used(self, progress: Progress) -> float:
        """The part of the budget that is spent, 1 or more when it is over."""
        costs = (
            (progress.gradient_evals, self.gradient_evals),
            (progress.seconds, self.seconds),
            (progress.step, self.steps),
        )
        return max(cost / limit for cost, limit in costs if limit is not None)

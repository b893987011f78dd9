"""One run: the relative error ‖W − W*‖ / ‖W*‖ of every iterate, against steps and gradient evaluations."""

from __future__ import annotations

import math
from typing import NamedTuple

from convergence.rates import FLOOR
from convergence.setups import Contender, Setup, enter
from convergence.starts import source
from pinn_odelora import Budget, loop

LOST = 1e8
"""A relative error from which no run of this study comes back within its budget."""


class Path(NamedTuple):
    """``errors`` of all iterates, the start first; ``evaluations`` before each; why the run ended early, or None."""

    errors: list[float]
    evaluations: list[int]
    failure: str | None = None

    @property
    def diverged(self) -> bool:
        return self.failure is not None or not self.errors[-1] < self.errors[0]

    def reached(self, error: float) -> int | None:
        """Evaluations after which the error was at most this for the first time, or None."""
        return next((n for e, n in zip(self.errors, self.evaluations, strict=True) if e <= error), None)

    @property
    def mean_rate(self) -> float:
        """The decrease of log error over an evaluation, from start to end; −∞ if it diverged."""
        if self.diverged:
            return -math.inf
        return math.log(self.errors[0] / self.errors[-1]) / self.evaluations[-1]


def run(
    setup: Setup, start: str | float, contender: Contender, h: float | None, evaluations: int, until: float = FLOOR
) -> Path:
    """Steps until the error is below ``until``, the evaluations are spent, or the numbers are lost."""
    layer, training = enter(setup, contender.method(h), source(setup, start, contender))
    W = setup.posed().matrix
    error = lambda: float((layer.weight.detach() - W).norm() / W.norm())
    errors, spent = [error()], [0]
    for record in loop.steps(training, Budget(gradient_evals=evaluations)) if errors[0] > until else ():
        errors.append(error())
        spent.append(record.gradient_evals)
        if not errors[-1] < LOST:
            return Path(errors, spent, "lost")
        if errors[-1] <= until:
            break
    return Path(errors, spent, None if training.failure is None else str(training.failure))

"""One run: the relative error ‖W − W*‖ / ‖W*‖ of every iterate, against steps and gradient evaluations."""

from __future__ import annotations

import math
from typing import NamedTuple

from convergence.rates import FLOOR
from convergence.setups import Contender, Setup, enter
from convergence.starts import source
from pinn_odelora.errors import InputError

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
    layer, evaluator, optimizer = enter(setup, contender.method(h), source(setup, start, contender))
    W = setup.posed().matrix
    error = lambda: float((layer.weight.detach() - W).norm() / W.norm())
    errors, spent, failure = [error()], [0], None
    while errors[-1] > until and evaluator.count < evaluations and failure is None:
        evaluator.begin(evaluator.draw)
        try:
            optimizer.step(evaluator)
        except (InputError, FloatingPointError) as refusal:
            failure = str(refusal)
            break
        errors.append(error())
        spent.append(evaluator.count)
        if not errors[-1] < LOST:
            failure = "lost"
    return Path(errors, spent, failure)

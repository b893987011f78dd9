"""Error against CPU seconds, on a clock that stands while the error is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pinn_odelora.diagnostics import test_points
from pinn_odelora.formulation import Problem
from pinn_odelora.metrics import relative_l2
from pinn_odelora.points import Points

TEST_POINTS = 4096
Function = Callable[[Points], Tensor]
"""A solution: points to values, (N, fields)."""


def error_at(problem: Problem, number: int = TEST_POINTS) -> Callable[[Function], float]:
    """The relative L2 error of a solution, at points that nothing is trained on and that are the same for everybody."""
    p = test_points(problem, number)
    with torch.no_grad():
        reference = problem.reference(p)

    @torch.no_grad()
    def error(solution: Function) -> float:
        return relative_l2(solution(p), reference)

    return error


class Trace:
    """What a run has reached after so many CPU seconds.

    Args:
        error: measures it; its time does not count.
        target: error that ends the run.
        cap: seconds that end it.

    Attributes:
        marks: seconds and error, one pair for each look.
    """

    def __init__(self, error: Callable[[], float], target: float, cap: float) -> None:
        self.error, self.target, self.cap = error, target, cap
        self.marks: list[tuple[float, float]] = []
        self._apart = 0.0
        self._start = time.process_time()

    def clock(self) -> float:
        """Seconds of work so far."""
        return time.process_time() - self._start - self._apart

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What runs inside is not timed."""
        start = time.process_time()
        try:
            yield
        finally:
            self._apart += time.process_time() - start

    def look(self, error: float | None = None, seconds: float | None = None) -> bool:
        """Take the error, unless it is known; whether the run is over."""
        seconds = self.clock() if seconds is None else seconds
        with self.apart():
            self.marks.append((seconds, self.error() if error is None else error))
        return self.marks[-1][1] <= self.target or seconds >= self.cap

    @property
    def left(self) -> float:
        """Seconds until the cap; a little where none are left, since a budget is positive."""
        return max(self.cap - self.clock(), 1e-3)

    def record(self) -> dict[str, Any]:
        """Plain values: the smallest error, the seconds spent, and the marks at which the error was smaller than ever.

        A run that ended below its cap without its target could go no further.
        """
        records, smallest = [], math.inf
        for seconds, error in self.marks:
            if error < smallest:
                smallest = error
                records.append((seconds, error))
        return {"cap": self.cap, "reached": smallest, "spent": self.marks[-1][0], "marks": records}

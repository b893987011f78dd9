"""What is measured, and how sure it is.

A run with N evaluations has marks at 0, N/30, 2N/30, …, N, at each of which the held-out loss ℓ and the relative L2
error e are taken, of the iterate and of what the run would return; without a word the second is meant.

diverged     The run ended by a number that is not finite or a step that was refused, or ℓ_end > ℓ_0 (or has no value).
             Runs that are broken off, since ℓ was above a thousand times ℓ_0 or not finite when a third of the budget
             was spent, are counted among them. It is the ``diverged`` of ``po.Result``.
works        A step size works, on a problem and with a seed, if e_end ≤ e_0/10.
width        Decades between the ends of the longest row of neighbouring step sizes that all work: (k − 1) times the
             spacing for k of them, 0 for one or none. It is less than the true width by up to two spacings; where the
             row reaches an end of the grid, the true one may be larger by any amount ("≥").
rises        The share of the intervals between marks with ℓ_{j+1} > ℓ_j, and the largest ℓ_{j+1}/ℓ_j − 1, of the
             iterates and of what is returned. A run that has diverged does not take part.
best         The smallest median of e_end over seeds, over the step sizes.
default      e_end with the step size that a user gets who gives none: the learning rate of the function, the middle
             of the grid; for an integrator the one that it finds itself.
spread       The largest over the smallest e_end of the seeds.
sensitivity  The largest over the smallest e_end of the best step sizes of a slice, over the ranks or the starts.

Intervals are of 95 %, by a bootstrap in two stages: problems are drawn with replacement, then seeds of each problem
drawn (Davison and Hinkley, 1997, section 3.8). With four problems and three seeds they are rough.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Run = Mapping[str, Any]
COST, HELDOUT, ERROR, HELDOUT_RETURNED, ERROR_RETURNED, CONDITION_A, CONDITION_B, BALANCE = range(8)
"""Places of a mark's values, see ``running.Mark``."""
REACHED = 0.1
DRAWS = 2000


def finite(x: float | None) -> float:
    """The number; infinity for none, and for NaN."""
    return x if x is not None and math.isfinite(x) else math.inf


def column(run: Run, place: int) -> list[float]:
    """One value along a run; infinity where it has none."""
    return [finite(mark[place]) for mark in run["marks"]]


def start_error(run: Run) -> float:
    return column(run, ERROR)[0] if run["marks"] else math.inf


def end_error(run: Run) -> float:
    """e_end; infinity for a run that ended before."""
    return column(run, ERROR_RETURNED)[-1] if run["marks"] else math.inf


def diverged(run: Run) -> bool:
    if run["failure"] or run["broken_off"] or not run["marks"]:
        return True
    heldout = column(run, HELDOUT_RETURNED)
    return not heldout[-1] <= heldout[0] or not math.isfinite(heldout[-1])


def works(run: Run) -> bool:
    return end_error(run) <= REACHED * start_error(run)


class Rises(NamedTuple):
    """Of the held-out loss between marks: their share, and the largest."""

    share: float
    largest: float


def rises(run: Run, place: int = HELDOUT) -> Rises:
    heldout = column(run, place)
    steps = [after / before - 1 for before, after in pairwise(heldout) if before > 0]
    up = [x for x in steps if x > 0]
    return Rises(len(up) / max(len(steps), 1), max(up, default=0.0))


class Width(NamedTuple):
    """Decades that work, and whether they reach the lower or the upper end of the grid."""

    decades: float
    at_low: bool
    at_high: bool


def width(steps: Sequence[float], good: Sequence[bool]) -> Width:
    """Of the longest row of neighbours that work; step sizes in increasing order."""
    best: tuple[int, int] = (0, 0)
    start = None
    for k, fine in enumerate([*good, False]):
        if fine and start is None:
            start = k
        elif not fine and start is not None:
            best, start = max(best, (start, k), key=lambda row: row[1] - row[0]), None
    first, end = best
    if end - first < 1:
        return Width(0.0, False, False)
    return Width(math.log10(steps[end - 1] / steps[first]), first == 0, end == len(steps))


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(
    groups: Mapping[str, Sequence[float]], statistic: Callable[[Sequence[float]], float] = statistics.fmean
) -> Interval:
    """The mean over problems of a statistic over seeds, with its interval.

    Args:
        groups: by problem, a value for each seed.
        statistic: of the values of one problem.
    """
    kept = [[*values] for values in groups.values() if values]
    if not kept:
        return Interval(math.nan, math.nan, math.nan)
    value = statistics.fmean(statistic(values) for values in kept)
    draw = random.Random(0)
    drawn = sorted(
        statistics.fmean(statistic(draw.choices(values, k=len(values))) for values in draw.choices(kept, k=len(kept)))
        for _ in range(DRAWS)
    )
    return Interval(value, drawn[round(0.025 * (DRAWS - 1))], drawn[round(0.975 * (DRAWS - 1))])


class Study:
    """The runs of a study, by part, problem, method, step size and seed."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = [*runs]

    def of(self, **wanted: Any) -> list[Run]:
        """Those with these values."""
        return [run for run in self.runs if all(run[name] == value for name, value in wanted.items())]

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys(run["problem"] for run in self.runs))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(run["method"] for run in self.runs))

    def seeds(self, part: str = "main") -> list[int]:
        return sorted({run["seed"] for run in self.runs if run["part"] == part})

    def grid(self, problem: str, method: str, part: str = "main", **wanted: Any) -> list[float]:
        """The step sizes that were given, in increasing order."""
        found = self.of(problem=problem, method=method, part=part, **wanted)
        return sorted({run["step"] for run in found if run["step"] is not None})

    def width(self, problem: str, method: str, seed: int) -> Width | None:
        """None while a step size is missing that another seed has, or where there are none."""
        grid = self.grid(problem, method)
        found = {r["step"]: works(r) for r in self.of(problem=problem, method=method, part="main", seed=seed)}
        if not grid or not set(grid) <= found.keys():
            return None
        return width(grid, [found[step] for step in grid])

    def widths(self, method: str) -> dict[str, list[Width]]:
        """By problem, one for each seed."""
        found = {p: [self.width(p, method, seed) for seed in self.seeds()] for p in self.problems}
        return {p: [w for w in widths if w is not None] for p, widths in found.items()}

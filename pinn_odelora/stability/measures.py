"""What is measured, and how sure it is.

A run of N evaluations has marks at 0, N/30, 2N/30, …, N, at each of which the held-out loss ℓ and the relative L2 error
e are taken, of the iterate and of what the run would return; the second is meant where nothing is said.

diverged     The run ended by a number that is not finite or a step that was refused, or ℓ_end > ℓ_0, as in
             ``po.Result``. Runs that are broken off, since ℓ was above ten thousand times ℓ_0 or not finite when half
             of the budget was spent, are counted among them.
works        A step size works, on a problem and with a seed, if e_end ≤ e_0/10.
width        Decades between the ends of the longest row of neighbouring step sizes that all work: (k − 1) times the
             spacing for k of them, 0 for one or none. The true width may be larger by up to two spacings, and by any
             amount where the row reaches an end of the grid (≥). For half of the error the same with e_0/2.
rises        The share of the intervals between marks with ℓ_{j+1} > ℓ_j, and the largest ℓ_{j+1}/ℓ_j − 1, of the
             iterates and of what is returned.
default      e_end with the step size that a user gets who gives none: the learning rate of the function, the middle
             of the grid; for an integrator the one that it finds itself.
best         e_end with the step size whose median over seeds is smallest, chosen by the same errors.
spread       The largest over the smallest e_end of the seeds.
sensitivity  The largest over the smallest e_end, each at its best step size, over ranks or starts.

Where errors are averaged, in decades, an e_end above e_0 or without a value counts as e_0: whoever diverges could have
stayed where it was. Tables and pictures have e_end itself. Intervals are of 95 %, by a bootstrap in two stages:
problems are drawn with replacement, then the seeds of each problem drawn (Davison and Hinkley, 1997, section 3.8). With
four problems and three seeds the 95 % are nominal: where the differences of two methods have the same sign on all four
problems, which chance alone brings about once in eight times, zero is outside.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Run = Mapping[str, Any]
REACHED, HALF = 0.1, 0.5
"""Parts of the error at the start."""
DRAWS = 2000


def finite(x: float | None) -> float:
    """The number; infinity for none, and for NaN."""
    return x if x is not None and math.isfinite(x) else math.inf


def along(run: Run, name: str) -> list[float]:
    """``heldout`` or ``error`` at the marks; infinity where there is no value."""
    return [finite(x) for x in run[name] or []]


def returned(run: Run, name: str) -> list[float]:
    """The same of what the run would have returned."""
    return along(run, name if run[f"{name}_returned"] is None else f"{name}_returned")


def end_error(run: Run, find: Callable[[Run, str], list[float]] = returned) -> float:
    """e_end, that of the last iterate if ``find`` is ``along``; infinity where it has no value."""
    errors = find(run, "error")
    return errors[-1] if errors else math.inf


def counted_error(run: Run) -> float | None:
    """e_end, at most e_0; None for a run that was refused before it began."""
    errors = returned(run, "error")
    return min(errors[-1], errors[0]) if errors else None


def diverged(run: Run, find: Callable[[Run, str], list[float]] = returned) -> bool:
    """By what the run returns, or by its last iterate if ``find`` is ``along``."""
    heldout = find(run, "heldout")
    if run["failure"] or run["broken_off"] or not heldout:
        return True
    return not (heldout[-1] <= heldout[0] and math.isfinite(heldout[-1]))


def works(run: Run, part: float = REACHED) -> bool:
    """Whether no more than this part of the error is left."""
    errors = returned(run, "error")
    return bool(errors) and errors[-1] <= part * errors[0]


def worst_over_best(errors: Sequence[float]) -> float:
    """Their spread; infinity where one has no value."""
    return max(errors) / min(errors) if math.isfinite(max(errors)) else math.inf


class Rises(NamedTuple):
    """Of the held-out loss between marks: their share, and the largest."""

    share: float
    largest: float


def rises(heldout: Sequence[float]) -> Rises:
    changes = [_change(*pair) for pair in pairwise(heldout)]
    return Rises(sum(x > 0 for x in changes) / max(len(changes), 1), max([0.0, *changes]))


def _change(before: float, after: float) -> float:
    if math.isinf(before):
        return 0.0
    return after / before - 1 if before > 0 else 0.0


class Width(NamedTuple):
    """Decades that work, and whether they reach the lower or the upper end of the grid."""

    decades: float
    at_low: bool = False
    at_high: bool = False


def width(steps: Sequence[float], good: Sequence[bool]) -> Width:
    """Of the longest row of neighbours that work; step sizes in increasing order."""
    rows, first = [], 0
    for k, fine in enumerate([*good, False]):
        if not fine:
            rows.append((k - first, first, k))
            first = k + 1
    length, first, end = max(rows, key=lambda row: row[0])
    if not length:
        return Width(0.0)
    return Width(math.log10(steps[end - 1] / steps[first]), first == 0, end == len(steps))


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(groups: Mapping[str, Sequence[float]]) -> Interval | None:
    """The mean over problems of the means over seeds, with its interval; None without values.

    Args:
        groups: by problem, a value for each seed.
    """
    kept = [[*values] for values in groups.values() if values]
    if not kept:
        return None
    draw = random.Random(0)
    means = sorted(
        statistics.fmean(statistics.fmean(draw.choices(own, k=len(own))) for own in draw.choices(kept, k=len(kept)))
        for _ in range(DRAWS)
    )
    value = statistics.fmean(map(statistics.fmean, kept))
    return Interval(value, means[round(0.025 * (DRAWS - 1))], means[round(0.975 * (DRAWS - 1))])


class Study:
    """The rows of a study, by part, problem, method, step size and seed."""

    def __init__(self, rows: Iterable[Run]) -> None:
        self.rows = [*rows]
        self._kept: dict[tuple[str, str, str], list[Run]] = {}
        for row in self.rows:
            self._kept.setdefault((row["part"], row["problem"], row["method"]), []).append(row)

    def of(self, problem: str, method: str, part: str = "main", **wanted: Any) -> list[Run]:
        """Those of a method on a problem, with these values."""
        own = self._kept.get((part, problem, method), [])
        return [run for run in own if all(run[name] == value for name, value in wanted.items())]

    def all_of(self, method: str, part: str = "main") -> list[Run]:
        return [run for problem in self.problems for run in self.of(problem, method, part)]

    @property
    def problems(self) -> list[str]:
        return list(dict.fromkeys(run["problem"] for run in self.rows))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(run["method"] for run in self.rows))

    @property
    def seeds(self) -> list[int]:
        return sorted({run["seed"] for run in self.rows})

    def grid(self, problem: str, method: str, part: str = "main", **wanted: Any) -> list[float]:
        """The step sizes that were given, in increasing order."""
        return sorted({run["step"] for run in self.of(problem, method, part, **wanted)} - {None})

    def errors(self, problem: str, method: str, step: float | None, part: str = "main", **wanted: Any) -> list[float]:
        """e_end of the seeds."""
        return [end_error(run) for run in self.of(problem, method, part, step=step, **wanted)]

    def best_step(self, problem: str, method: str, part: str = "main", **wanted: Any) -> float | None:
        """The step size with the smallest median error; None for a method that is not given any."""
        grid = self.grid(problem, method, part, **wanted)
        median = lambda step: statistics.median(self.errors(problem, method, step, part, **wanted))
        return min(grid, key=median, default=None)

    def width(self, problem: str, method: str, seed: int, part: float = REACHED) -> Width | None:
        """None where there are no step sizes, or while one is missing that another seed has."""
        grid = self.grid(problem, method)
        found = {run["step"]: works(run, part) for run in self.of(problem, method, seed=seed)}
        if not grid or not set(grid) <= found.keys():
            return None
        return width(grid, [found[step] for step in grid])

    def widths(self, problem: str, method: str, part: float = REACHED) -> list[Width]:
        """One for each seed."""
        found = [self.width(problem, method, seed, part) for seed in self.seeds]
        return [x for x in found if x is not None]

"""The files of all runs, read: figures by case, over parameters and seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from racing.plan import finished
from racing.results import finite

from answering.plan import ADAPTER, FAMILY, TOLERANCE, Run, offline

WITHIN = 3.0
"""The factor by which an estimate may be off."""


class Figures(NamedTuple):
    """A family over seeds: medians of the seeds' own figures, but for the worst error and the largest rank.

    ``stations``, ``station``: how many, and their median error; ``offline``: their seconds.
    ``estimated``: the part of the answers whose estimate is within a factor of ``WITHIN``; ``kept``, ``kept_seconds``:
    the part that keeps its tolerance, and the median seconds of those answers; None where they were not asked for.
    ``together``: seconds of an answer where all are found at once; ``combined``: the part that are combinations.
    """

    seeds: int
    pretraining: float
    stations: float
    station: float
    offline: float
    seconds: float
    steps: float
    median: float
    worst: float
    rank: int
    estimated: float
    together: float
    combined: float
    kept: float | None
    kept_seconds: float | None


class Contest(NamedTuple):
    """A solver against the family: runs, how many reached its error, and medians of seconds and of how many times the
    family's they are; a run that did not reach it counts with all its seconds, so that both are lower bounds then.
    """

    runs: int
    reached: int
    seconds: float
    times: float
    smallest: float


class Adapters(NamedTuple):
    """The answers of a family as one adapter each: median seconds and error, the rest of all answers."""

    seconds: float
    median: float
    worst: float
    rank: int
    estimated: float


class Answers(NamedTuple):
    """Somebody who prepared: seconds of preparation and of an answer, median and worst error."""

    seeds: int
    offline: float
    seconds: float
    median: float
    worst: float


class Results:
    """Runs by what they are.

    Args:
        runs: all of them, each with ``case``, ``what``, ``seed`` and, for solvers, ``target``.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = [*runs]

    @classmethod
    def read(cls, folder: Path) -> Results:
        found = (finished(file) for file in sorted(folder.glob("*.json")))
        return cls(run for run in found if run is not None)

    def of(self, case: str, what: str) -> list[Run]:
        return [run for run in self.runs if (run["case"], run["what"]) == (case, what)]

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(run["case"] for run in self.runs))

    def figures(self, case: str) -> Figures | None:
        """Of the family; None without a run."""
        runs = self.of(case, FAMILY)
        if not runs:
            return None
        over = lambda name: [[answer[name] for answer in run["answers"]] for run in runs]
        errors = [[*map(finite, seed)] for seed in over("error")]
        middle = lambda parts: statistics.median(statistics.median(seed) for seed in parts)
        answers = [answer for run in runs for answer in run["answers"]]
        return Figures(
            seeds=len(runs),
            pretraining=statistics.median(run["pretraining_seconds"] for run in runs),
            stations=statistics.median(len(run["stations"]) for run in runs),
            station=middle([[finite(station["error"]) for station in run["stations"]] for run in runs]),
            offline=statistics.median(run["offline_seconds"] for run in runs),
            seconds=middle(over("seconds")),
            steps=middle(over("steps")),
            median=middle(errors),
            worst=max(max(seed) for seed in errors),
            rank=max(max(seed) for seed in over("rank")),
            estimated=_part(honest(answer) for answer in answers),
            together=statistics.median(run["together"] for run in runs),
            combined=_part(answer["form"] == "combination" for answer in answers),
            **self._kept(case),
        )

    def adapters(self, case: str) -> Adapters | None:
        """Of the family; None without a run."""
        answers = [answer for run in self.of(case, ADAPTER) for answer in run["answers"]]
        if not answers:
            return None
        errors = [finite(answer["error"]) for answer in answers]
        return Adapters(
            seconds=statistics.median(answer["seconds"] for answer in answers),
            median=statistics.median(errors),
            worst=max(errors),
            rank=max(answer["rank"] for answer in answers),
            estimated=_part(map(honest, answers)),
        )

    def _kept(self, case: str) -> dict[str, float | None]:
        runs = self.of(case, TOLERANCE)
        if not runs:
            return {"kept": None, "kept_seconds": None}
        answers = [(answer, run["tolerance"]) for run in runs for answer in run["answers"]]
        return {
            "kept": _part(finite(answer["error"]) <= tolerance for answer, tolerance in answers),
            "kept_seconds": statistics.median(answer["seconds"] for answer, _ in answers),
        }

    def contest(self, case: str, solver: str) -> Contest | None:
        """A solver to the errors of the family; None without a run."""
        families = {run["seed"]: run["answers"] for run in self.of(case, FAMILY)}
        runs = [run for run in self.of(case, solver) if run["seed"] in families]
        if not runs:
            return None
        ours = [families[run["seed"]][run["target"]] for run in runs]
        times = [seconds_to(run, answer["error"]) for run, answer in zip(runs, ours, strict=True)]
        spent = [run["spent"] if seconds is None else seconds for run, seconds in zip(runs, times, strict=True)]
        return Contest(
            runs=len(runs),
            reached=sum(seconds is not None for seconds in times),
            seconds=statistics.median(spent),
            times=statistics.median(s / answer["seconds"] for s, answer in zip(spent, ours, strict=True)),
            smallest=statistics.median(finite(run["reached"]) for run in runs),
        )

    def answers(self, case: str, preparer: str) -> Answers | None:
        """Somebody who prepared; None without a run."""
        runs = self.of(case, preparer)
        if not runs:
            return None
        errors = [finite(answer["error"]) for run in runs for answer in run["answers"]]
        return Answers(
            seeds=len(runs),
            offline=statistics.median(run["prepared_seconds"] for run in runs),
            seconds=statistics.median(answer["seconds"] for run in runs for answer in run["answers"]),
            median=statistics.median(errors),
            worst=max(errors),
        )

    def offline(self, case: str) -> float:
        """CPU seconds of pretraining and stations, the median over seeds."""
        return statistics.median(offline(run) for run in self.of(case, FAMILY))


def honest(answer: Run) -> bool:
    """Whether the estimate of an answer is within the factor of its error."""
    estimate, error = finite(answer["estimate"]), finite(answer["error"])
    return math.isfinite(estimate) and error / WITHIN <= estimate <= WITHIN * error


def seconds_to(run: Run, error: float) -> float | None:
    """When a solver reached an error; None if it did not."""
    return next((seconds for seconds, there in run["marks"] if finite(there) <= error), None)


def _part(true: Iterable[bool]) -> float:
    values: Sequence[bool] = [*true]
    return sum(values) / len(values)

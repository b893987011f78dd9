"""Which runs make the race, in which order, and which of them are done: a file for each, so that it can be interrupted.

Seed by seed, so that a part of the race is a race. A contender with learning rates is swept on a case just before its
first run there. Its 30 s run does not give its 10 s figure, since its cosine would end too late for it: it runs twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from racing.cases import Case
from racing.contenders import Contender

SWEEP_SEED = 101
FLOOR_SEED = 0
FLOOR = 10.0
"""A run that shows where a contender ends, over the time of the race."""


class Job(NamedTuple):
    """One run. ``rate``: the learning rate that a sweep tries; None for the best of the sweep, or for none at all."""

    case: Case
    contender: Contender
    seed: int
    seconds: float
    rate: float | None = None

    @property
    def setting(self) -> str:
        return f"{self.seconds:g}s" if self.rate is None else f"sweep{self.rate:g}_{self.seconds:g}s"

    @property
    def file(self) -> str:
        return f"{self.case.name}-{self.contender.name}-{self.setting}-{self.seed}.json"


def horizons(contender: Contender, seconds: float) -> tuple[float, ...]:
    """How long a contender runs: once, or once to every end of its cosine."""
    return (seconds / 3, seconds) if contender.rates else (seconds,)


def sweep(case: Case, contender: Contender, seconds: float) -> list[Job]:
    return [Job(case, contender, SWEEP_SEED, seconds / 3, rate) for rate in contender.rates]


def jobs(
    cases: Sequence[Case], contenders: Sequence[Contender], seconds: float, seeds: Sequence[int] | None = None
) -> Iterator[Job]:
    """All runs of the race, sweeps included; ``seeds`` leaves out the others."""
    swept = set()
    for seed in sorted({seed for case in cases for seed in case.seeds}):
        if seeds is not None and seed not in seeds:
            continue
        for case in (case for case in cases if seed in case.seeds):
            for contender in (contender for contender in contenders if contender.races_on(case.name)):
                if (case.name, contender.name) not in swept:
                    yield from sweep(case, contender, seconds)
                    swept.add((case.name, contender.name))
                for horizon in horizons(contender, seconds):
                    yield Job(case, contender, seed, horizon)


def floor(case: Case, contender: Contender, seconds: float) -> Job:
    return Job(case, contender, FLOOR_SEED, FLOOR * seconds)


def finished(file: Path) -> dict[str, Any] | None:
    """The run in a file; None without one, or for one that somebody broke off."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


def swept_error(run: Mapping[str, Any]) -> float:
    """What a sweep judges a learning rate by."""
    return math.inf if run["diverged"] else run["marks"][-1]["rel_l2"]


def best_rate(folder: Path, case: Case, contender: Contender, seconds: float) -> float | None:
    """The learning rate with the smallest error at the end of the sweep.

    Raises:
        LookupError: if the sweep is not complete.
    """
    if not contender.rates:
        return None
    tried = {}
    for job in sweep(case, contender, seconds):
        found = finished(folder / job.file)
        if found is None:
            raise LookupError(f"{job.file} is missing: the sweep of {contender.name} on {case.name} is not complete.")
        tried[job.rate] = swept_error(found)
    return min(tried, key=tried.__getitem__)

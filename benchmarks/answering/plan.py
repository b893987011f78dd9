"""What is run, in which order, and what is there already: a file for every run, so that it can be interrupted.

Seed by seed and case by case: the family with its answers, those with a tolerance and those by one adapter, and then
the rivals. A solver has the family's
error for its target, and everybody who prepares its time, so that they are run again where the family has changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from racing.plan import finished
from racing.results import finite

from answering.cases import CASES, Case
from answering.roster import RIVALS, SOLVERS

Run = dict[str, Any]
FAMILY, TOLERANCE, ADAPTER = "family", "tolerance", "adapter"


class Plan(NamedTuple):
    """What is asked for.

    ``parameters``: that each family answers; ``kept``: how many of them it answers with a tolerance, too, and
    ``targets``: how many solvers are given, the first ones.
    ``offline``: seconds of stations at most; ``cap``: those of a solver. ``rival_seeds``: seeds that rivals run with.
    """

    cases: tuple[str, ...] = tuple(CASES)
    rivals: tuple[str, ...] = tuple(RIVALS)
    seeds: tuple[int, ...] = (0, 1, 2)
    rival_seeds: tuple[int, ...] = (0,)
    parameters: int = 64
    kept: int = 64
    targets: int = 4
    offline: float = 60.0
    cap: float = 60.0


class Job(NamedTuple):
    """One run. ``target``: which of the parameters a solver has."""

    case: Case
    what: str
    seed: int
    target: int | None = None

    @property
    def file(self) -> str:
        number = "" if self.target is None else f"-{self.target}"
        return f"{self.case.name}-{self.what}-{self.seed}{number}.json"


def jobs(plan: Plan) -> Iterator[Job]:
    """All runs in order."""
    for seed in plan.seeds:
        for case in (CASES[name] for name in plan.cases):
            yield Job(case, FAMILY, seed)
            yield Job(case, TOLERANCE, seed)
            yield Job(case, ADAPTER, seed)
            for name in plan.rivals if seed in plan.rival_seeds else ():
                if RIVALS[name].missing(case):
                    continue
                targets: Sequence[int | None] = range(plan.targets) if name in SOLVERS else (None,)
                yield from (Job(case, name, seed, target) for target in targets)


def family_run(job: Job, folder: Path) -> Run | None:
    """The run of the family that a job is measured against."""
    return finished(folder / Job(job.case, FAMILY, job.seed).file)


def target_of(job: Job, family: Run) -> float:
    """The family's error at the parameter of a solver."""
    return finite(family["answers"][job.target]["error"])


def up_to_date(job: Job, folder: Path, plan: Plan) -> bool:
    """Whether there is nothing to run."""
    found, family = finished(folder / job.file), family_run(job, folder)
    if found is None or family is None:
        return False
    if job.what in SOLVERS:
        return found["reached"] <= target_of(job, family) or found["cap"] >= plan.cap
    if job.what == FAMILY:
        return len(found["answers"]) >= plan.parameters and found["asked"] == plan.offline
    wanted = plan.kept if job.what == TOLERANCE else plan.parameters
    return found["offline"] == offline(family) and len(found["answers"]) >= wanted


def offline(family: Run) -> float:
    """CPU seconds before the first answer."""
    return family["pretraining_seconds"] + family["offline_seconds"]

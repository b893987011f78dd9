"""All runs of the study that are missing, side by side, a file for each as soon as it is done.

A file holds what decides whether it is the run that is asked for: everything in ``Case``. A study that was interrupted
at any moment goes on where it was, and so does one that gains a method.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pinn_odelora.errors import InputError
from pinn_odelora.files import write_json
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.runs.messages import say
from pinn_odelora.stability.plan import Case
from pinn_odelora.sweeps.jobs import Job
from pinn_odelora.sweeps.processes import in_processes

NETWORKS = "networks"
RUNS = "runs"


def study(cases: Sequence[Case], folder: Path, workers: int) -> int:
    """Make the runs that the folder does not have; how many were made.

    Args:
        cases: in the order in which they are made.
        folder: of the pretrained networks and the runs.
        workers: processes.

    Raises:
        InputError: for a run that failed otherwise than by diverging: with its sentence, when all others are made.
        SystemExit: if the study is interrupted, with code 130.
    """
    from pinn_odelora.stability.running import network

    missing = [case for case in cases if finished(folder, case) is None]
    if not missing:
        return 0
    for problem in dict.fromkeys(case.problem for case in missing):
        if not (folder / NETWORKS / f"{problem}.safetensors").is_file():
            say(f"Pretraining the network of {problem}, once for all runs.")
            network(problem, folder / NETWORKS)
    jobs = (Job(k, case.name, partial(keep, case, folder)) for k, case in enumerate(missing))
    failed = [x for x in in_processes(jobs, len(missing), workers) if x is not None]
    if failed:
        raise InputError(f"{len(failed)} of {len(missing)} runs ended in an error; the first: {failed[0]}")
    return len(missing)


def keep(case: Case, folder: Path, clock: Callable[[], float] | None = None) -> None:
    """Make a run, and leave its file."""
    from pinn_odelora.stability.running import network, perform

    keep_freed_memory()
    net = network(case.problem, folder / NETWORKS)
    made = perform(case, net) if clock is None else perform(case, net, clock)
    write_json(folder / RUNS / f"{case.name}.json", made)


def finished(folder: Path, case: Case) -> dict[str, Any] | None:
    """The run of a case; None while it is missing, or where its file is of another one."""
    found = read(folder / RUNS / f"{case.name}.json")
    return found if found is not None and same(found, case) else None


def same(run: Mapping[str, Any], case: Case) -> bool:
    """Whether a run is that of a case."""
    return all(run.get(name) == value for name, value in case.as_dict().items())


def read(file: Path) -> dict[str, Any] | None:
    """The run in a file; None without one, or for a damaged one."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None

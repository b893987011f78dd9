"""python -m pinn_odelora study stability: make the runs that are missing, and report on all.

The exit code is 1 when a target is missed, 2 when none is but runs are missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pinn_odelora.errors import InputError, unknown
from pinn_odelora.rules import whole
from pinn_odelora.runs.messages import say
from pinn_odelora.stability import console, report, storage
from pinn_odelora.stability.methods import METHODS
from pinn_odelora.stability.plan import FULL, PROBLEMS, QUICK, Case, Form, cases
from pinn_odelora.stability.studying import finished, study
from pinn_odelora.stability.verdicts import Target, targets
from pinn_odelora.sweeps.processes import cores

RUNS = Path("runs/stability")


def run(args: argparse.Namespace) -> int:
    """The command; its exit code.

    Raises:
        InputError: for a name that does not exist, a number of workers below one, without pyarrow or any run.
    """
    form, folder = QUICK if args.quick else FULL, args.runs or RUNS
    problems = _known("problem", args.problems, PROBLEMS)
    methods = _known("method", args.methods, METHODS)
    storage.modules()  # before hours of runs, not after them
    workers = cores() if args.workers is None else whole(1).check("workers", args.workers)
    for name in methods:
        if not METHODS[name].present:
            say(f"{name} takes no part: the package has no method of this name.")
    if not args.report:
        study([*cases(form, problems, methods, args.timed)], folder, workers)
    runs = made(folder, planned(form))
    if not runs:
        raise InputError(f"{folder} holds no run of this study: leave --report out, or name another folder by --runs.")
    results = args.results or folder / ("report-quick" if args.quick else "report")
    found = report.write(runs, form, PROBLEMS, results)
    judged = targets(found, PROBLEMS, form.seeds)
    shown = Console(width=max(Console().width, 120))
    shown.print(console.progress(found))
    shown.print(console.targets(judged))
    print(results / report.PAGE)
    return code(judged)


def code(judged: Sequence[Target]) -> int:
    """1 when a target is missed, 2 when none is but runs are missing, else 0."""
    states = {target.state for target in judged}
    return 1 if "short" in states else 2 if "incomplete" in states else 0


def planned(form: Form) -> list[Case]:
    """All runs of a form."""
    return [*cases(form), *cases(form, timed=True)]


def made(folder: Path, wanted: Iterable[Case]) -> list[dict[str, Any]]:
    """Those of the runs that the folder has."""
    return [found for case in wanted if (found := finished(folder, case)) is not None]


def _known(what: str, given: Sequence[str] | None, allowed: Iterable[str]) -> list[str]:
    names = [*allowed]
    for name in given or ():
        if name not in names:
            raise unknown(what, name, names)
    return names if given is None else [*given]

"""The study in the terminal: what has been run, and how it went so far."""

from __future__ import annotations

import statistics

from rich.table import Table

from pinn_odelora.stability.measures import Study, diverged, end_error
from pinn_odelora.stability.methods import METHODS


def table(study: Study) -> Table:
    """A row for each method: widths, runs that diverged, and the smallest median errors."""
    shown = Table("method", "runs", "diverged", "width, decades", *study.problems, title="Stability so far")
    for name in METHODS:
        runs = study.of(method=name, part="main")
        if not runs:
            shown.add_row(name, "0" if METHODS[name].present else "missing", *[""] * (2 + len(study.problems)))
            continue
        widths = [w.decades for found in study.widths(name).values() for w in found]
        wide = f"{statistics.fmean(widths):.2f}" if widths else ""
        errors = [_best(study, problem, name) for problem in study.problems]
        shown.add_row(name, str(len(runs)), str(sum(map(diverged, runs))), wide, *errors)
    return shown


def _best(study: Study, problem: str, method: str) -> str:
    runs = study.of(problem=problem, method=method, part="main")
    by_step = [[end_error(run) for run in runs if run["step"] == step] for step in {run["step"] for run in runs}]
    return f"{min(statistics.median(errors) for errors in by_step):.1e}" if by_step else ""

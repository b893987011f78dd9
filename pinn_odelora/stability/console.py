"""The study in the terminal: what has been run, and how it went so far."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table

from pinn_odelora.stability.measures import Study, diverged
from pinn_odelora.stability.methods import METHODS
from pinn_odelora.stability.verdicts import Target


def progress(study: Study) -> Table:
    """A row for each method: widths, runs that diverged, and the smallest median errors."""
    shown = Table("method", "runs", "diverged", "width, decades", *study.problems, title="Stability so far")
    for name, entry in METHODS.items():
        runs = study.all_of(name)
        if not runs:
            shown.add_row(name, "none" if entry.present else "missing")
            continue
        widths = [w.decades for problem in study.problems for w in study.widths(problem, name)]
        wide = f"{statistics.fmean(widths):.2f}" if widths else ""
        errors = [_best(study, problem, name) for problem in study.problems]
        shown.add_row(name, str(len(runs)), str(sum(map(diverged, runs))), wide, *errors)
    return shown


def targets(judged: Sequence[Target]) -> Table:
    shown = Table("target", "found", "", title="Targets")
    for target in judged:
        shown.add_row(*target)
    return shown


def _best(study: Study, problem: str, method: str) -> str:
    errors = study.errors(problem, method, study.best_step(problem, method))
    return f"{statistics.median(errors):.1e}" if errors else ""

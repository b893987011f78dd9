"""The stability picture: error against step size, a panel for each problem."""

from __future__ import annotations

import math
import statistics
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from pinn_odelora.stability.measures import REACHED, Study, returned
from pinn_odelora.stability.methods import METHODS, OURS

HIGHEST = 10.0
"""Errors above, and those without a value, are drawn here."""
COLUMNS = 2


def picture(study: Study) -> Figure:
    """Lines are medians over seeds, bands reach from the best seed to the worst.

    The step sizes of a method are drawn relative to the middle of its grid, which for published optimisers is the
    default; full lines are ours, dashed ones the rivals'.
    """
    problems = study.problems
    rows = -(-max(len(problems), 1) // COLUMNS)
    figure = Figure(figsize=(6.2 * COLUMNS, 4.2 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for panel in panels[len(problems) :]:
        panel.remove()
    drawn: dict[str, Any] = {}
    for problem, panel in zip(problems, panels, strict=False):
        panel.set(title=problem, xscale="log", yscale="log", xlabel="step size / middle of the grid")
        panel.set_ylabel("relative L2 error")
        _levels(panel, study, problem)
        for name in study.methods:
            if name in METHODS and (line := _draw(panel, study, problem, name)):
                drawn[name] = line
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=5)
    return figure


def _levels(panel: Any, study: Study, problem: str) -> None:
    """The error of the start, the tenth of it, and that of the default settings."""
    starts = [returned(run, "error")[0] for name in study.methods for run in study.of(problem, name) if run["error"]]
    if starts:
        panel.axhline(starts[0], color="0.4", lw=0.8)
        panel.axhline(REACHED * starts[0], color="0.4", lw=0.8, ls=":")
    own = [_drawn_error(run) for run in study.of(problem, OURS)]
    if own:
        panel.axhline(statistics.median(own), color=_colour(OURS), lw=1.2, ls="-.")


def _draw(panel: Any, study: Study, problem: str, method: str) -> Any:
    grid = study.grid(problem, method)
    if not grid:
        return None
    errors = [[_drawn_error(run) for run in study.of(problem, method, step=step)] for step in grid]
    places = [step / METHODS[method].middle for step in grid]
    colour, style = _colour(method), "-" if METHODS[method].family == "ours" else "--"
    panel.fill_between(places, [*map(min, errors)], [*map(max, errors)], color=colour, alpha=0.12, lw=0)
    width = 2.0 if method == "odelora_implicit" else 1.2
    return panel.plot(places, [*map(statistics.median, errors)], color=colour, ls=style, lw=width, marker=".")[0]


def _drawn_error(run: Any) -> float:
    errors = returned(run, "error")
    return min(errors[-1], HIGHEST) if errors and math.isfinite(errors[-1]) else HIGHEST


def _colour(method: str) -> Any:
    names = [*METHODS]
    return "#d62728" if method in (OURS, "odelora_implicit") else colormaps["tab20"](names.index(method) % 20)

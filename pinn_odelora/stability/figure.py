"""The stability picture: error against step size, a panel for each problem."""

from __future__ import annotations

import math
import statistics
from typing import Any

from matplotlib.figure import Figure

from pinn_odelora.stability.measures import REACHED, Study, returned
from pinn_odelora.stability.methods import METHODS, OURS

HIGHEST = 10.0
"""Errors above, and those without a value, are drawn here."""
COLUMNS = 2
COLOURS = {
    OURS: "#d62728",
    "odelora_implicit": "#d62728",
    "odelora_euler": "#ff7f0e",
    "odelora_rk4": "#bc8f00",
    "odelora_rkc2": "#e377c2",
    "lora_gd": "#7f7f7f",
    "lora_adam": "#000000",
    "lora_plus": "#1f77b4",
    "scaled_adamw": "#17becf",
    "lora_pro_adamw": "#2ca02c",
    "lora_rite": "#9467bd",
    "reflora": "#8c564b",
    "altlora_plus": "#9acd32",
}
"""Warm ones are ours."""


def picture(study: Study) -> Figure:
    """Lines are medians over seeds, bands reach from the best seed to the worst.

    The step sizes of a method are drawn relative to the middle of its grid, which for published optimisers is the
    default; full lines are ours, dashed ones the rivals'. What is too large to be drawn, or has no value, is a cross.
    """
    problems = study.problems
    rows = -(-max(len(problems), 1) // COLUMNS)
    figure = Figure(figsize=(6.2 * COLUMNS, 4.2 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for panel in panels[len(problems) :]:
        panel.remove()
    drawn: dict[str, Any] = {}
    order = [name for name in METHODS if name in study.methods]
    for problem, panel in zip(problems, panels, strict=False):
        panel.set(title=problem, xscale="log", yscale="log", xlabel="step size / middle of the grid")
        panel.set_ylabel("relative L2 error")
        panel.axvline(1.0, color="0.8", lw=0.8, zorder=0)
        if level := _levels(panel, study, problem):
            drawn[f"{OURS}, default settings"] = level
        for name in order:
            if line := _draw(panel, study, problem, name):
                drawn[name] = line
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=5)
    return figure


def _levels(panel: Any, study: Study, problem: str) -> Any:
    """The error of the start, the tenth of it, and that of the default settings, which is returned; None without."""
    starts = [returned(run, "error")[0] for name in study.methods for run in study.of(problem, name) if run["error"]]
    if starts:
        panel.axhline(starts[0], color="0.4", lw=0.8)
        panel.axhline(REACHED * starts[0], color="0.4", lw=0.8, ls=":")
    own = [_drawn_error(run) for run in study.of(problem, OURS)]
    return panel.axhline(statistics.median(own), color=COLOURS[OURS], lw=1.5, ls="-.") if own else None


def _draw(panel: Any, study: Study, problem: str, method: str) -> Any:
    grid = study.grid(problem, method)
    if not grid:
        return None
    errors = [[_drawn_error(run) for run in study.of(problem, method, step=step)] for step in grid]
    places = [step / METHODS[method].middle for step in grid]
    colour, style = COLOURS[method], "-" if METHODS[method].family == "ours" else "--"
    panel.fill_between(places, [*map(min, errors)], [*map(max, errors)], color=colour, alpha=0.12, lw=0)
    middles = [*map(statistics.median, errors)]
    lost = [(place, x) for place, x in zip(places, middles, strict=True) if x >= HIGHEST]
    panel.plot([place for place, _ in lost], [x for _, x in lost], color=colour, ls="", marker="x")
    width = 2.2 if method == "odelora_implicit" else 1.3
    return panel.plot(places, middles, color=colour, ls=style, lw=width, marker=".")[0]


def _drawn_error(run: Any) -> float:
    errors = returned(run, "error")
    return min(errors[-1], HIGHEST) if errors and math.isfinite(errors[-1]) else HIGHEST

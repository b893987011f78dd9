"""The figure of what a run cost: loss, error and balance against gradient evaluations and seconds."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pinn_odelora.files import write_figure
from pinn_odelora.runs.style import BLUE, ORANGE, RED, STYLE

COSTS = (("cost/gradient_evals", "gradient evaluations"), ("cost/seconds", "seconds"))
"""The horizontal axes of the history, from the top, and their names."""

ERROR, TERM = "error/rel_l2", "loss/"
QUANTITIES = (
    ("loss", "loss"),
    (ERROR, "relative $L^2$ error"),
    ("lora/balance", r"balance $\Vert B^T\!B - AA^T\Vert$"),
)
"""The panels of the history, from the left, and their titles."""


def history_figure(rows: Sequence[Mapping[str, float]], path: str | os.PathLike[str]) -> Figure:
    """Loss, relative L2 error and balance defect against gradient evaluations and seconds; saved as an image.

    Without a reference the terms of the loss take the place of the error. Steps at which the held-out loss rose are
    marked on it. The panel of a quantity that the method does not have says that there are no values.

    Args:
        rows: the logged steps, as ``History.rows``; columns may be missing, values may be NaN.
        path: the image file.
    """
    terms = _terms(rows)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2))
        panels = figure.subplots(2, 3, sharex="row", sharey="col")
        for line, (cost, cost_name) in zip(panels, COSTS, strict=True):
            x = _column(rows, cost)
            for axes, (name, _) in zip(line, QUANTITIES, strict=True):
                axes.set_xlabel(cost_name)
                if name == ERROR and terms:
                    for term in terms:
                        _curve(axes, x, _column(rows, f"{TERM}{term}"), label=term)
                else:
                    _curve(axes, x, _column(rows, name), color=BLUE, label="training")
            _held_out(line[0], x, rows)
        for axes, (name, title) in zip(panels[0], QUANTITIES, strict=True):
            axes.set_title("loss by term" if name == ERROR and terms else title)
        for axes in panels.flat:
            _finish_axes(axes)
        panels[0, 0].legend(handles=list(panels[0, 0].lines))
        if terms:
            panels[0, 1].legend(handles=list(panels[0, 1].lines))
        write_figure(path, figure)
    return figure


def _terms(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """The terms of the loss, where no row has an error."""
    known = any(math.isfinite(row.get(ERROR, math.nan)) for row in rows)
    names = dict.fromkeys(name for row in rows for name in row if name.startswith(TERM))
    return [] if known else [name.removeprefix(TERM) for name in names]


def _column(rows: Sequence[Mapping[str, float]], name: str) -> NDArray:
    """One quantity over the rows, (len(rows),), NaN where it is missing or infinite."""
    values = np.array([row.get(name, math.nan) for row in rows], dtype=float)
    return np.where(np.isfinite(values), values, math.nan)


def _curve(axes: Axes, x: NDArray, y: NDArray, **look: Any) -> None:
    # A logarithmic axis would draw a zero as a fall out of the picture.
    shown = np.isfinite(x) & (y > 0)
    if shown.any():
        axes.plot(x, np.where(shown, y, math.nan), marker="o" if shown.sum() == 1 else "", markersize=3, **look)


def _held_out(axes: Axes, x: NDArray, rows: Sequence[Mapping[str, float]]) -> None:
    y = _column(rows, "stability/heldout_loss")
    _curve(axes, x, y, color=ORANGE, linestyle="--", label="held out")
    rose = _column(rows, "stability/rose") > 0
    if (rose & (y > 0)).any():
        axes.plot(x[rose], y[rose], linestyle="", marker=".", markersize=3, color=RED, label="rise")


def _finish_axes(axes: Axes) -> None:
    if not axes.lines:
        axes.text(0.5, 0.5, "no values to show", transform=axes.transAxes, ha="center", va="center")
        axes.tick_params(left=False, labelleft=False)
        axes.grid(visible=False)
        return
    axes.set_yscale("log")
    axes.margins(x=0.02)
    low, high = axes.get_ylim()
    if high < 6 * low:  # within a decade plain numbers are easier to read than powers of ten
        axes.yaxis.set_major_formatter("{x:.4g}")
        axes.yaxis.set_minor_formatter("{x:.4g}")

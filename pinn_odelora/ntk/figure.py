"""The picture of an advice on the rank: what ranks leave in the linearised model, and what their steps cost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pinn_odelora.files import write_figure
from pinn_odelora.runs.style import BLUE, ORANGE, RED, STYLE

if TYPE_CHECKING:
    from pinn_odelora.ntk.rank import RankAdvice


def rank_figure(advice: RankAdvice, path: str | os.PathLike[str]) -> Figure:
    """Predicted residual, seconds of a step and the price at equal seconds against the rank; saved as an image.

    Args:
        advice: what is drawn; the advised rank is marked in every panel.
        path: the image file.
    """
    ranks = [x.rank for x in advice.predictions]
    panels = (
        ("predicted residual, relative", [x.residual for x in advice.predictions], BLUE),
        ("seconds per step", [x.seconds for x in advice.predictions], ORANGE),
        ("price at equal seconds", [x.price for x in advice.predictions], BLUE),
    )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.2))
        for axes, (title, values, colour) in zip(figure.subplots(1, 3), panels, strict=True):
            axes.plot(ranks, values, color=colour, marker=".")
            axes.plot(advice.rank, values[ranks.index(advice.rank)], "o", color=RED, fillstyle="none")
            axes.set(title=title, xlabel="rank", xscale="log", yscale="log", xticks=ranks, xticklabels=ranks)
            axes.xaxis.set_minor_locator(NullLocator())
        residuals = figure.axes[0]
        residuals.axhline(advice.residual, color="0.4", lw=0.8, ls=":", label="all weights")
        residuals.axhline(advice.tolerance, color="0.4", lw=0.8, ls="--", label="tolerance")
        residuals.legend()
        write_figure(path, figure)
    return figure

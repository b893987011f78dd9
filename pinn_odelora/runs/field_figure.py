"""The picture of an unknown field that was found, over its one or two coordinates."""

from __future__ import annotations

import os

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from pinn_odelora.field_networks import FoundField
from pinn_odelora.files import write_figure
from pinn_odelora.runs.style import BLUE, STYLE

POINTS = 200


def field_figure(name: str, field: FoundField, path: str | os.PathLike[str]) -> Figure:
    """A line over one coordinate, colours over two.

    Args:
        name: of the field.
        field: a function of one or two coordinates.
        path: the image file.
    """
    axes = [np.linspace(low, high, POINTS) for low, high in field.intervals]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 2.4))
        panel = figure.subplots()
        panel.set_xlabel(f"${field.coords[0]}$")
        if len(axes) == 1:
            panel.plot(axes[0], field(*axes), color=BLUE)
        else:
            drawn = panel.pcolormesh(*axes, field(*np.meshgrid(*axes)), shading="nearest")
            panel.set_ylabel(f"${field.coords[1]}$", rotation=0, labelpad=8)
            panel.grid(visible=False)
            figure.colorbar(drawn)
        panel.set_title(f"${name}$")
        write_figure(path, figure)
    return figure

"""The figure of what a network solved.

With a reference it shows reference, prediction and error; without one the prediction, the measured values if there are
any, and where the equation is violated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from pinn_odelora.files import write_figure
from pinn_odelora.formulation import Problem
from pinn_odelora.points import Points
from pinn_odelora.runs.planes import Plane, evenly, plane, proportion
from pinn_odelora.runs.pointwise import MEASURED
from pinn_odelora.runs.style import BLUE, ORANGE, RED, STYLE

DECADES = 1e-4
"""The smallest residual of a picture relative to the largest."""
DOTS = 400
"""Most measured points of a picture."""
Pointwise = Callable[[Points], Tensor]


class Panel(NamedTuple):
    """One picture of a row: values (N,), their colours, and which field they are."""

    title: str
    values: Tensor
    norm: Normalize
    cmap: str = "viridis"
    bar: bool = True
    field: str = ""


def solution_figure(
    problem: Problem,
    solution: Pointwise,
    path: str | os.PathLike[str],
    resolution: int = 160,
    residual: Pointwise | None = None,
    measured: Points | None = None,
) -> Figure:
    """Reference, prediction and error side by side, one row for each field; saved as an image.

    Reference and prediction share one colour scale, that of the reference, so that a wrong amplitude shows. In more
    than two dimensions the other coordinates are held at the middle of the domain. Where no reference is known, the
    prediction is shown beside the components of the residual, on a logarithmic scale.

    Args:
        problem: has the region, the names and the reference.
        solution: the map Points -> (N, fields).
        path: the image file.
        resolution: points along each coordinate.
        residual: |r| of the equation, Points -> (N, components).
        measured: measured points, their values as columns ``measured_<field>``, drawn as dots of the same colours.
    """
    if len(problem.coords) == 1:
        return _line_figure(problem, solution, path, residual, measured)
    shown = plane(problem, resolution)
    predictions, references = _columns(problem, solution, shown.points)
    table = [_panels(*row) for row in zip(problem.fields, predictions, references, strict=True)]
    if references[0] is None and residual is not None:
        _beside_predictions(table, residual(shown.points))
    wide = max(map(len, table))
    height = (1.6 * proportion(shown) + 0.55) * len(table) + 0.25 * bool(shown.note)
    with mpl.rc_context(STYLE | {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(2.4 * wide if wide > 1 else 3.2, height))
        grid = figure.subplots(len(table), wide, squeeze=False, sharex=True, sharey=True)
        for line, row in zip(grid, table, strict=True):
            for axes, panel in zip(line, row, strict=False):
                _draw(figure, axes, shown, panel)
                _dots(axes, shown, panel, measured)
            for axes in line[len(row) :]:
                axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(f"${shown.axes[1]}$", rotation=0, labelpad=8)
        for axes in grid[-1]:
            axes.set_xlabel(f"${shown.axes[0]}$")
        if shown.note:
            figure.suptitle(shown.note, fontsize=8)
        write_figure(path, figure)
    return figure


def _line_figure(
    problem: Problem,
    solution: Pointwise,
    path: str | os.PathLike[str],
    residual: Pointwise | None,
    measured: Points | None,
) -> Figure:
    """With a single coordinate: prediction, reference and measured values in one panel; in the other the difference, or
    without a reference the components of the residual.
    """
    (coord,) = problem.coords
    points = problem.region.sample(1000, evenly)
    points = Points({coord: points[coord].sort(dim=0).values})
    predictions, references = _columns(problem, solution, points)
    known = references[0] is not None
    violated = None if known or residual is None else residual(points)
    with mpl.rc_context(STYLE):
        columns = 2 if known or violated is not None else 1
        figure = Figure(figsize=(3.6 * columns, 2.2 * len(problem.fields)))
        rows = figure.subplots(len(problem.fields), columns, squeeze=False, sharex=True)
        for line, name, u, ref in zip(rows, problem.fields, predictions, references, strict=True):
            both = line[0]
            both.plot(points[coord], u, color=BLUE, label="prediction")
            both.set_title(f"${name}$")
            if measured is not None and f"{MEASURED}{name}" in measured:
                x, y = measured[coord].cpu(), measured[f"{MEASURED}{name}"].cpu()
                both.plot(x, y, color=ORANGE, linestyle="", marker="o", markersize=3, label="measured")
            if ref is not None:
                both.plot(points[coord], ref, color="black", linestyle=":", label="reference")
                line[1].plot(points[coord], u - ref, color=RED)
                line[1].set_title(f"${name} - {name}_\\mathrm{{ref}}$")
            both.legend()
        if violated is not None:
            _residual_lines(rows[:, 1], points[coord], violated)
        for axes in rows[-1]:
            axes.set_xlabel(f"${coord}$")
        write_figure(path, figure)
    return figure


def _residual_lines(panels: Sequence[Axes], x: Tensor, r: Tensor) -> None:
    """Component k in panel k; the rest in the last one."""
    for axes in panels:
        axes.set_visible(False)
    for k, values in enumerate(r.unbind(dim=1)):
        axes = panels[min(k, len(panels) - 1)]
        axes.set_visible(True)
        axes.plot(x, np.ma.masked_less_equal(values.numpy(), 0), color=RED)
        axes.set_yscale("log")
        axes.set_title("residual $|r|$" if r.shape[1] == 1 else f"residual $|r_{{{k + 1}}}|$")


def _columns(problem: Problem, solution: Pointwise, points: Points) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """Prediction and reference of every field at float64 points on the CPU, (N,) each; None where none is known."""
    reference = problem.known_reference(points)
    known = [None] * len(problem.fields) if reference is None else reference.detach().unbind(dim=1)
    return _predict(solution, points).unbind(dim=1), known


@torch.no_grad()
def _predict(solution: Pointwise, points: Points) -> Tensor:
    """The solution as float64 on the CPU, wherever and in whatever precision it lives."""
    like = next(solution.parameters(), None) if isinstance(solution, nn.Module) else None
    return solution(points if like is None else points.to(like)).double().cpu()


def _panels(name: str, prediction: Tensor, reference: Tensor | None) -> list[Panel]:
    if reference is None:
        return [Panel(f"prediction ${name}$", prediction, Normalize(*_range(prediction)), field=name)]
    error = prediction - reference
    largest = max(map(abs, _range(error)))
    shared, known = Normalize(*_range(reference)), f"{name}_\\mathrm{{ref}}"
    return [
        Panel(f"reference ${known}$", reference, shared, bar=False),
        Panel(f"prediction ${name}$", prediction, shared, field=name),
        Panel(f"${name} - {known}$", error, Normalize(-largest, largest), "RdBu_r"),
    ]


def _beside_predictions(table: list[list[Panel]], r: Tensor) -> None:
    """Add the components of the residual, (N, components), to the rows, one each, all in one scale."""
    largest = _range(r)[1]
    norm = LogNorm(DECADES * largest, largest) if largest > 0 else Normalize(0, 1)
    r = r.clamp(min=DECADES * largest)
    for k, values in enumerate(r.unbind(dim=1)):
        title = "residual $|r|$" if r.shape[1] == 1 else f"residual $|r_{{{k + 1}}}|$"
        table[min(k, len(table) - 1)].append(Panel(title, values, norm, "magma"))


def _range(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest finite value; (0, 1) when there is none, or only zeros."""
    finite = values[values.isfinite()]
    return (float(finite.min()), float(finite.max())) if finite.any() else (0.0, 1.0)


def _draw(figure: Figure, axes: Axes, shown: Plane, panel: Panel) -> None:
    drawn = shown.draw(axes, np.ma.masked_invalid(panel.values.numpy()), panel.norm, panel.cmap)
    if panel.bar:
        figure.colorbar(drawn, cax=_beside(axes), extend=_beyond(panel.values, panel.norm))
    axes.set_title(panel.title)
    axes.set_box_aspect(proportion(shown))
    axes.margins(0)


def _dots(axes: Axes, shown: Plane, panel: Panel, measured: Points | None) -> None:
    """Measured values of the field of a panel, where the measured points are projected to."""
    name = f"{MEASURED}{panel.field}"
    if not panel.field or measured is None or name not in measured:
        return
    every = -(-measured.number // DOTS)
    x, y, values = (measured[column].cpu()[::every, 0].numpy() for column in (*shown.axes, name))
    axes.scatter(x, y, c=values, s=10, norm=panel.norm, cmap=panel.cmap, edgecolors="white", linewidths=0.5)


def _beside(panel: Axes) -> Axes:
    """Room for a colour bar as high as the panel."""
    return panel.inset_axes((1.04, 0, 0.06, 1))


def _beyond(values: Tensor, norm: Normalize) -> str:
    """Which ends of a colour scale have values outside it; a hundredth of it does not count."""
    slack = 0.01 * (norm.vmax - norm.vmin)
    below, above = bool((values < norm.vmin - slack).any()), bool((values > norm.vmax + slack).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]

"""The figures of a run: what the network solved, and what it cost.

Matplotlib is used without pyplot: nothing is shown, no backend is chosen and no global setting changes.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation
from numpy.typing import NDArray
from torch import Tensor, nn

from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import Box, sobol
from pinn_odelora.geometry.deepxde import Shape
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.points import Points

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "savefig.dpi": 200,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.05,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.wspace": 0.06,
}

BLUE, ORANGE, RED = "#1f5fa8", "#e08214", "#c0182a"
"""Of the run, of its held-out loss, and of rises."""

Drawing = Callable[[Axes, NDArray, Normalize, str], ScalarMappable]
"""Draws values (N,) on axes with a norm and a colour map; returns what a colour bar belongs to."""


class Plane(NamedTuple):
    """Points that show a solution in two coordinates, the names of these, and how values at the points are drawn."""

    points: Points
    axes: tuple[str, str]
    draw: Drawing
    note: str = ""


class Panel(NamedTuple):
    """One picture of a row: values (N,) and their colours."""

    title: str
    values: Tensor
    norm: Normalize
    cmap: str = "viridis"
    bar: bool = True


def solution_figure(
    problem: Problem, solution: Callable[[Points], Tensor], path: str | os.PathLike[str], resolution: int = 160
) -> Figure:
    """Reference, prediction and error side by side, one row for each field; saved as an image.

    Reference and prediction share one colour scale, that of the reference, so that a wrong amplitude shows. In more
    than two dimensions the other coordinates are held at the middle of the domain. Where no reference is known, only
    the prediction is shown.

    Args:
        problem: has the region, the names and the reference.
        solution: the map Points -> (N, fields).
        path: the image file.
        resolution: points along each coordinate.
    """
    if len(problem.coords) == 1:
        return _line_figure(problem, solution, path)
    plane = _plane(problem, resolution)
    table = [
        _panels(name, *columns)
        for name, *columns in zip(problem.fields, *_columns(problem, solution, plane.points), strict=True)
    ]
    height = (1.6 * _proportion(plane) + 0.55) * len(table) + 0.25 * bool(plane.note)
    with mpl.rc_context(STYLE | {"axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(2.4 * len(table[0]), height))
        grid = figure.subplots(len(table), len(table[0]), squeeze=False, sharex=True, sharey=True)
        for axes, panel in zip(grid.flat, itertools.chain(*table), strict=True):
            _draw(figure, axes, plane, panel)
        for axes in grid[:, 0]:
            axes.set_ylabel(f"${plane.axes[1]}$", rotation=0, labelpad=8)
        for axes in grid[-1]:
            axes.set_xlabel(f"${plane.axes[0]}$")
        if plane.note:
            figure.suptitle(plane.note, fontsize=8)
        figure.savefig(path)
    return figure


def _line_figure(problem: Problem, solution: Callable[[Points], Tensor], path: str | os.PathLike[str]) -> Figure:
    """With a single coordinate: reference and prediction in one panel, their difference in the other."""
    (coord,) = problem.coords
    points = problem.region.sample(1000, _sobol)
    points = Points({coord: points[coord].sort(dim=0).values})
    predictions, references = _columns(problem, solution, points)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.2 * len(problem.fields)))
        rows = figure.subplots(len(problem.fields), 2, squeeze=False, sharex=True)
        for (both, error), name, u, ref in zip(rows, problem.fields, predictions, references, strict=True):
            both.plot(points[coord], u, color=BLUE, label="prediction")
            both.set_title(f"${name}$")
            if ref is not None:
                both.plot(points[coord], ref, color="black", linestyle=":", label="reference")
                error.plot(points[coord], u - ref, color=RED)
            error.set_title(f"${name} - {name}_\\mathrm{{ref}}$")
            both.legend()
        for axes in rows[-1]:
            axes.set_xlabel(f"${coord}$")
        figure.savefig(path)
    return figure


def _columns(
    problem: Problem, solution: Callable[[Points], Tensor], points: Points
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """Prediction and reference of every field at float64 points on the CPU, (N,) each; None where none is known."""
    reference = problem.known_reference(points)
    known = [None] * len(problem.fields) if reference is None else reference.detach().unbind(dim=1)
    return _predict(solution, points).unbind(dim=1), known


@torch.no_grad()
def _predict(solution: Callable[[Points], Tensor], points: Points) -> Tensor:
    """The solution as float64 on the CPU, wherever and in whatever precision it lives."""
    like = next(solution.parameters(), None) if isinstance(solution, nn.Module) else None
    return solution(points if like is None else points.to(like)).double().cpu()


def _panels(name: str, prediction: Tensor, reference: Tensor | None) -> list[Panel]:
    if reference is None:
        return [Panel(f"prediction ${name}$", prediction, Normalize(*_range(prediction)))]
    error = prediction - reference
    largest = max(map(abs, _range(error)))
    shared, known = Normalize(*_range(reference)), f"{name}_\\mathrm{{ref}}"
    return [
        Panel(f"reference ${known}$", reference, shared, bar=False),
        Panel(f"prediction ${name}$", prediction, shared),
        Panel(f"${name} - {known}$", error, Normalize(-largest, largest), "RdBu_r"),
    ]


def _range(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest finite value; (0, 1) when there is none, or only zeros."""
    finite = values[values.isfinite()]
    return (float(finite.min()), float(finite.max())) if finite.any() else (0.0, 1.0)


def _draw(figure: Figure, axes: Axes, plane: Plane, panel: Panel) -> None:
    drawn = plane.draw(axes, np.ma.masked_invalid(panel.values.numpy()), panel.norm, panel.cmap)
    if panel.bar:
        figure.colorbar(drawn, cax=_beside(axes), extend=_beyond(panel.values, panel.norm))
    axes.set_title(panel.title)
    axes.set_box_aspect(_proportion(plane))
    axes.margins(0)


def _beside(panel: Axes) -> Axes:
    """Room for a colour bar as high as the panel."""
    return panel.inset_axes((1.04, 0, 0.06, 1))


def _beyond(values: Tensor, norm: Normalize) -> str:
    """Which ends of a colour scale have values outside it; a hundredth of it does not count."""
    slack = 0.01 * (norm.vmax - norm.vmin)
    below, above = bool((values < norm.vmin - slack).any()), bool((values > norm.vmax + slack).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]


def _plane(problem: Problem, resolution: int) -> Plane:
    if isinstance(problem.region, UnitMatrices):
        return _entries(problem)
    # Time runs to the right, space upwards; in space alone the first coordinate runs to the right.
    first, second = problem.coords[:2]
    axes = (second, first) if second == "t" else (first, second)
    return (_grid if isinstance(problem.region, Box) else _scattered)(problem, axes, resolution)


def _proportion(plane: Plane) -> float:
    """Height over width of a panel: true to scale in space, square in space and time."""
    width, height = (float(plane.points[name].max() - plane.points[name].min()) for name in plane.axes)
    return 1.0 if "t" in plane.axes or 0 in (width, height) else height / width


def _middle(bounds: Mapping[str, tuple[float, float]], axes: tuple[str, str]) -> dict[str, float]:
    return {name: (low + high) / 2 for name, (low, high) in bounds.items() if name not in axes}


def _note(middle: Mapping[str, float]) -> str:
    return ", ".join(f"${name} = {value:g}$" for name, value in middle.items())


def _grid(problem: Problem, axes: tuple[str, str], resolution: int) -> Plane:
    bounds = problem.region.bounds
    right, up = (_cells(*bounds[name], resolution) for name in axes)
    middle = _middle(bounds, axes)
    columns = {name: torch.full((resolution, resolution), value).double() for name, value in middle.items()}
    columns[axes[1]], columns[axes[0]] = torch.meshgrid(up, right, indexing="ij")
    points = Points({name: columns[name].reshape(-1, 1) for name in problem.coords})

    def draw(panel: Axes, values: NDArray, norm: Normalize, cmap: str) -> ScalarMappable:
        return panel.imshow(
            values.reshape(resolution, resolution),
            cmap=cmap,
            norm=norm,
            origin="lower",
            extent=(*bounds[axes[0]], *bounds[axes[1]]),
            aspect="auto",
            interpolation="bilinear",
        )

    return Plane(points, axes, draw, _note(middle))


def _entries(problem: Problem) -> Plane:
    """The entries of a matrix, where its rows and columns are."""
    m, n = problem.region.m, problem.region.n

    def draw(panel: Axes, values: NDArray, norm: Normalize, cmap: str) -> ScalarMappable:
        return panel.imshow(
            values.reshape(m, n), cmap=cmap, norm=norm, extent=(0.5, n + 0.5, m + 0.5, 0.5), aspect="auto"
        )

    return Plane(problem.region.sample(m * n, _sobol), ("l", "k"), draw)


def _cells(low: float, high: float, number: int) -> Tensor:
    """The centres of equal cells of an interval, (number,)."""
    return low + (high - low) / number * (torch.arange(number, dtype=torch.float64) + 0.5)


def _scattered(problem: Problem, axes: tuple[str, str], resolution: int) -> Plane:
    region, middle = problem.region, {}
    samples = []
    if isinstance(region, Shape):
        middle = _middle(region.rest.bounds, axes)
        region = region.face(**middle)
        # Points of the boundary make the outline sharp; not every shape can give them.
        with suppress(InputError):
            samples.append(region.boundary().sample(8 * resolution, _sobol))
    samples.append(region.sample(resolution**2, _sobol))
    points = Points({name: torch.cat([p[name] for p in samples]) for name in problem.coords})
    triangles = Triangulation(*(points[name][:, 0].numpy() for name in axes))
    triangles.set_mask(_across_holes(triangles))

    def draw(panel: Axes, values: NDArray, norm: Normalize, cmap: str) -> ScalarMappable:
        return panel.tripcolor(triangles, values, norm=norm, cmap=cmap, shading="gouraud")

    return Plane(points, axes, draw, _note(middle))


def _sobol(n: int, d: int) -> Tensor:
    return sobol(n, d, seed=0)


def _across_holes(triangles: Triangulation) -> NDArray:
    """Which triangles bridge a gap between evenly spread points: those with an edge many spacings long."""
    corners = np.stack([triangles.x, triangles.y], axis=1)[triangles.triangles]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    return longest > 4 * np.median(longest)


COSTS = (("cost/gradient_evals", "gradient evaluations"), ("cost/seconds", "seconds"))
"""The horizontal axes of the history, from the top, and their names."""

QUANTITIES = (
    ("loss", "loss"),
    ("error/rel_l2", "relative $L^2$ error"),
    ("lora/balance", r"balance $\Vert B^T\!B - AA^T\Vert$"),
)
"""The panels of the history, from the left, and their titles."""


def history_figure(rows: Sequence[Mapping[str, float]], path: str | os.PathLike[str]) -> Figure:
    """Loss, relative L2 error and balance defect against gradient evaluations and seconds; saved as an image.

    Steps at which the held-out loss rose are marked on it. The panel of a quantity that the method does not have
    says that there are no values.

    Args:
        rows: the logged steps, as ``History.rows``; columns may be missing, values may be NaN.
        path: the image file.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2))
        panels = figure.subplots(2, 3, sharex="row", sharey="col")
        for line, (cost, cost_name) in zip(panels, COSTS, strict=True):
            x = _column(rows, cost)
            for axes, (name, _) in zip(line, QUANTITIES, strict=True):
                axes.set_xlabel(cost_name)
                _curve(axes, x, _column(rows, name), color=BLUE, label="training")
            _held_out(line[0], x, rows)
        for axes, (_, title) in zip(panels[0], QUANTITIES, strict=True):
            axes.set_title(title)
        for axes in panels.flat:
            _finish_axes(axes)
        panels[0, 0].legend(handles=list(panels[0, 0].lines))
        figure.savefig(path)
    return figure


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

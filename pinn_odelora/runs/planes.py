"""Where a solution of two or more coordinates is shown: points in a plane, and how values at them are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.tri import Triangulation
from numpy.typing import NDArray
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import Box, sobol
from pinn_odelora.geometry.deepxde import Shape
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.points import Points

Drawing = Callable[[Axes, NDArray, Normalize, str], ScalarMappable]
"""Draws values (N,) on axes with a norm and a colour map; returns what a colour bar belongs to."""


class Plane(NamedTuple):
    """Points that show a solution in two coordinates, the names of these, and how values at the points are drawn."""

    points: Points
    axes: tuple[str, str]
    draw: Drawing
    note: str = ""


def plane(problem: Problem, resolution: int) -> Plane:
    """The plane of a problem, with about ``resolution`` points along each coordinate."""
    if isinstance(problem.region, UnitMatrices):
        return _entries(problem)
    # Time runs to the right, space upwards; in space alone the first coordinate runs to the right.
    first, second = problem.coords[:2]
    axes = (second, first) if second == "t" else (first, second)
    return (_grid if isinstance(problem.region, Box) else _scattered)(problem, axes, resolution)


def proportion(plane: Plane) -> float:
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

    return Plane(problem.region.sample(m * n, evenly), ("l", "k"), draw)


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
            samples.append(region.boundary().sample(8 * resolution, evenly))
    samples.append(region.sample(resolution**2, evenly))
    points = Points({name: torch.cat([p[name] for p in samples]) for name in problem.coords})
    triangles = Triangulation(*(points[name][:, 0].numpy() for name in axes))
    triangles.set_mask(_across_holes(triangles))

    def draw(panel: Axes, values: NDArray, norm: Normalize, cmap: str) -> ScalarMappable:
        return panel.tripcolor(triangles, values, norm=norm, cmap=cmap, shading="gouraud")

    return Plane(points, axes, draw, _note(middle))


def evenly(n: int, d: int) -> Tensor:
    """n points of the unit cube, (n, d), always the same."""
    return sobol(n, d, seed=0)


def _across_holes(triangles: Triangulation) -> NDArray:
    """Which triangles bridge a gap between evenly spread points: those with an edge many spacings long."""
    corners = np.stack([triangles.x, triangles.y], axis=1)[triangles.triangles]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    return longest > 4 * np.median(longest)

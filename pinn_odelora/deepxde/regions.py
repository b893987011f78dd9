"""Where the losses of a DeepXDE model are imposed, as regions.

Intervals, rectangles, cuboids and hypercubes are boxes, other geometries shapes, each times the time interval; points
of them come from our own low-discrepancy sequences. Points of conditions are drawn by DeepXDE, at random on the
boundary and at the initial time, and kept where the condition's own filter says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinn_odelora.equation import coordinate_names
from pinn_odelora.errors import InputError
from pinn_odelora.geometry import Box, Cloud, Region
from pinn_odelora.geometry.deepxde import Shape, library, seeded
from pinn_odelora.points import Points

TRIED = 400
"""Points at which a condition's filter is tried."""
FEW = 8
"""Different points up to which they are all taken: the ends of an interval."""
MOST = 2**18
"""Points drawn at once at most."""
Columns = Callable[[NDArray], Mapping[str, NDArray]]


def coordinates(geometry: Any) -> tuple[str, ...]:
    """x, y, z or a, b, c, … for space, t for time."""
    d = library().geometry
    if isinstance(geometry, d.TimeDomain):
        return ("t",)
    if isinstance(geometry, d.GeometryXTime):
        return (*coordinates(geometry.geometry), "t")
    return coordinate_names(geometry.dim)


def domain(geometry: Any) -> Region:
    """The geometry as a region."""
    d = library().geometry
    coords = coordinates(geometry)
    space, intervals = geometry, {}
    if isinstance(geometry, d.GeometryXTime):
        space, time = geometry.geometry, geometry.timedomain
        intervals = {"t": (float(time.t0), float(time.t1))}
    match space:
        case d.PointCloud():
            return Cloud(Points.from_rows(coords, _double(space.points)), interior=True)
        case d.Interval() | d.Hypercube():
            corners = zip(*(np.ravel(corner).astype(float) for corner in space.bbox), strict=True)
            bounds = {c: (float(low), float(high)) for c, (low, high) in zip(coords, corners, strict=False)}
            return Box(**bounds, **intervals)
    return Shape(space, coords[: space.dim], **intervals)


class Filtered:
    """Random points that a condition's filter lets pass, with further columns.

    Args:
        coords: names of the coordinates.
        draw: n random points of DeepXDE, from NumPy's global generator, (n, d).
        passed: those of some points that the condition is imposed at.
        columns: what its residual reads besides, by name, (n, 1) each.
        interior: whether they fill the domain.
    """

    def __init__(
        self,
        coords: Sequence[str],
        draw: Callable[[int], NDArray],
        passed: Callable[[NDArray], NDArray],
        columns: Columns,
        interior: bool = False,
    ) -> None:
        self.coords = tuple(coords)
        self.draw = draw
        self.passed = passed
        self.columns = columns
        self.interior = interior

    def sample(self, n: int, uniform: Callable[[int, int], Tensor]) -> Points:
        """n points, columns (n, 1); the same for the same ``uniform``."""
        kept: list[NDArray] = []
        missing, asked = n, n
        with seeded(int(uniform(1, 1).item() * 2**32)):
            while missing > 0:
                kept.append(self.passed(self.draw(asked)))
                missing -= len(kept[-1])
                asked = min(2 * asked, MOST)
        return with_columns(self.coords, np.vstack(kept)[:n], self.columns)


def with_columns(coords: Sequence[str], X: NDArray, columns: Columns) -> Points:
    """Points from rows (n, d), and the further columns there."""
    return Points(
        {**Points.from_rows(coords, _double(X)), **{name: _double(column) for name, column in columns(X).items()}}
    )


def where(what: str, condition: Any, data: Any, columns: Columns) -> Region:
    """The region on which a condition is imposed.

    Args:
        what: the condition, for messages.
        condition: has the filter.
        data: of the model, whose own points are taken if the filter passes no random ones.
        columns: what its residual reads besides the coordinates.

    Raises:
        InputError: if the condition holds on no point.
    """
    coords = coordinates(data.geom)
    with seeded(0):
        found = {draw: condition.filter(draw(TRIED)) for draw in _sources(data.geom)}
    sources = [draw for draw, X in found.items() if len(X)]
    if not sources:
        X = condition.filter(data.train_x_all)
        if not len(X):
            raise InputError(f"{what} holds on no point: its function on_boundary is false everywhere.")
        return Cloud(with_columns(coords, np.unique(X, axis=0), columns))
    different = np.unique(np.vstack([found[draw] for draw in sources]), axis=0)
    if len(different) <= FEW:
        return Cloud(with_columns(coords, different, columns))
    draw = lambda n: np.vstack([source(n) for source in sources])
    return Filtered(coords, draw, condition.filter, columns, interior=data.geom.random_points in sources)


def _sources(geometry: Any) -> list[Callable[[int], NDArray]]:
    """Where DeepXDE looks for the points of a condition: boundary, initial time and interior."""
    d = library().geometry
    if isinstance(geometry, d.GeometryXTime):
        return [geometry.random_boundary_points, geometry.random_initial_points, geometry.random_points]
    if isinstance(geometry, d.Interval):
        return [lambda n: geometry.uniform_boundary_points(2), geometry.random_points]
    return [geometry.random_boundary_points, geometry.random_points]


def _double(X: NDArray) -> Tensor:
    # DeepXDE makes a GPU torch's default, but points come from the CPU.
    return torch.tensor(np.asarray(X, dtype=float), device="cpu")

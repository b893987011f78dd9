"""Shapes from DeepXDE's constructive solid geometry as regions; the only file that imports ``deepxde``.

    d = shapes()
    plate = Shape(d.Rectangle([0, 0], [1, 1]) - d.Disk([0.5, 0.5], 0.25))

DeepXDE is used only to decide which points are inside a shape. The points come from our own low-discrepancy sequences,
by rejection: interior points from the bounding box, boundary points from the outlines of the primitives by arc length,
kept where the shape lies on exactly one side. The same draw therefore gives the same points, without global random
numbers.
"""

from __future__ import annotations

import io
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.geometry.regions import Box
from pinn_odelora.geometry.spatial import Uniform, accepted
from pinn_odelora.geometry.surfaces import with_normals
from pinn_odelora.points import Points


class Curve(NamedTuple):
    """A plane curve: its length, and positions and unit normals (m, 2) at fractions s of it, (m, 1), in [0, 1)."""

    length: float
    place: Callable[[NDArray], NDArray]
    normal: Callable[[NDArray], NDArray]


def shapes() -> ModuleType:
    """``deepxde.geometry``: Rectangle, Disk, Polygon, …, combined by ``-``, ``|`` and ``&``."""
    return library().geometry


def library() -> ModuleType:
    """``deepxde`` itself.

    The first call imports it, which takes seconds, prints, draws random numbers and, with a GPU, changes torch's
    default device; all of this is undone.
    """
    os.environ.setdefault("DDE_BACKEND", "pytorch")
    with _undisturbed():
        import deepxde

    return deepxde


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Restore random states, torch's defaults, warning filters and stderr on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.set_default_dtype(dtype)
        _back_to(device)


def _back_to(device: torch.device) -> None:
    """Make a device the default again; where it is torch's own, unset: setting it adds overhead to every call."""
    torch.set_default_device(None)
    if torch.get_default_device() != device:
        torch.set_default_device(device)


@contextmanager
def default_device(device: str | torch.device) -> Iterator[None]:
    """Another default device meanwhile: DeepXDE makes a GPU torch's default where there is one.

    Points come from the CPU and go where the network is, so that this package computes with the CPU as the default; the
    user's functions have that of the points as theirs, on which they put the tensors that they make.
    """
    before = torch.get_default_device()
    if before.type == torch.device(device).type:
        yield
        return
    torch.set_default_device(device)
    try:
        yield
    finally:
        _back_to(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator, from which DeepXDE draws points, with this seed; on exit it is as it was."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


class Shape:
    """The region inside a DeepXDE geometry, times intervals for further coordinates.

    ``Shape(disk, coords=("x", "y"), t=(0, 1))`` is a cylinder in space and time.

    Args:
        geometry: a shape of ``shapes()`` or a combination of shapes, of any dimension.
        coords: names of its coordinates, in order.
        intervals: lower and upper end of each further coordinate; an interval of length zero fixes it.

    Raises:
        InputError: if the number of names is not the dimension of the geometry.
    """

    def __init__(self, geometry: Any, coords: tuple[str, ...] = ("x", "y"), **intervals: tuple[float, float]) -> None:
        if len(coords) != geometry.dim:
            raise InputError(f"The shape has {geometry.dim} dimensions, but coords names {', '.join(coords)}.")
        self.geometry = geometry
        self.coords = tuple(coords)
        self.rest = Box(**intervals)

    @property
    def interior(self) -> bool:
        """Whether no further coordinate is fixed."""
        return self.rest.interior

    def face(self, **fixed: float) -> Shape:
        """The part on which further coordinates have the given values, for instance ``face(t=0.0)``."""
        return Shape(self.geometry, self.coords, **self.rest.face(**fixed).bounds)

    def boundary(self) -> Boundary:
        """The boundary of the geometry, times the intervals."""
        return Boundary(self)

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points, columns (n, 1); raises ``InputError`` if the shape is empty or nearly so."""
        return _with_intervals(self, n, uniform, self.geometry.dim, self._candidates)

    def _candidates(self, unit: Tensor) -> tuple[Points, Tensor]:
        low, high = (np.asarray(corner, dtype=float) for corner in self.geometry.bbox)
        places = low + (high - low) * unit.numpy()
        return Points.from_rows(self.coords, torch.from_numpy(places)), torch.from_numpy(self.geometry.inside(places))


class Boundary:
    """The boundary of a plane shape, times the shape's intervals, sampled uniformly by arc length.

    An edge shared by two primitives receives twice the density of points.

    Args:
        shape: a plane shape composed of disks, rectangles, polygons and triangles.

    Raises:
        InputError: if it contains another primitive.
    """

    interior = False

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.curves = _curves(shape.geometry)

    def sample(self, n: int, uniform: Uniform) -> Points:
        """n points, columns (n, 1), those of the outward unit normal included; raises ``InputError`` if the shape is
        empty or nearly so.
        """
        return _with_intervals(self.shape, n, uniform, 1, self._candidates)

    def _candidates(self, unit: Tensor) -> tuple[Points, Tensor]:
        lengths = np.array([curve.length for curve in self.curves])
        ends = np.cumsum(lengths)
        s = unit.numpy()[:, 0] * ends[-1]
        which = np.searchsorted(ends[:-1], s, side="right")
        fraction = 1 - (ends[which] - s) / lengths[which]
        places, normals = np.empty((2, len(s), 2))
        for k, curve in enumerate(self.curves):
            places[which == k] = curve.place(fraction[which == k, None])
            normals[which == k] = curve.normal(fraction[which == k, None])
        steps = 1e-6 * ends[-1] * normals
        inside = self.shape.geometry.inside
        ahead, behind = inside(places + steps), inside(places - steps)
        outward = np.where(ahead[:, None], -normals, normals)
        p = with_normals(self.shape.coords, torch.from_numpy(places), torch.from_numpy(outward))
        return p, torch.from_numpy(ahead != behind)


def _with_intervals(
    shape: Shape, n: int, uniform: Uniform, k: int, candidates: Callable[[Tensor], tuple[Points, Tensor]]
) -> Points:
    """n points of the shape or its boundary, from k numbers each, with their columns of further coordinates."""
    free = sum(low < high for low, high in shape.rest.bounds.values())
    # DeepXDE's polygons use a form of numpy.cross that is deprecated in NumPy 2.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        p, unit = accepted(n, uniform, k, free, candidates, "The shape")
    rest = shape.rest.sample(n, lambda n, d: unit)
    return Points(p | {name: rest[name] for name in shape.rest.bounds})


def _curves(geometry: Any) -> list[Curve]:
    """The outlines of all primitives of a combination; their union contains its boundary."""
    d = shapes()
    match geometry:
        case d.CSGUnion() | d.CSGDifference() | d.CSGIntersection():
            return _curves(geometry.geom1) + _curves(geometry.geom2)
        case d.Disk():
            return [_circle(np.asarray(geometry.center, dtype=float), float(geometry.radius))]
        case d.Rectangle():
            (left, bottom), (right, top) = geometry.xmin, geometry.xmax
            return _closed([(left, bottom), (right, bottom), (right, top), (left, top)])
        case d.Polygon():
            return _closed(geometry.vertices)
        case d.Triangle():
            return _closed([geometry.x1, geometry.x2, geometry.x3])
    raise InputError(
        f"The boundary of a {type(geometry).__name__} cannot be sampled; allowed: Disk, Rectangle, Polygon, Triangle, "
        "and their unions, differences and intersections."
    )


def _circle(center: NDArray, radius: float) -> Curve:
    def normal(s: NDArray) -> NDArray:
        return np.hstack([np.cos(2 * np.pi * s), np.sin(2 * np.pi * s)])

    return Curve(2 * np.pi * radius, lambda s: center + radius * normal(s), normal)


def _closed(vertices: Any) -> list[Curve]:
    """The edges of a polygon."""
    starts = np.asarray(vertices, dtype=float)
    return [_edge(*ends) for ends in zip(starts, np.roll(starts, -1, axis=0), strict=True)]


def _edge(start: NDArray, end: NDArray) -> Curve:
    along = end - start
    length = float(np.linalg.norm(along))
    normal = np.array([along[1], -along[0]]) / length
    return Curve(length, lambda s: start + s * along, lambda s: np.broadcast_to(normal, (len(s), 2)))

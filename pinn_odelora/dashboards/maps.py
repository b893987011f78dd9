"""Solutions on a grid, for maps with a slider: u - u* for each run, and u* once for each problem.

Errors are stored instead of solutions, each in 16 bits over its own range, so that an error of 1e-6 is as sharp as one
of 0.1; the page adds the reference. With two coordinates the map shows both, and the slider moves a cut through time or
the second coordinate. With more, the map shows two of them and the slider moves through a third: time, or the last.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.errors import InputError
from pinn_odelora.families.page import quantised, symbol
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import Box, sobol
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.points import Points

Array = NDArray[np.float64]

BYTES = 1_600_000
"""Of all maps together; a third more as text."""
FEWEST, MOST = 400, 5_000
"""Cells of one map."""
FRAMES = 10
"""Places of the slider where it has a coordinate of its own."""


def cells_each(maps: int) -> int:
    """How many cells of each map there is room for."""
    return max(FEWEST, min(MOST, BYTES // (2 * max(maps, 1))))


@dataclass(frozen=True)
class Grid:
    """Where solutions of a problem are shown.

    Attributes:
        points: all cells, (frames · up · across) of them, across varies fastest.
        about: what the page is told of the grid: the coordinates ``across``, ``up`` and ``through`` with their ends and
            numbers of cells, and ``slides``, the one the slider moves along where there is no ``through``.
        reference: u* at the cells, (N, fields), None where none is known.
    """

    points: Points
    about: dict[str, Any]
    reference: Array | None


@dataclass
class Maps:
    """The maps of all runs, by problem.

    Args:
        cells: of one map, at most.
    """

    cells: int
    grids: list[Grid] = field(default_factory=list)
    known: dict[str, int] = field(default_factory=dict)

    def of(self, solution: AdaptedSolution) -> dict[str, Any]:
        """The map of one run, for the page.

        Raises:
            InputError: if the problem has no grid.
        """
        problem = solution.problem
        key = repr(problem)
        if key not in self.known:
            self.grids.append(grid(problem, self.cells // len(problem.fields)))
            self.known[key] = len(self.grids) - 1
        own = self.grids[self.known[key]]
        values = solution(*(own.points[name][:, 0].numpy() for name in problem.coords))
        u = np.asarray(values, dtype=np.float64).reshape(-1, len(problem.fields))
        shown = u if own.reference is None else u - own.reference
        return {"grid": self.known[key], "fields": packed(shown)}

    def described(self) -> list[dict[str, Any]]:
        """The grids, for the page."""
        return [
            {**one.about, "reference": None if one.reference is None else packed(one.reference)} for one in self.grids
        ]


def grid(problem: Problem, cells: int) -> Grid:
    """At most ``cells`` cells of the region of a problem.

    Raises:
        InputError: if the region is neither a box nor a matrix.
    """
    if isinstance(problem.region, UnitMatrices):
        points, about = _entries(problem)
    elif isinstance(problem.region, Box):
        points, about = _cells(problem, cells)
    else:
        raise InputError("its region is no box")
    reference = problem.known_reference(points)
    about |= {"fields": list(problem.fields)}
    return Grid(points, about, None if reference is None else reference.detach().double().cpu().numpy())


def packed(values: Array) -> list[dict[str, Any]]:
    """Values (N, fields) in 16 bits over the range of each field."""
    found = []
    for column in values.T:
        levels, low, high = quantised(column)
        found.append({"low": low, "high": high, "levels": base64.b64encode(levels.tobytes()).decode()})
    return found


def _cells(problem: Problem, cells: int) -> tuple[Points, dict[str, Any]]:
    bounds, names = problem.region.bounds, problem.coords
    # Time runs to the right, space upwards; in space alone the first coordinate runs to the right.
    time = "t" if "t" in names else None
    if len(names) == 1:
        axes, sizes = names, [min(cells, 400)]
    elif len(names) == 2:
        axes = (time, next(n for n in names if n != time)) if time else names
        sizes = [math.isqrt(cells)] * 2
    else:
        through = time or names[-1]
        axes = (*[n for n in names if n != through][:2], through)
        sizes = [math.isqrt(cells // FRAMES)] * 2 + [FRAMES]
    centres = {n: _centres(*bounds[n], size) for n, size in zip(axes, sizes, strict=True)}
    mesh = dict(zip(reversed(axes), np.meshgrid(*(centres[n] for n in reversed(axes)), indexing="ij"), strict=True))
    shape = next(iter(mesh.values())).shape
    held = {n: np.full(shape, sum(bounds[n]) / 2) for n in names if n not in axes}
    parts = ("across", "up", "through")
    about: dict[str, Any] = dict.fromkeys(parts)
    for part, name, size in zip(parts, axes, sizes, strict=False):
        low, high = map(float, bounds[name])
        about[part] = {"name": symbol(name), "low": low, "high": high, "cells": size}
    return _points(names, {**mesh, **held}), about | {"slides": "across" if time and len(names) == 2 else "up"}


def _entries(problem: Problem) -> tuple[Points, dict[str, Any]]:
    """The entries of a matrix, the first row on top."""
    m, n = problem.region.m, problem.region.n
    sides = zip(("across", "up"), ("l", "k"), (n, m), strict=True)
    about = {part: {"name": name, "low": 0.5, "high": size + 0.5, "cells": size} for part, name, size in sides}
    points = problem.region.sample(m * n, lambda count, d: sobol(count, d, seed=0))
    return points, about | {"through": None, "slides": "up", "down": True}


def _points(names: Sequence[str], columns: dict[str, Array]) -> Points:
    import torch

    return Points({name: torch.from_numpy(columns[name].reshape(-1, 1)) for name in names})


def _centres(low: float, high: float, number: int) -> Array:
    return low + (high - low) / number * (np.arange(number) + 0.5)

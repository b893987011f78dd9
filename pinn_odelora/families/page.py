"""A page with a slider: the members of a family over a grid of its parameters, in one file that needs nothing else.

The answers are computed once, on a grid of values evenly spaced in the family's coordinates, and of cells of the first
two coordinates of the problem. Every value is stored in 16 bits, evenly over the range of its field,

    q = round((u - low) / (high - low) · 65534),    |u - ũ| ≤ (high - low) / 131068,

65535 for no value, so that the file stays below two megabytes; ``page.html`` draws it. All that it shows are answers of
the family, with their own error estimates: nothing is interpolated between two of them.
"""

from __future__ import annotations

import base64
import html
import itertools
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from pinn_odelora.document import Document, embedded
from pinn_odelora.errors import InputError
from pinn_odelora.families.settings import ADAPTER
from pinn_odelora.geometry import Box
from pinn_odelora.rules import whole

if TYPE_CHECKING:
    from pinn_odelora.families.family import Family
    from pinn_odelora.formulation import Problem

Array = NDArray[np.float64]

VALUES = {1: 41, 2: 11}
"""Values of each parameter, by the number of parameters."""
MOST = {1: 201, 2: 31}
LEVELS = 65534
NONE = 65535
BYTES = 1_350_000
"""Of all values; a third more as text."""
CELLS = 24_000
"""The most of one picture, 244 × 97."""
PROPORTION = 2.5
"""Cells along the first coordinate over those along the second: the former has the thin layers of time-dependent
problems."""
TEMPLATE = Path(__file__).with_name("page.html")


class Page(Document):
    """A page as text; a notebook shows it.

    Attributes:
        html: the whole file.
        answers: how many members it holds.
        error: the largest of their estimated relative L2 errors.
    """

    title = "A family of solutions"

    def __init__(self, content: str, answers: int, error: float) -> None:
        super().__init__(content)
        self.answers, self.error = answers, error

    def __repr__(self) -> str:
        return f"<page of {self.answers} members, errors up to about {self.error:.1e}, {self.size / 1e6:.1f} MB>"


def dashboard(family: Family, path: str | os.PathLike[str] | None = None, *, values: int | None = None) -> Page:
    """A page with a slider for each parameter, and the solution as it moves.

    It shows the first two coordinates of the problem, the others at the middle of their ranges: a map with its colour
    bar, a cut along the first coordinate, and the estimated error of the answer shown. It holds all of its data, loads
    nothing, and works without a network.

    Args:
        family: one or two parameters, of a problem on a box.
        path: the file to write; None writes none. In a notebook the page shows itself.
        values: of each parameter, 41 for one and 11 for two unless given; an adapter takes about 0.1 s, and
            more of them leave room for fewer cells.

    Raises:
        InputError: if the family has more parameters, its problem no box, ``values`` is not allowed, or the file cannot
            be written.
    """
    intervals, problem = family.space.intervals, family.problem
    if len(intervals) not in VALUES:
        raise InputError(f"The family has {len(intervals)} parameters; a page has sliders for one or two.")
    if not isinstance(problem.region, Box):
        raise InputError(f"A page shows the solution on a box, but {type(problem).__name__} has another region.")
    values = VALUES[len(intervals)] if values is None else whole(2, MOST[len(intervals)]).check("values", values)
    marks = [[interval.value(x) for x in np.linspace(0, 1, values).tolist()] for interval in intervals]
    picture = Picture.of(problem, values ** len(intervals))
    names = [interval.name for interval in intervals]
    shown, errors = [], []
    for point in itertools.product(*marks):
        # As one network: a picture evaluates it at more points than it was found on.
        answer = family(**dict(zip(names, point, strict=True)), form=ADAPTER)
        shown.append(picture.values(answer))
        errors.append(float(answer.error))
    frames = np.stack(shown)
    content = written(problem, picture, dict(zip(names, marks, strict=True)), frames, errors)
    page = Page(content, len(frames), max(filter(math.isfinite, errors), default=math.nan))
    if path is not None:
        page.save(path)
    return page


class Picture(NamedTuple):
    """The cells at which a solution is shown.

    Attributes:
        names: the coordinates of the picture, one or two.
        cells: their centres, one array for each of ``names``.
        held: the value of every other coordinate.
        coords, fields: those of the problem.
    """

    names: tuple[str, ...]
    cells: tuple[Array, ...]
    held: dict[str, float]
    coords: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def of(cls, problem: Problem, answers: int) -> Picture:
        """As many cells as the bytes allow."""
        names = problem.coords[:2]
        room = min(BYTES // (2 * answers * len(problem.fields)), CELLS)
        wide = int(math.sqrt(room * PROPORTION)) if len(names) > 1 else min(room, 1000)
        sizes = (wide, int(wide / PROPORTION))[: len(names)]
        bounds = problem.region.bounds
        return cls(
            names,
            tuple(_centres(*bounds[name], size) for name, size in zip(names, sizes, strict=True)),
            {name: sum(bounds[name]) / 2 for name in problem.coords[2:]},
            problem.coords,
            problem.fields,
        )

    def values(self, answer: Any) -> Array:
        """A member's, one picture for each field, the last axis along the first coordinate: (fields, …, n)."""
        axes = np.meshgrid(*reversed(self.cells), indexing="ij")
        at = dict(zip(reversed(self.names), axes, strict=True))
        u = np.asarray(answer(*(at.get(name, self.held.get(name)) for name in self.coords)), dtype=np.float64)
        return u[None] if len(self.fields) == 1 else np.moveaxis(u, -1, 0)


def _centres(low: float, high: float, number: int) -> Array:
    return low + (high - low) / number * (np.arange(number) + 0.5)


def quantised(values: Array) -> tuple[NDArray[np.uint16], float, float]:
    """q of values of any shape, and the ends of their range; those that are not finite have no value."""
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 1.0)
    width = high - low or 1.0
    levels = np.round((np.where(finite, values, low) - low) / width * LEVELS)
    return np.where(finite, levels, NONE).astype("<u2"), low, low + width


def written(
    problem: Problem, picture: Picture, marks: dict[str, Sequence[float]], frames: Array, errors: Sequence[float]
) -> str:
    """The page.

    Args:
        problem: gives names and words.
        picture: the cells.
        marks: the values of each parameter, by name; the last varies fastest over the frames.
        frames: the values of every member, (members, fields, …).
        errors: of each.
    """
    fields = []
    for i, name in enumerate(picture.fields):
        levels, low, high = quantised(frames[:, i])
        fields.append({"name": name, "low": low, "high": high, "values": base64.b64encode(levels.tobytes()).decode()})
    bounds = problem.region.bounds
    sizes = [len(cells) for cells in picture.cells]
    data = {
        "title": type(problem).__name__,
        "equation": _first_line(problem),
        "coordinates": [
            {"name": symbol(name), "low": float(bounds[name][0]), "high": float(bounds[name][1]), "cells": size}
            for name, size in zip(picture.names, sizes, strict=True)
        ],
        "held": [{"name": symbol(name), "value": value} for name, value in picture.held.items()],
        "parameters": [{"name": symbol(name), "values": list(values)} for name, values in marks.items()],
        "fields": fields,
        "errors": [error if math.isfinite(error) else None for error in errors],
        "colours": colours(),
    }
    text = embedded(data)
    title = html.escape(f"{data['title']}: {', '.join(p['name'] for p in data['parameters'])}")
    return TEMPLATE.read_text(encoding="utf-8").replace("{{title}}", title, 1).replace("{{data}}", text, 1)


def symbol(name: str) -> str:
    """The Greek letter of that name, or the name."""
    try:
        return unicodedata.lookup(f"GREEK SMALL LETTER {'lamda' if name == 'lambda' else name}")
    except KeyError:
        return name


def colours() -> str:
    """viridis, as 256 triples of bytes in base64 (van der Walt and Smith, 2015)."""
    table = np.round(mpl.colormaps["viridis"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    return base64.b64encode(table.tobytes()).decode()


def _first_line(problem: Problem) -> str:
    """The equation as the docstring of the problem starts."""
    text = (type(problem).__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split()).replace("``", "") if "=" in text else ""

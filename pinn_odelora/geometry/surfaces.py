"""Surfaces made of patches, sampled uniformly by area, with outward unit normals.

The surface of a combination of solids is a part of the surfaces of its primitives: the points x with normal n where
x + εn and x - εn lie on different sides. There n is the normal, reversed where x + εn is inside. Where the surfaces of
two primitives coincide, the points of the first one count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.errors import InputError, cause
from pinn_odelora.geometry.spatial import Spatial, Uniform, accepted
from pinn_odelora.points import Points

if TYPE_CHECKING:
    from pinn_odelora.geometry.solids import Solid

Keep = Callable[[Points], Tensor]
"""Which of n points belong: truth values, (n, 1) or (n,)."""

STEP = 1e-6
"""ε, relative to the largest extent."""


class Patch(NamedTuple):
    """A piece of a surface.

    Attributes:
        area: its area; length in the plane, one for a point on the line.
        numbers: k, how many numbers in [0, 1) give a point.
        place: maps (m, k) to positions and outward unit normals, (m, d) each; uniform by area.
    """

    area: float
    numbers: int
    place: Callable[[Tensor], tuple[Tensor, Tensor]]


class Pieces(Spatial):
    """Patches side by side, sampled uniformly by area.

    Args:
        coords: names of the coordinates.
        patches: the pieces.
        keep: chooses from their points.
    """

    interior = False

    def __init__(self, coords: Sequence[str], patches: Sequence[Patch], keep: Keep | None = None) -> None:
        self.coords, self.pieces, self.keep = tuple(coords), list(patches), keep

    def drawn(self, n: int, uniform: Uniform, beside: int) -> tuple[Points, Tensor]:
        k = max(1, *(patch.numbers for patch in self.pieces))
        return accepted(n, uniform, k, beside, self._candidates, "The surface")

    def _candidates(self, unit: Tensor) -> tuple[Points, Tensor]:
        which, unit = chosen([patch.area for patch in self.pieces], unit)
        places, normals = unit.new_empty(2, len(unit), len(self.coords))
        for i, patch in enumerate(self.pieces):
            places[which == i], normals[which == i] = patch.place(unit[which == i, : patch.numbers])
        normals, belongs = self.oriented(places, normals, which)
        p = with_normals(self.coords, places, normals)
        return p, belongs & kept(self.keep, p)

    def oriented(self, places: Tensor, normals: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """The outward normals of candidates, and which of these belong to the surface."""
        return normals, torch.ones_like(which, dtype=torch.bool)


class Surface(Pieces):
    """The surface of a solid, see the module's docstring.

    Args:
        solid: what it bounds.
        keep: chooses from its points.
    """

    def __init__(self, solid: Solid, keep: Keep | None = None) -> None:
        self.solid = solid
        self.parts = solid.primitives()
        patches = [[_reordered(patch, part.coords, solid.coords) for patch in part.patches()] for part in self.parts]
        super().__init__(solid.coords, [patch for own in patches for patch in own], keep)
        self.part_of = torch.tensor([i for i, own in enumerate(patches) for _ in own])
        self.step = STEP * max(high - low for part in self.parts for low, high in part.bounds.values())

    def oriented(self, places: Tensor, normals: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.parts) == 1:
            return super().oriented(places, normals, which)
        outer, inner = (Points.from_rows(self.coords, places + side * self.step * normals) for side in (1, -1))
        ahead, behind = self.solid.contains(outer), self.solid.contains(inner)
        belongs = ahead != behind
        for i, part in enumerate(self.parts):
            belongs &= (self.part_of[which] <= i) | (part.contains(outer) == part.contains(inner))
        return torch.where(ahead[:, None], -normals, normals), belongs


def _reordered(patch: Patch, given: Sequence[str], wanted: Sequence[str]) -> Patch:
    """The patch with its coordinates in another order."""
    order = [given.index(name) for name in wanted]
    return patch._replace(place=lambda unit: tuple(x[:, order] for x in patch.place(unit)))


def with_normals(coords: Sequence[str], places: Tensor, normals: Tensor) -> Points:
    """Points of a surface from positions and normals, (N, d) each."""
    return Points(Points.from_rows(coords, places) | Points.from_rows([f"n{c}" for c in coords], normals))


def kept(keep: Keep | None, p: Points) -> Tensor:
    """Which of n points a function chooses, (n,); all of them if there is none.

    Raises:
        InputError: if it cannot be called with them, or does not return a truth value for each.
    """
    n = p.number
    if keep is None:
        return torch.ones(n, dtype=torch.bool)
    try:
        found = keep(p)
    except Exception as error:
        raise InputError(
            f"What chooses from the points of a boundary cannot be called with points ({cause(error)}), but it must be "
            "a function of them, as lambda p: p.x > 0 is."
        ) from error
    if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape not in ((n, 1), (n,)):
        said = f"{found.dtype}, {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
        raise InputError(
            f"What chooses from the points of a boundary returned {said} for {n} points, but it must return a truth "
            f"value for each, as lambda p: p.x > 0 does: a tensor of torch.bool, ({n}, 1) or ({n},)."
        )
    return found.reshape(n)


def chosen(measures: Sequence[float] | Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """One of several pieces for each row, in proportion to their measures, by the first number of the row.

    Args:
        measures: of the pieces, positive.
        unit: numbers in [0, 1), (m, k), k ≥ 1.

    Returns:
        The pieces (m,), and the rows with the first number stretched to [0, 1) within its piece, (m, k).
    """
    measures = torch.as_tensor(measures, dtype=unit.dtype)
    ends = torch.cumsum(measures, dim=0)
    s = unit[:, 0] * ends[-1]
    which = torch.searchsorted(ends[:-1].contiguous(), s.contiguous(), right=True)
    fraction = (1 - (ends[which] - s) / measures[which]).clamp(0, 1 - torch.finfo(unit.dtype).eps)
    return which, torch.cat([fraction[:, None], unit[:, 1:]], dim=1)

"""The points of a run as a LightningDataModule: what step k draws is a function of the seed, k and a number alone.

The points of a step may be bounded by the rows that they give: a system of several components costs a step no more
than a scalar equation then. Measured points are all taken, and do not count. Points may also follow the residual. Then
the draw of a step holds more candidates than the step keeps, see ``following``; which it keeps is told by the network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.objective import Draw
from pinn_odelora.points import Points
from pinn_odelora.sampling.residual_sampling import AT_ONCE, candidates, followed
from pinn_odelora.selection import initial_rank as rows_of
from pinn_odelora.system import draw_points

CPU = torch.device("cpu")
NO_STEP = -1
"""The number of a draw that belongs to no step."""


class PointStream(L.LightningDataModule):
    """Blocks of step numbers for Lightning, and the points of a step.

    Args:
        terms: the terms of the loss, each with its region.
        interior, boundary: points for terms of full dimension, and for the others.
        seed: of the Sobol sequences.
        fresh: new points at every step, or the same ones for ever.
        rows: how many rows drawn points may give together, thinned evenly to it; None is no bound.
        first: how many they give at the first step, see ``growth``; None is as many as at all others.
        components: of the residual of every term, 1 where not given.
        residual: the part of the interior points that follows the residual, from 0 to 1; above 0 for fresh points only.
        validation: whether a run is to end with the best point it has seen, see ``incumbent``.
        dtype: of the points.
        block: steps handed to Lightning at once.

    Raises:
        InputError: if a part of fixed points is to follow the residual, or the part is not in [0, 1]; if the rows of
            fixed points are to grow.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        interior: int = 1000,
        boundary: int = 200,
        seed: int = 0,
        fresh: bool = False,
        dtype: torch.dtype = torch.float64,
        block: int = 50,
        residual: float = 0.0,
        rows: int | None = None,
        components: Mapping[str, int] | None = None,
        first: int | None = None,
        validation: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= residual <= 1 or (residual and not fresh):
            raise InputError(
                f"points.residual is {residual!r} with points.fresh={str(fresh).lower()}, but it must be from 0 to 1, "
                "and above 0 only where points are fresh."
            )
        if first is not None and not fresh:
            raise InputError(
                f"points.first is {first!r} with points.fresh=false, but fixed points cannot grow in number."
            )
        self.residual = residual
        self.validates = validation
        self.terms = terms
        self.sizes = interior, boundary
        self.total = rows_of.drawn(terms, components or {}, interior, boundary)
        self.most = self.total if rows is None else min(rows, self.total)
        self.first = self.most if first is None else min(first, self.most)
        # The rows that go with as many interior points.
        self.enough = rows_of.enough(self.total, interior)
        measured = {name: term.where.points.number for name, term in terms.items() if isinstance(term.where, Cloud)}
        # All rows of a step, the measured ones too.
        self.all = self.most + sum((components or {}).get(name, 1) * number for name, number in measured.items())
        # Terms whose points are measured, and the same at every step.
        self.still = [*measured]
        self.seed = seed
        self.fresh = fresh and len(measured) < len(terms)
        self.dtype = dtype
        self.block = block
        self.first_step = 0
        self._fixed: Draw | None = None
        self._validation: dict[tuple[int, torch.device], dict[str, Points]] = {}

    def draw(self, step: int, rows: int | None = None) -> Draw:
        """The draw of one step, on the CPU; candidates where points follow the residual.

        Args:
            step: which.
            rows: how many rows its points are to give together, where they are fresh; None is as many as there may be.
        """
        if self.fresh:
            return self._drawn(step, self.most if rows is None else rows)
        if self._fixed is None:
            self._fixed = self._drawn(0, self.most)
        return self._fixed

    def validation(self, rows: int, device: torch.device = CPU) -> dict[str, Points]:
        """As many as give so many rows, always the same; no step has those that are drawn, all have measured ones."""
        if (rows, device) not in self._validation:
            drawn = self._points(*self._numbers(rows), NO_STEP)
            self._validation[rows, device] = {name: p.to(device) for name, p in drawn.items()}
        return self._validation[rows, device]

    def _drawn(self, number: int, rows: int) -> Draw:
        kept, boundary = self._numbers(rows)
        interior = candidates(kept, AT_ONCE * self.sizes[0]) if self.residual else kept
        return Draw(number, self._points(interior, boundary, number), kept)

    def _numbers(self, rows: int) -> tuple[int, int]:
        """Interior and boundary points of so many rows."""
        interior, boundary = (max(1, round(size * rows / max(self.total, 1))) for size in self.sizes)
        return interior, boundary

    def _points(self, interior: int, boundary: int, number: int) -> dict[str, Points]:
        drawn = draw_points(self.terms, interior, boundary, seed=self.seed, draw=number)
        return {name: p.to(self.dtype) for name, p in drawn.items()}

    def chosen(self, draw: Draw, residuals: Callable[[Mapping[str, Points]], Mapping[str, Tensor]]) -> Draw:
        """The points of a step from its candidates, by the residuals there; the draw itself where none follow them."""
        if not self.residual:
            return draw
        generator = torch.Generator().manual_seed(draw.number)
        found = {
            name: followed(p, draw.kept, self.residual, lambda q, name=name: residuals({name: q})[name], generator)
            for name, p in draw.points.items()
            if self.follows(name)
        }
        return Draw(draw.number, {**draw.points, **found}, draw.kept)

    def follows(self, name: str) -> bool:
        """Whether points of that term are chosen by their residual: those that are drawn, inside."""
        where = self.terms[name].where
        return where.interior and not isinstance(where, Cloud)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Blocks(self), batch_size=None)


class _Blocks(IterableDataset):
    def __init__(self, stream: PointStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[int]]:
        for first in itertools.count(self.stream.first_step, self.stream.block):
            yield list(range(first, first + self.stream.block))

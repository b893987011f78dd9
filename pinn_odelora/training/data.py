"""The points of a run as a LightningDataModule: those of step k are a function of the seed, k and their number alone.

The points of a step may be bounded by the rows that they give: a system of several components costs a step no more
than a scalar equation then. Measured points are all taken, and do not count. Points may also follow the residual. Then
the draw of a step holds twice as many candidates, and the step keeps half of them: a part drawn with probability ∝
|r| / mean|r| + 1, |r| the size of the residual as the network stands, the others evenly (Wu et al., 2023, arXiv
2207.10289).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import lightning as L
import torch
from torch import Tensor, linalg
from torch.utils.data import DataLoader, IterableDataset

from pinn_odelora.errors import InputError
from pinn_odelora.geometry import Cloud
from pinn_odelora.points import Points
from pinn_odelora.problem import Term
from pinn_odelora.system import System, draw_points
from pinn_odelora.training.evaluation import Draw

NO_STEP = -1
"""The number of a draw that belongs to no step."""
ENOUGH = 800
"""Interior points that may do without more, see ``growth``."""


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
        drawn = {name: term for name, term in terms.items() if not isinstance(term.where, Cloud)}
        self.total = sum((components or {}).get(name, 1) * self._size(term) for name, term in drawn.items())
        self.most = self.total if rows is None else min(rows, self.total)
        self.first = self.most if first is None else min(first, self.most)
        # The rows that go with as many interior points.
        self.enough = math.ceil(ENOUGH * self.total / interior)
        measured = {name: term.where.points.number for name, term in terms.items() if name not in drawn}
        # All rows of a step, the measured ones too.
        self.all = self.most + sum((components or {}).get(name, 1) * number for name, number in measured.items())
        # Terms whose points are measured, and the same at every step.
        self.still = [name for name in terms if name not in drawn]
        self.seed = seed
        self.fresh = fresh and bool(drawn)
        self.dtype = dtype
        self.block = block
        self.first_step = 0
        self._fixed: Draw | None = None
        self._validation: dict[int, dict[str, Points]] = {}

    def _size(self, term: Term) -> int:
        return self.sizes[not term.where.interior]

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

    def validation(self, rows: int) -> dict[str, Points]:
        """Points that no step has, as many as are drawn for a step of so many rows, on the CPU: always the same."""
        if rows not in self._validation:
            self._validation = {rows: self._drawn(NO_STEP, rows).points}
        return self._validation[rows]

    def _drawn(self, number: int, rows: int) -> Draw:
        interior, boundary = (max(1, round(size * rows / max(self.total, 1))) for size in self.sizes)
        candidates = 2 * interior if self.residual else interior
        points = draw_points(self.terms, candidates, boundary, seed=self.seed, draw=number)
        return Draw(number, {name: p.to(self.dtype) for name, p in points.items()})

    def chosen(self, draw: Draw, residuals: Callable[[Mapping[str, Points]], Mapping[str, Tensor]]) -> Draw:
        """The points of a step from its candidates, by the residuals there; the draw itself where none follow them."""
        if not self.residual:
            return draw
        generator = torch.Generator().manual_seed(draw.number)
        inside = {name: p for name, p in draw.points.items() if self.follows(name)}
        found = {name: self._following(p, residuals({name: p})[name].detach(), generator) for name, p in inside.items()}
        return Draw(draw.number, {**draw.points, **found})

    def follows(self, name: str) -> bool:
        """Whether points of that term are chosen by their residual: those that are drawn, inside."""
        where = self.terms[name].where
        return where.interior and not isinstance(where, Cloud)

    def _following(self, p: Points, r: Tensor, generator: torch.Generator) -> Points:
        size = linalg.vector_norm(r, dim=1).double().cpu()
        n = (len(size) + 1) // 2
        # A residual that is zero or not finite everywhere has nothing to follow.
        mean = size.mean()
        chance = size / mean + 1 if 0 < mean < torch.inf else torch.ones_like(size)
        following = round(self.residual * n)
        # torch.multinomial refuses to draw none.
        drawn = torch.multinomial(chance, following, generator=generator) if following else torch.empty(0).long()
        left = torch.ones(len(size), dtype=torch.bool)
        left[drawn] = False
        rows = torch.cat([drawn, left.nonzero()[: n - len(drawn), 0]]).to(r.device)
        return Points({name: x[rows] for name, x in p.items()})

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Blocks(self), batch_size=None)


def components(system: System) -> dict[str, int]:
    """How many each term has; found with a system of its own, since engines keep to the first points they see."""
    like = next(system.solution.parameters())
    few = {name: p.to(like) for name, p in draw_points(system.terms, 8, 8, seed=0).items()}
    apart = System(system.problem, system.solution, system.extra, system.derivatives)
    return {name: r.shape[1] for name, r in apart.residuals(few).items()}


class _Blocks(IterableDataset):
    def __init__(self, stream: PointStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[int]]:
        for first in itertools.count(self.stream.first_step, self.stream.block):
            yield list(range(first, first + self.stream.block))

"""The points of a run as a LightningDataModule: the points of step k are a function of (seed, k) alone.

The points of a step may be bounded by the rows that they give: a system of several components costs a step no more
than a scalar equation then. Points may also follow the residual. Then the draw of a step holds twice as many
candidates, and the step keeps as many points as were asked for: a part of them drawn with probability proportional to
|r| / mean|r| + 1, |r| the size of the residual as the network stands, the others evenly (Wu et al., 2023, arXiv
2207.10289).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import lightning as L
import torch
from torch import Tensor, linalg
from torch.utils.data import DataLoader, IterableDataset

from pinn_odelora.errors import InputError
from pinn_odelora.points import Points
from pinn_odelora.problem import Term
from pinn_odelora.system import draw_points
from pinn_odelora.training.evaluation import Draw


class PointStream(L.LightningDataModule):
    """Blocks of draws, one draw a training step.

    Args:
        terms: the terms of the loss, each with its region.
        interior, boundary: points for terms of full dimension, and for the others.
        seed: of the Sobol sequences.
        fresh: new points at every step, or the same ones for ever.
        rows: how many rows all terms may have together, their points thinned evenly to it; None is no bound.
        components: of the residual of every term, 1 where not given.
        residual: the part of the interior points that follows the residual, from 0 to 1; above 0 for fresh points only.
        dtype: of the points.
        block: draws handed to Lightning at once.

    Raises:
        InputError: if a part of fixed points is to follow the residual, or the part is not in [0, 1].
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
    ) -> None:
        super().__init__()
        if not 0 <= residual <= 1 or (residual and not fresh):
            raise InputError(
                f"points.residual is {residual!r} with points.fresh={str(fresh).lower()}, but it must be from 0 to 1, "
                "and above 0 only where points are fresh."
            )
        self.residual = residual
        self.terms = terms
        self.sizes = _thinned(terms, (interior, boundary), rows, components or {})
        self.seed = seed
        self.fresh = fresh
        self.dtype = dtype
        self.block = block
        self.first_step = 0

    def draw(self, step: int) -> Draw:
        """The draw of one step."""
        number = step if self.fresh else 0
        interior, boundary = self.sizes
        candidates = 2 * interior if self.residual else interior
        points = draw_points(self.terms, candidates, boundary, seed=self.seed, draw=number)
        return Draw(number, {name: p.to(self.dtype) for name, p in points.items()})

    def chosen(self, draw: Draw, residuals: Callable[[Mapping[str, Points]], Mapping[str, Tensor]]) -> Draw:
        """The points of a step from its candidates, by the residuals there; the draw itself where none follow them."""
        if not self.residual:
            return draw
        generator = torch.Generator().manual_seed(draw.number)
        inside = {name: p for name, p in draw.points.items() if self.terms[name].where.interior}
        found = {name: self._following(p, residuals({name: p})[name].detach(), generator) for name, p in inside.items()}
        return Draw(draw.number, {**draw.points, **found})

    def _following(self, p: Points, r: Tensor, generator: torch.Generator) -> Points:
        size = linalg.vector_norm(r, dim=1).double().cpu()
        n = min(self.sizes[0], len(size))
        # A residual that is zero or not finite everywhere has nothing to follow.
        mean = size.mean()
        chance = size / mean + 1 if 0 < mean < torch.inf else torch.ones_like(size)
        drawn = torch.multinomial(chance, round(self.residual * n), generator=generator)
        left = torch.ones(len(size), dtype=torch.bool)
        left[drawn] = False
        rows = torch.cat([drawn, left.nonzero()[: n - len(drawn), 0]]).to(r.device)
        return Points({name: x[rows] for name, x in p.items()})

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Blocks(self), batch_size=None)


def _thinned(
    terms: Mapping[str, Term], sizes: tuple[int, int], rows: int | None, components: Mapping[str, int]
) -> tuple[int, int]:
    """Points inside and on the boundary, fewer of both where their rows would be too many."""
    total = sum(components.get(name, 1) * sizes[not term.where.interior] for name, term in terms.items())
    share = 1.0 if rows is None else min(1.0, rows / total)
    return max(1, round(share * sizes[0])), max(1, round(share * sizes[1]))


class _Blocks(IterableDataset):
    def __init__(self, stream: PointStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[Draw]]:
        step, size = self.stream.first_step, self.stream.block
        fixed = None if self.stream.fresh else self.stream.draw(0)
        while True:
            yield [fixed or self.stream.draw(step + i) for i in range(size)]
            step += size

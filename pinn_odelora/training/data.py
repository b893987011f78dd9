"""The points of a run as a LightningDataModule: the points of step k are a function of (seed, k) alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

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
        dtype: of the points.
        block: draws handed to Lightning at once.
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
    ) -> None:
        super().__init__()
        self.terms = terms
        self.sizes = (interior, boundary)
        self.seed = seed
        self.fresh = fresh
        self.dtype = dtype
        self.block = block
        self.first_step = 0

    def draw(self, step: int) -> Draw:
        """The draw of one step."""
        number = step if self.fresh else 0
        points = draw_points(self.terms, *self.sizes, seed=self.seed, draw=number)
        return Draw(number, {name: p.to(self.dtype) for name, p in points.items()})

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Blocks(self), batch_size=None)


class _Blocks(IterableDataset):
    def __init__(self, stream: PointStream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[list[Draw]]:
        step, size = self.stream.first_step, self.stream.block
        fixed = None if self.stream.fresh else self.stream.draw(0)
        while True:
            yield [fixed or self.stream.draw(step + i) for i in range(size)]
            step += size

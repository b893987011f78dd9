"""The points of a run: what step k draws is a function of the seed, k and the batch size alone.

The batch is bounded in residuals, so that a system of several components costs a step no more than a scalar equation.
Measured points are in every batch, and do not count. Where points follow the residual, the draw of a step holds more
candidates than the step keeps (``sampling.residual_sampling``); the network tells which are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.objective import Batch
from pinn_odelora.points import Points
from pinn_odelora.sampling.batch_size import drawn_residuals, sufficient_size
from pinn_odelora.sampling.residual_sampling import CANDIDATES, resampled
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import draw_points

CPU = torch.device("cpu")


class Sampler:
    """Batches by the number of a step.

    Args:
        terms: the terms of the loss, each with its region.
        settings: how many points, and how they are drawn.
        components: of the residual of every term at a point, 1 where not given.
        seed: of the Sobol sequences.
        dtype: of the points.

    Attributes:
        total: residuals of all drawn points together.
        largest: residuals of the largest batch, ``initial`` those of the first one.
        sufficient: residuals of the smallest sufficient batch, see ``sampling.batch_size``.
        all: those of the largest batch with the measured ones.
        measured: names of the terms whose points are measured.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        settings: Sampling,
        components: Mapping[str, int] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        components = components or {}
        measured = {name: term.where.points.number for name, term in terms.items() if isinstance(term.where, Cloud)}
        self.settings = settings
        self.terms = terms
        self.total = drawn_residuals(terms, components, settings.interior, settings.boundary)
        self.largest = self.total if settings.batch_size is None else min(settings.batch_size, self.total)
        first = settings.initial_batch_size
        self.initial = self.largest if first is None else min(first, self.largest)
        self.sufficient = sufficient_size(self.total, settings.interior)
        self.all = self.largest + sum(components.get(name, 1) * number for name, number in measured.items())
        self.measured = [*measured]
        self.fresh = settings.fresh and len(measured) < len(terms)
        self.seed = seed
        self.dtype = dtype
        self._fixed: dict[torch.device, Batch] = {}
        self._validation: dict[tuple[int, torch.device], dict[str, Points]] = {}

    def draw(self, step: int, size: int | None = None, device: torch.device = CPU) -> Batch:
        """The batch of one step; candidates where points follow the residual.

        Args:
            step: which.
            size: residuals of its points together, where they are fresh; None is the largest batch.
            device: where it is wanted; fixed points stay there, with what is kept of them.
        """
        if self.fresh:
            return self._drawn(step, self.largest if size is None else size).to(device)
        if device not in self._fixed:
            self._fixed[device] = self._drawn(0, self.largest).to(device)
        return self._fixed[device]

    def validation(self, size: int, device: torch.device = CPU) -> dict[str, Points]:
        """Points of so many residuals, always the same; drawn ones are in no batch, measured ones in all."""
        if (size, device) not in self._validation:
            drawn = self._points(*self._numbers(size), 0, "validation")
            self._validation[size, device] = {name: p.to(device) for name, p in drawn.items()}
        return self._validation[size, device]

    def _drawn(self, number: int, size: int) -> Batch:
        kept, boundary = self._numbers(size)
        interior = CANDIDATES * kept if self.settings.residual else kept
        return Batch(number, self._points(interior, boundary, number), kept)

    def _numbers(self, size: int) -> tuple[int, int]:
        """Interior and boundary points of so many residuals."""
        points = (self.settings.interior, self.settings.boundary)
        interior, boundary = (max(1, round(n * size / max(self.total, 1))) for n in points)
        return interior, boundary

    def _points(self, interior: int, boundary: int, number: int, purpose: str = "training") -> dict[str, Points]:
        drawn = draw_points(self.terms, interior, boundary, self.seed, number, purpose)
        return {name: p.to(self.dtype) for name, p in drawn.items()}

    def chosen(self, batch: Batch, residuals: Callable[[Mapping[str, Points]], Mapping[str, Tensor]]) -> Batch:
        """The points of a step from its candidates, by the residuals there; the batch itself where none follow them."""
        if not self.settings.residual:
            return batch
        part, generator = self.settings.residual, torch.Generator().manual_seed(batch.number)
        of = lambda name: lambda p: residuals({name: p})[name]
        found = {
            name: resampled(p, batch.kept, part, of(name), generator, self._further(name, batch.number))
            for name, p in batch.points.items()
            if self.follows(name)
        }
        return Batch(batch.number, {**batch.points, **found}, batch.kept)

    def _further(self, name: str, number: int) -> Callable[[int], Points]:
        """More points of the region of a term, by how many; others than its candidates."""
        term = {name: self.terms[name]}
        return lambda k: draw_points(term, k, 0, self.seed, number, f"training, further, {name}")[name]

    def follows(self, name: str) -> bool:
        """Whether points of that term are drawn by their residual: those inside the region that are not measured."""
        where = self.terms[name].where
        return where.interior and not isinstance(where, Cloud)

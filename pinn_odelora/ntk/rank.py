"""Which rank to adapt with, from the linearisation of the target's residuals at the pretrained network.

Let q(r) be the penalised residual that adapters of rank r leave in the linearised model, and q* what all weights leave
(``ntk.tangent_kernels``), both relative to the residual at the start. A rank reaches the fraction

    f(r) = log q(r) / log q* ,         0 ≤ f(r) ≤ f(r + 1) ≤ 1 ,

of the digits that all weights gain. If errors fall as (seconds per step / seconds)^b, and a rank loses as many nats as
the model says, in proportion to those that a run gains, the best rank at equal seconds is the one with the smallest

    c(r) · exp(8 (1 - f(r))) ,         c(r) the seconds of a step on a batch as large as that rank needs.

The linearised model does not predict where a run ends: where its solution is put into the network, the residual is
usually larger than before. Ranks are compared by it, and that was tested (docs/results/suggest_rank.md): the number 8
and the penalty were chosen on five problems, and hold on others.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import linalg, nn

from pinn_odelora.adaptation import Adaptation, Data
from pinn_odelora.budget import Budget
from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.formulation import Problem
from pinn_odelora.gradient import residual_vector_of
from pinn_odelora.linearisation import Linearisation
from pinn_odelora.lowrank.settings import LoRA
from pinn_odelora.lowrank.targets import check_rank
from pinn_odelora.nets import copied
from pinn_odelora.ntk.tangent_kernels import TangentKernels, dual_solution, effective_dimension, predicted_residual
from pinn_odelora.rules import null, number
from pinn_odelora.sampling.batch_size import under_determined
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.threads import threads as limited

log = logging.getLogger(__name__)
RANKS = (1, 2, 4, 8, 16)
"""The ranks compared where none are given."""
TOLERANCE = number(above=0) | null
"""What a tolerance may be."""
RESIDUALS = 800
"""Residuals of the linearised model: several times the effective dimensions that were met."""
PENALTY = 1e-12
"""μ over the largest eigenvalue of the kernel: the smallest whose systems are still solved to four digits."""
NATS = 8.0
"""What a rank that moves nothing loses, in seconds per step; 6 to 12 choose alike on the problems it was chosen on."""
EACH = 5
"""Residuals for each coordinate at which a batch grows no further, see ``sampling.batch_size``."""
STEPS = 3
"""Steps of which the fastest is timed: the first one also rehearses, and any may have rejected trials."""


@dataclass(frozen=True)
class RankPrediction:
    """What is predicted of one rank.

    Attributes:
        rank: r of every adapted layer that can have it; of others min(m, n).
        dimension: P, the coordinates of a step, the last layer included.
        residual: q(r), relative to the residual at the pretrained network.
        fraction: f(r), the digits gained over those that all weights gain.
        batch: residuals of a step late in a run.
        seconds: of such a step, measured.
    """

    rank: int
    dimension: int
    residual: float
    fraction: float
    batch: int
    seconds: float

    @property
    def price(self) -> float:
        """c(r) · exp(8 (1 - f(r))), in seconds: the smaller the better at equal seconds."""
        return self.seconds * math.exp(NATS * (1 - self.fraction))


@dataclass(frozen=True)
class RankAdvice:
    """The ranks compared, and what follows.

    Attributes:
        rank: the best at equal seconds, by prediction.
        predictions: by rank, ascending.
        tolerance: the residual asked for in the linearised model, relative to that at the pretrained network.
        sufficient: the smallest rank whose predicted residual is at most the tolerance; None where none is.
        layers: ranks of the adapted layers by name, each as small as the others allow, that meet the tolerance
            together; empty where no rank does.
        residual: q*, the residual predicted for all weights.
        reached: the residual of the network itself at the solution of the linearised model with all weights, relative
            to that at the pretrained network; the model holds that far only if it is about ``residual``.
        effective_dimension: tr K (K + μ)⁻¹ of the neural tangent kernel.
        residuals: R, the rows of the kernel.
        one_sweep: whether the Jacobian follows from one reverse sweep; otherwise it is formed row by row, more slowly.
    """

    rank: int
    predictions: tuple[RankPrediction, ...]
    tolerance: float
    sufficient: int | None
    layers: Mapping[str, int]
    residual: float
    reached: float
    effective_dimension: float
    residuals: int
    one_sweep: bool

    def __str__(self) -> str:
        return "\n".join([_HEAD, *map(self._line, self.predictions), *self.conclusions()])

    def _line(self, x: RankPrediction) -> str:
        cells = (x.rank, x.dimension, f"{x.residual:.2e}", f"{x.fraction:.0%}", x.batch, f"{x.seconds:.3f}")
        mark = "  best at equal seconds" if x.rank == self.rank else ""
        return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)) + mark

    def conclusions(self) -> list[str]:
        """What the table says, in sentences."""
        layers = ", ".join(f"{name} {rank}" for name, rank in self.layers.items())
        met = f"rank {self.sufficient} is the smallest that does; by layer {layers}" if self.layers else "no rank does"
        holds = "holds that far" if self.reached < 2 * self.residual else "does not hold that far: it compares ranks"
        return [
            f"Rank {self.rank} is best at equal seconds, by prediction.",
            f"To leave {self.tolerance:.2g} of the residual in the linearised model: {met}.",
            f"All weights leave {self.residual:.2g} there, the network itself {self.reached:.2g}: the model {holds}.",
            f"The kernel has {self.residuals} rows and effective dimension {self.effective_dimension:.0f}.",
        ]

    def plot(self, path: str | Path) -> None:
        """Predicted residual and seconds per step against the rank, saved as an image."""
        from pinn_odelora.ntk.figure import rank_figure

        rank_figure(self, path)


_WIDTHS = (6, 13, 20, 8, 8, 15)
_HEAD = "".join(
    f"{cell:>{width}}"
    for cell, width in zip(
        ("rank", "coordinates", "predicted residual", "gained", "batch", "seconds/step"), _WIDTHS, strict=True
    )
)


def suggest_rank(
    net: nn.Module,
    problem: Problem,
    *,
    tolerance: float | None = None,
    ranks: Sequence[int] | None = None,
    lora: LoRA | None = None,
    points: Sampling | None = None,
    data: Data | None = None,
    data_weight: float = 1.0,
    seed: int = 0,
    derivatives: str = "auto",
    threads: int | None = 1,
    clock: Callable[[], float] | None = None,
    say: Callable[[str], None] = log.info,
) -> RankAdvice:
    """Advice on the rank of an adaptation, before any training.

        advice = suggest_rank(net, Burgers(nu=0.02))
        print(advice)
        result = adapt(net, Burgers(nu=0.02), rank=advice.rank)

    The target's residuals are linearised at the pretrained network. The residual that each rank leaves in this model,
    compared with what all weights leave, and the measured seconds of a step give the rank that should end with the
    smallest error at equal seconds. The thresholds of Jang, Lee and Ryu (2024, arXiv 2402.11867) are about the
    same linearised training, but bound the rank for any data; this is about the data at hand.

    Args:
        net: the pretrained network, (N, inputs) -> (N, fields); it is not changed.
        problem: the equation to adapt to.
        tolerance: the residual asked for in the linearised model, relative to that at the pretrained network; None for
            twice what all weights leave.
        ranks: those compared; None for those of 1, 2, 4, 8, 16 that a layer can have.
        lora: which layers are adapted, and what else is trained; its rank is of no account.
        points: the points of the steps that are timed.
        data, data_weight: measured values that enter the loss, as of ``adapt``.
        seed: of the points.
        derivatives: ``auto``, ``jets`` or ``autograd``.
        threads: CPU threads meanwhile; None leaves them alone.
        clock: seconds of work, by which steps are timed; None for the CPU time of one thread, and for the time that
            passes with several.
        say: takes messages on the way.

    Returns:
        A ``RankAdvice``, which prints as a table and draws itself by ``plot(path)``: ``rank``, the best at equal
        seconds; ``predictions`` by rank, with ``residual``, ``fraction`` and ``seconds``; ``sufficient`` and
        ``layers``, the smallest ranks that meet the tolerance, None and empty where none do; ``effective_dimension``.

    Raises:
        InputError: one sentence on what does not fit: the network, a rank, a tolerance that is not above 0, factors
            that do not start at the best approximation.
    """
    tolerance = TOLERANCE.check("tolerance", tolerance)
    lora = checked_start(lora or LoRA())
    clock = clock or (time.thread_time if threads == 1 else time.perf_counter)
    points = points or Sampling()
    settings = {"data": data, "data_weight": data_weight, "seed": seed, "derivatives": derivatives}

    def adaptation(rank: int, batch: int | None = None) -> Adaptation:
        drawn = points if batch is None else replace(points, initial_batch_size=batch)
        own = replace(lora, rank=rank, adaptive=None)
        base = copied(net).cpu() if isinstance(net, nn.Module) else net
        made = Adaptation(base, problem, lora=own, points=drawn, budget=Budget(steps=STEPS), **settings)
        made.error_before = math.nan  # nobody asks for it
        return made

    first = adaptation(1)
    largest = max(min(layer.weight.shape) for layer in first.targets.values())
    ranks = tuple(r for r in RANKS if r <= largest) if ranks is None else _checked(ranks, first.targets)
    with limited(threads):
        model = _Model(first, ranks, say)
        tolerance = 2 * model.residual if tolerance is None else tolerance
        predictions = tuple(
            model.predicted(rank, lambda batch, rank=rank: _seconds(adaptation(rank, batch), clock)) for rank in ranks
        )
        layers = model.smallest(tolerance, predictions)
        reached = model.reached()
    return RankAdvice(
        min(predictions, key=lambda x: x.price).rank,
        predictions,
        tolerance,
        next((x.rank for x in predictions if x.residual <= tolerance), None),
        layers,
        model.residual,
        reached,
        effective_dimension(model.spectrum, model.mu),
        len(model.kernels.r),
        model.one_sweep,
    )


def checked_start(lora: LoRA) -> LoRA:
    """The settings themselves, where advice on their rank can be given.

    Raises:
        InputError: if factors do not start at the best approximation of the weight.
    """
    if lora.start != "pissa":
        raise RefusedValueError("start", lora.start, "pissa, from which tangent spaces of increasing rank are nested")
    return lora


def _checked(ranks: Sequence[int], targets: Mapping[str, nn.Linear]) -> tuple[int, ...]:
    for rank in ranks:
        check_rank(rank, targets, "ranks")
    if not ranks:
        raise InputError("ranks is empty, but there must be one to compare.")
    return tuple(sorted({*ranks}))


class _Model:
    """The linearised model of an adaptation at its start, where the effective weights are the pretrained ones."""

    def __init__(self, adaptation: Adaptation, ranks: Sequence[int], say: Callable[[str], None]) -> None:
        training = adaptation.training
        self.objective, self.sampler, self.settings = training.objective, training.sampler, adaptation.points
        sweep = self.objective.sweep
        self.one_sweep = all(map(sweep.paired, sweep.system.terms))
        if not self.one_sweep:
            say("The Jacobian of some residuals is formed row by row, which takes longer.")
        self.points = self.sampler.validation(RESIDUALS)
        self.linearised = Linearisation(sweep, self.points)
        size = float(self.linearised.r.norm())
        if not math.isfinite(size):
            raise InputError("the residual at the pretrained network is NaN or infinite, so nothing can be predicted.")
        if size == 0:
            raise InputError("the residual vanishes at the pretrained network, which needs no adaptation.")
        self.adapted = [*self.objective.layers]
        self.kernels = TangentKernels(self.linearised, self.adapted, ranks)
        self.spectrum = linalg.eigvalsh(self.kernels.full)
        self.mu = PENALTY * float(self.spectrum[-1])
        self.residual = predicted_residual(self.kernels.full, self.kernels.r, self.mu)

    def of(self, ranks: Mapping[str, int]) -> float:
        """q with these ranks of the layers."""
        return predicted_residual(self.kernels.kernel(ranks), self.kernels.r, self.mu)

    def uniform(self, rank: int) -> dict[str, int]:
        return {name: self._possible(name, rank) for name in self.adapted}

    def _possible(self, name: str, rank: int) -> int:
        return min(rank, *self.objective.layers[name].base_layer.weight.shape)

    def predicted(self, rank: int, seconds: Callable[[int | None], float]) -> RankPrediction:
        """The prediction for one rank; ``seconds`` times steps of a batch."""
        residual = self.of(self.uniform(rank))
        fraction = min(1.0, math.log(residual) / math.log(self.residual)) if self.residual < 1 else 1.0
        dimension = self._dimension(rank)
        batch = self._batch(dimension)
        took = seconds(None if self.settings.initial_batch_size is None else batch)
        return RankPrediction(rank, dimension, residual, fraction, batch, took)

    def _dimension(self, rank: int) -> int:
        layers, others = self.objective.variables
        own = sum(r * (sum(layers[name].weight.shape) - r) for name, r in self.uniform(rank).items())
        plain = [layer.weight for name, layer in layers.items() if name not in self.adapted]
        return own + sum(x.numel() for x in (*plain, *others.values()))

    def _batch(self, dimension: int) -> int:
        """Residuals of a step late in a run."""
        sampler = self.sampler
        if self.settings.initial_batch_size is None:
            return sampler.all
        if sampler.sufficient <= sampler.largest and under_determined(sampler.sufficient, dimension):
            return sampler.sufficient
        return min(sampler.largest, max(sampler.initial, EACH * dimension))

    def smallest(self, tolerance: float, predictions: Sequence[RankPrediction]) -> dict[str, int]:
        """Ranks of the layers that meet the tolerance, none of which can be lowered: layers one after the other, from
        the smallest rank that does for all.
        """
        ranks = [x.rank for x in predictions]
        enough = next((x.rank for x in predictions if x.residual <= tolerance), None)
        if enough is None:
            return {}
        found = self.uniform(enough)
        for name in found:
            lower = (found | {name: self._possible(name, rank)} for rank in ranks)
            found = next(candidate for candidate in lower if self.of(candidate) <= tolerance)
        return found

    def reached(self) -> float:
        """‖r‖ of the network at the penalised solution with all weights, over that at the start."""
        direction = self.linearised.rmatvec(-dual_solution(self.kernels.full, self.kernels.r, self.mu))
        weights = {n: getattr(x, "base_layer", x).weight for n, x in self.linearised.layers.items()}
        tensors = weights | self.linearised.others
        before = {name: x.detach().clone() for name, x in tensors.items()}
        with torch.no_grad():
            for name, x in tensors.items():
                x.add_(direction[name].view_as(x))
            there = residual_vector_of(self.objective.system)(self.points)
            for name, x in tensors.items():
                x.copy_(before[name])
        return float(there.norm() / self.linearised.r.norm())


def _seconds(adaptation: Adaptation, clock: Callable[[], float]) -> float:
    """Of the fastest of a few steps."""
    adaptation.training.clock = clock
    before, took = 0.0, []
    for record in adaptation:
        took.append(record.seconds - before)
        before = record.seconds
    if not took:
        raise InputError(f"the first step of the adaptation fails: {adaptation.training.failure}")
    return min(took)

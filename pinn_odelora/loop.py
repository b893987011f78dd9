"""The only loop: steps of an optimiser within a budget, as a generator of records.

    for record in steps(training, budget): ...
    conclude(training)

One iteration chooses the points of the step, takes it, adapts ranks and batch size, and considers the new iterate for
the best one. Everything that this changes is in a ``Training``, which can be saved and continued at any record. The
loop knows neither Lightning nor files; whoever wants to log, save, draw or stop does so between two records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from torch.linalg import LinAlgError
from torch.optim import Optimizer

from pinn_odelora.budget import Budget, Progress
from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.integrators import Report
from pinn_odelora.objective import Batch, Evaluation, Objective, Snapshot
from pinn_odelora.optim.methods import Method
from pinn_odelora.points import Points
from pinn_odelora.sampling.batch_size import AdaptiveBatchSize, completed, price, serves
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.selection.best_iterate import ROUND, SMALL, BestIterate
from pinn_odelora.selection.rank import RankAdaptation
from pinn_odelora.wall import Room

Row = dict[str, float]


@dataclass(frozen=True)
class StepRecord:
    """One step.

    Attributes:
        step: its number n, from 0.
        loss: L at y_n, where the step started, on its points, by the weights w_k of the problem alone.
        terms: w_k · mean_i |r_k(x_i)|² of each term, which sum to the loss.
        report: what the integrator says of the step, its step size and solver among it; its losses are of what the step
            minimised, with the multipliers of the terms.
        gradient_evals: evaluations up to its end.
        seconds: spent in steps up to its end, measurements excluded.
        batch_size: residuals of its points as asked for; measured values come on top.
        measured: what an observer measured at this step, by the names of docs/reference/notation.md; empty where none
            did.
        multipliers: λ_k of each term in this step; empty where the weights of the problem are all there is.
    """

    step: int
    loss: float
    terms: Mapping[str, float]
    report: Report
    gradient_evals: int
    seconds: float
    batch_size: int
    measured: Row = field(default_factory=dict)
    multipliers: Mapping[str, float] = field(default_factory=dict)


class Observer(Protocol):
    """Measures a run without taking part in it; its time and evaluations do not count."""

    def before(self, training: Training) -> Row | None:
        """What is measured where a step starts; None where this step is not observed."""

    def after(self, training: Training, record: StepRecord, row: Row) -> Row:
        """The whole row of a step that was observed."""


@dataclass
class Training:
    """What steps read and change.

    Attributes:
        objective: the loss; its network is trained.
        method: what is trained and how; it tells which policies apply.
        optimizer: of this run.
        sampler: the points.
        progress: counters.
        batch_size: residuals of the next step.
        best: the best iterate so far, where the run returns that.
        ranks: how the ranks of the layers follow the gradient; None where they stay.
        draw: the number of the next batch of points.
        considered: the step whose iterate was last considered for the best one; -1 before the first.
        failure: why the run ended, where loss or gradient had no finite value or a step was refused.
        stalled: whether the last step asked for nothing new and moved nothing, so that none will.
        paused: whether the steps ended for want of time before ``Budget.wall``, to be continued by another process.
        room: what steps and savings have taken.
        clock: seconds of work.
        agreed: whether a flag is set in any of the processes that take the steps together.
    """

    objective: Objective
    method: Method
    optimizer: Optimizer
    sampler: Sampler
    ranks: RankAdaptation | None = None
    progress: Progress = field(default_factory=Progress)
    batch_size: AdaptiveBatchSize = field(default_factory=AdaptiveBatchSize)
    best: BestIterate = field(default_factory=BestIterate)
    draw: int = 0
    considered: int = -1
    failure: NonFiniteError | None = None
    stalled: bool = False
    paused: bool = False
    room: Room = field(default_factory=Room)
    clock: Callable[[], float] = time.perf_counter
    agreed: Callable[[bool], bool] = bool

    @property
    def returns_best(self) -> bool:
        """Whether scheme and points are such that the run returns the best iterate rather than the last one."""
        return self.sampler.settings.best_iterate and self.method.judges_own_points

    def over(self, budget: Budget) -> bool:
        """Whether the budget is spent, the numbers failed, or nothing moves any more."""
        return self.failure is not None or self.stalled or budget.used(self.progress) >= 1

    def returned(self) -> Snapshot:
        """The iterate that the run would return now, the round at hand not considered."""
        return self.best.snapshot or self.objective.snapshot()

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors, from which the run continues with the same bits; not those of the network."""
        last = self.objective.last
        return {
            "progress": self.progress.as_dict(),
            "batch_size": asdict(self.batch_size),
            "best": asdict(self.best),
            "ranks": None if self.ranks is None else self.ranks.state(),
            "evaluation": None if last is None else dict(last._asdict()),
            "loss_weights": None if (weights := self.objective.loss_weights) is None else weights.state(),
            "draw": self.draw,
            "considered": self.considered,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; tensors are where the network is."""
        self.progress = Progress(**state["progress"])
        self.batch_size = AdaptiveBatchSize(**completed(state["batch_size"]))
        self.best = BestIterate.loaded(state["best"])
        if self.ranks is not None:
            self.ranks.load(state["ranks"])
        if self.objective.loss_weights is not None:
            self.objective.loss_weights.load(state["loss_weights"])
        self.draw, self.considered = state["draw"], state["considered"]
        self.objective.count = self.progress.gradient_evals
        if state["evaluation"] is not None:
            self.objective.last = Evaluation(**state["evaluation"])


def steps(training: Training, budget: Budget, observer: Observer | None = None) -> Iterator[StepRecord]:
    """Records of steps until the budget is spent, the numbers fail, or nothing moves; or until there is no time for
    another one, and ``training.paused`` is set.

    Numbers that fail end the iteration: ``training.failure`` has the reason, and the network is the last good one.
    """
    training.batch_size.size = training.batch_size.size or training.sampler.initial
    consider(training)
    training.room.restart()
    # A run that is continued takes one step at least: continued again and again it comes to its end.
    free = training.progress.step > 0
    while not training.over(budget) and not _pauses(training, budget, free):
        free = False
        row = observer.before(training) if observer else None
        record = _step(training)
        if record is None:
            return
        if row is not None:
            record.measured.update(observer.after(training, record, row))
        training.progress.step += 1
        # The budget is compared before the new iterate is considered: what that costs belongs to the next step.
        over = training.over(budget)
        consider(training)
        yield record
        if over:
            return


def _pauses(training: Training, budget: Budget, free: bool) -> bool:
    """Whether there is no time for another step; a step that is free is taken all the same."""
    if budget.wall is None:
        return False
    fits = training.room.fits(budget.wall)
    training.paused = training.agreed(not (fits or free))
    return training.paused


def conclude(training: Training) -> None:
    """End the run: the network is what it returns."""
    if training.ranks is not None and training.ranks.settle():
        training.optimizer.rank_changed()
    if training.returns_best:
        consider(training)
        with _counted(training):
            training.best.close(training.objective, lambda times: _validation(training, times * training.sampler.total))
    training.objective.restore(training.returned())


def consider(training: Training) -> None:
    """The iterate may be the best one, if the run returns that; once for each iterate."""
    number = training.progress.step
    if not training.returns_best or training.considered == number:
        return
    with _counted(training):
        training.best.consider(training.objective, _validation(training, training.sampler.total // SMALL))
        if number % ROUND == 0:
            training.best.close(training.objective, lambda times: _validation(training, times * training.sampler.total))
    training.considered = number


def _validation(training: Training, size: int) -> dict[str, Points]:
    return training.sampler.validation(size, training.objective.parameters[0].device)


def _step(training: Training) -> StepRecord | None:
    """One step of the optimiser; None where it failed."""
    objective, progress, size = training.objective, training.progress, training.batch_size.size
    candidates = training.sampler.draw(training.draw, size, objective.parameters[0].device)
    asked = objective.count
    try:
        with _counted(training):
            _advance(training, candidates)
    except (FloatingPointError, InputError, LinAlgError) as failure:
        # What a step refuses, as a flow that is singular at this point, is a run that has gone astray; so is one with
        # numbers so large that a decomposition of them fails.
        training.failure = failure if isinstance(failure, NonFiniteError) else NonFiniteError(str(failure))
        objective.restore_last_good()
        return None
    training.draw += 1
    # Without this no budget but time would end a run whose steps ask for nothing; a step that moved will ask the next.
    training.stalled = objective.count == asked and objective.known
    first, report = objective.first, report_of(training.optimizer)
    loss = float(sum(first.terms.values()) if objective.multipliers else first.total)
    progress.rises += loss > progress.loss
    progress.loss = loss
    _update_batch_size(training, report)
    return StepRecord(
        progress.step,
        loss,
        {name: float(x) for name, x in first.terms.items()},
        report,
        progress.gradient_evals,
        progress.seconds,
        size,
        multipliers=dict(objective.multipliers),
    )


def _advance(training: Training, candidates: Batch) -> None:
    """Choose the points of the step, take it, and adapt the ranks to the gradient where it started."""
    objective, sampler, ranks = training.objective, training.sampler, training.ranks
    objective.begin(sampler.chosen(candidates, objective.residuals_at))
    training.optimizer.step(objective)
    if ranks is None:
        return
    solves = training.method.linearises
    fits = lambda dimension: not solves or serves(dimension, sampler.all, sampler.sufficient, ranks.rule.residuals)
    if ranks.update(objective.first.weights, fits):
        training.optimizer.rank_changed()


def _update_batch_size(training: Training, report: Report) -> None:
    objective, sampler = training.objective, training.sampler
    first, weights = objective.first, objective.loss_weights
    # The loss before is of the multipliers before: what is compared with it must be, too.
    former = weights.former if objective.multipliers else dict.fromkeys(first.terms, 1.0)
    training.batch_size.update(
        float(first.total),
        report.loss_after,
        price(report.form),
        report.dimension,
        sampler.largest,
        sum(former[name] * float(first.terms[name]) for name in sampler.measured),
        sampler.sufficient,
        float(weights.of(first.terms, former)) if objective.multipliers else None,
    )


def report_of(optimizer: Optimizer) -> Report:
    """What the last step says of itself; of a rival its learning rate."""
    found = getattr(optimizer, "report", None)
    if found is not None:
        return found
    return Report(float(optimizer.param_groups[0]["lr"]))


@contextmanager
def _counted(training: Training) -> Iterator[None]:
    """What runs inside is timed, and its evaluations are counted."""
    start = training.clock()
    try:
        yield
    finally:
        training.progress.seconds += training.clock() - start
        training.progress.gradient_evals = training.objective.count

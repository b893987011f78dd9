"""How a stage of pretraining is followed: when it ends, with which iterate, and what takes it off a plateau.

A stage is a run of the one loop (``loop``). It ends at the target, at its budget, where it cannot go on, or when
neither the error nor the loss at points that no step has has fallen by a tenth for a while: on a plateau the loss falls
first. Where there is no reference the target is compared with an estimate of the error (``error_estimate``), now and
then. Unless the target is reached, the network is left at the iterate with the smallest loss.

Steps on few points can undo each other: a standstill that is none of the solution. The batch grows where its loss
stands still (``sampling.batch_size``), so a stage does not end while it can, and a larger batch begins another while.

Where a network has far to go before it has any waves, a plateau is wider than natural gradient gets in a minute: its
linearisation holds only for steps that hardly change the loss. A stage that has not brought the loss to a quarter after
``TRIAL`` steps therefore lets Adam halve it (``stages.halve``), and goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pinn_odelora import loop
from pinn_odelora.budget import Budget, Progress
from pinn_odelora.loop import StepRecord, Training, report_of
from pinn_odelora.objective import Objective, Snapshot

Message = Callable[[str], None]
ITERATIONS = 20
"""Of L-BFGS between two looks at the error."""
FALLEN = 0.9
"""The part of the error or the loss that a fall leaves at most."""
TRIAL, QUARTER = 60, 0.25
"""Steps in which a stage brings the loss down to a quarter, except on a plateau."""
TURNS, TURN = 3, 1000
"""Turns of Adam at most, and the steps of one."""


@dataclass(frozen=True)
class Unseen:
    """What tells how far training is without a reference.

    Attributes:
        loss: at points that no step has.
        estimate: of the relative L2 error; None where there is none.
    """

    loss: Callable[[], float]
    estimate: Callable[[], float | None]


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run.

    Attributes:
        name: for messages.
        training: what the steps change.
        patience: cost within which the error or the loss has to fall by a tenth.
        every: cost between two messages.
        cost: of a run so far, in the units of its budget.
        halve: the way off a plateau, see ``halve``; None where there is none.
    """

    name: str
    training: Training
    patience: float
    every: int
    cost: Callable[[Training], int]
    halve: Callable[[Budget], tuple[bool, Progress]] | None = None


def follow(
    stage: Stage,
    budget: Budget,
    most: int,
    error: Callable[[], float],
    target: float,
    say: Message,
    unseen: Unseen | None = None,
) -> None:
    """Run a stage until it is over, and leave the network where it has reached the target, or else at the iterate with
    the smallest loss.

    Args:
        stage: what runs.
        budget, most: its budget, also as a number in messages.
        error: relative L2 error; NaN without a reference.
        target: the error that ends it.
        say: takes messages.
        unseen: the loss that has to fall and is in messages, that of the steps if absent, and the estimate where
            there is no reference.
    """
    now = error()
    if now <= target:
        return
    tell = lambda spent, text: say(f"{stage.name} {spent}/{most}: {text}")
    known, kept = not math.isnan(now), Best(stage.training.objective)
    # The first loss is what later ones are compared with; without a reference it is the first fall, too.
    start = (now, None) if known else (math.inf, math.inf)
    following = _Following(stage, Plateau(stage, budget), error, target, tell, unseen, known, kept, *start)
    for record in loop.steps(stage.training, budget):
        if following.over(record):
            break
    else:
        if stage.training.stalled:
            following.stands_still()
    if not following.reached:
        kept.put_back()


@dataclass
class _Following:
    """A stage that runs.

    Attributes:
        stage, plateau: of the run.
        error, target, tell, unseen: as for ``follow``; ``tell`` takes the cost so far and a text.
        known: whether there is a reference.
        kept: the iterate with the smallest loss.
        best, least: the error and the loss at the last fall; None before the first loss.
        size: the batch of the last step, in residuals; 0 before the first one.
        spent, reported, fell: the cost so far, at the last message, and at the last fall.
        reached: whether the target is.
    """

    stage: Stage
    plateau: Plateau
    error: Callable[[], float]
    target: float
    tell: Callable[[int, str], None]
    unseen: Unseen | None
    known: bool
    kept: Best
    best: float
    least: float | None
    size: int = 0
    spent: int = 0
    reported: int = 0
    fell: int = 0
    reached: bool = False

    def over(self, record: StepRecord) -> bool:
        """A step has been taken; whether it was the last one."""
        before, self.spent = self.spent, self.stage.cost(self.stage.training)
        error = self.error()
        # Of the iterate that the step has led to, as the error is; record.loss is of the one before.
        loss = self.unseen.loss() if self.unseen else record.loss
        self.kept.consider(loss)
        self._compare(error, loss, record.batch_size)
        self.reached = self._reports(error, loss) or error <= self.target
        if self.reached:
            return True
        if self.plateau.crossed(loss):
            self.least, self.fell = math.inf, self.spent
            self.tell(self.spent, "goes on where Adam has halved the loss")
        # A line search of L-BFGS that takes so many evaluations has lost its way.
        if self._waited() or self.spent - before > 10 * ITERATIONS:
            self.stands_still()
            return True
        return False

    def stands_still(self) -> None:
        """Say so."""
        self.tell(self.spent, "no further progress")

    def _compare(self, error: float, loss: float, size: int) -> None:
        """Whether either has fallen, or a larger batch gives them another while."""
        self.least = loss if self.least is None else self.least
        falls = loss < FALLEN * self.least or (self.known and error < FALLEN * self.best)
        if falls or 0 < self.size < size:
            self.best, self.least, self.fell = min(self.best, error), min(self.least, loss), self.spent
        self.size = size

    def _waited(self) -> bool:
        """Whether neither has fallen for a while, with a batch that will not grow because of it."""
        return self.spent - self.fell >= self.stage.patience and not _grows(self.stage.training)

    def _reports(self, error: float, loss: float) -> bool:
        """Say how far it is, now and then; whether an estimate of the error says that the target is reached."""
        if self.spent - self.reported < self.stage.every:
            return False
        self.reported = self.spent
        guess = self.unseen.estimate() if self.unseen and not self.known else None
        self.tell(self.spent, _figures(loss, error, guess))
        return guess is not None and guess <= self.target


@dataclass
class Best:
    """The best of some iterates.

    Attributes:
        objective: of the network.
        loss, snapshot: of the best one so far.
    """

    objective: Objective
    loss: float = math.inf
    snapshot: Snapshot | None = None

    def consider(self, loss: float) -> None:
        """The network as it is."""
        if loss < self.loss:
            self.loss, self.snapshot = loss, self.objective.snapshot()

    def put_back(self) -> None:
        """Leave the network there."""
        if self.snapshot is not None:
            self.objective.restore(self.snapshot)


@dataclass
class Plateau:
    """Whether a stage has got anywhere, and what takes it off a plateau.

    Attributes:
        stage, budget: of the run.
        first: the loss at which its present trial began.
        since: what it had cost then.
        turns: of Adam so far.
        over: whether there is nothing to do any more.
    """

    stage: Stage
    budget: Budget
    first: float = math.nan
    since: int = 0
    turns: int = 0
    over: bool = False

    def crossed(self, loss: float) -> bool:
        """A step has led to this loss; whether Adam has halved it since."""
        self.first = loss if math.isnan(self.first) else self.first
        self.over |= self.stage.halve is None or loss <= QUARTER * self.first
        training, spent = self.stage.training, self.stage.cost(self.stage.training)
        if self.over or spent - self.since < TRIAL or training.over(self.budget):
            return False
        seconds = self.budget.seconds and (self.budget.seconds - training.progress.seconds) / 2
        halved, cost = self.stage.halve(Budget(steps=TURN, seconds=seconds, wall=self.budget.wall))
        training.progress.seconds += cost.seconds
        training.progress.gradient_evals += cost.gradient_evals
        training.objective.count = training.progress.gradient_evals
        # The next step begins elsewhere than the last one ended: its loss tells neither gap nor progress.
        training.batch_size.began = training.batch_size.ended = None
        self.first, self.since, self.turns = math.nan, spent, self.turns + 1
        self.over = not halved or self.turns == TURNS
        return halved


def _grows(training: Training) -> bool:
    """Whether the batch grows where its loss stands still."""
    if not (sampler := training.sampler).fresh:
        return False
    dimension = report_of(training.optimizer).dimension
    return training.batch_size.grows(sampler.largest, sampler.sufficient, dimension)


def _figures(loss: float, error: float, guess: float | None) -> str:
    known = "" if math.isnan(error) else f", relative L2 {error:.2e}"
    if guess is not None:
        known = f", relative L2 error about {guess:.0e}"
    return f"loss {loss:.2e}{known}"

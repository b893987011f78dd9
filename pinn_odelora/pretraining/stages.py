"""The stages of pretraining: ways to bring all weights of a network to the solution at the source parameter.

Adam, its learning rate falling by a cosine, finds the neighbourhood; from there the second stage has a long way to go
down a narrow valley:

* natural gradient: linearly implicit steps of the gradient flow of all weights with the second-order correction and
  momentum, on fresh points whose number adapts (``sampling.batch_size``). Few, expensive steps, tens to a hundred;
  their linear algebra is that of the residuals, so that the width hardly matters. Before the waves of an indefinite
  operator lies a plateau, where steps are short and alike: momentum crosses it in a fifth of them;
* L-BFGS on fixed points, one gradient an evaluation, thousands of them: for networks whose Jacobian does not follow
  from one reverse sweep, or does not fit the memory.

Each is a run of the one loop (``loop``). The second stage ends at the target, at its budget, where it cannot go on, or
when neither the error nor the loss at points that no step has has fallen by a tenth for a while: on a plateau the loss
falls first. Where there is no reference the target is compared with an estimate of the error (``error_estimate``), now
and then.

Steps on few points can undo each other while they hardly move, so that the gap stays too small for the batch to grow
(``sampling.batch_size``): a standstill that is none of the solution. After a while the batch is enlarged, and the while
begins again, until it is the largest. It is not enlarged sooner, since a plateau is crossed by many steps, and those on
few points are cheap.

Where a network has far to go before it has any waves, a plateau is wider than natural gradient gets in a minute: its
linearisation holds only for steps that hardly change the loss. Adam moves all weights at its own rate, whatever the
curvature, and leaves such a plateau in hundreds of cheap steps. So natural gradient that has not brought the loss to a
quarter after ``TRIAL`` steps lets Adam halve it, and goes on from there; what Adam does not halve is undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from pinn_odelora import loop
from pinn_odelora.budget import Budget, Progress
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.loop import Training, report_of
from pinn_odelora.objective import Objective, Snapshot
from pinn_odelora.optim.groups import Group, parameters, single_tensors
from pinn_odelora.optim.methods import Method, full_implicit
from pinn_odelora.rivals.lbfgs import LBFGS
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import System

Message = Callable[[str], None]
ITERATIONS = 20
"""Of L-BFGS between two looks at the error."""
MEMORY = 2.0**31
"""Bytes for the linear algebra of a step of natural gradient: 12,000 residuals of a network with 5,000 weights."""
RESIDUAL, FIRST = 0.3, 125
"""As of ``points=residual``: the part of the points that follows the residual, and the first batch, in residuals."""
WIDTH, LR = 40, 5e-3
"""Units of a layer, and the learning rate of Adam up to there."""
TRIAL, QUARTER = 60, 0.25
"""Steps in which natural gradient brings the loss down to a quarter, except on a plateau."""
HALF, RISEN = 0.5, 4.0
"""The parts of the loss at which a turn of Adam ends, in success or not."""
TURNS, TURN, FEW = 3, 1000, 400
"""Turns of Adam at most, and the steps and points of one."""
ALONE = 32
"""Trained numbers that the tape does not tell of beyond which a Jacobian is too expensive: each takes a reverse
sweep."""


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


def training_of(
    system: System, make: Callable[[list[Group]], torch.optim.Optimizer], points: Sampling, seed: int
) -> Training:
    """The trainable weights of a system's network by an optimiser."""
    method = Method("pretraining", "weights", make)
    return _training(system, method, points, seed)


def _training(system: System, method: Method, points: Sampling, seed: int) -> Training:
    # Not method.groups, which thaws: what the user has frozen stays as it is.
    groups = single_tensors(system.solution)
    like = next(system.solution.net.parameters())
    components = {name: system.components(name) for name in system.terms}
    sampler = Sampler(system.terms, points, components, seed, like.dtype)
    return Training(Objective(system, parameters(groups), {}), method, method.optimizer(groups), sampler)


def adam(
    system: System,
    interior: int,
    boundary: int,
    seed: int,
    steps: int,
    lr: float,
    say: Message,
    wall: float | None = None,
    seconds: float = math.inf,
) -> Training:
    """All steps, on fixed points, or as many as ``seconds`` allow; fewer, and ``paused`` is set, where the time on the
    ``wall`` is over before.
    """
    points = Sampling.fixed(interior, boundary)
    training = training_of(system, lambda groups: torch.optim.Adam(parameters(groups), lr=lr), points, seed)
    limit = None if seconds == math.inf else seconds
    for record in loop.steps(training, Budget(steps=steps, seconds=limit, wall=wall)) if steps else ():
        done = record.step + 1
        part = max(done / steps, min(training.progress.seconds / seconds, 1.0))
        for group in training.optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * part)) / 2
        if done % max(steps // 10, 1) == 0:
            say(f"Adam {done}/{steps}: loss {record.loss:.2e}")
    return training


def adam_lr(net: nn.Module) -> float:
    """In proportion to 1/width beyond 40 units, as hidden layers ask for (Yang et al., 2022, arXiv 2203.03466)."""
    widest = max((min(p.shape) for p in net.parameters() if p.ndim == 2), default=WIDTH)
    return LR * min(1.0, WIDTH / widest)


def halve(system: System, boundary: int, seed: int, budget: Budget) -> tuple[bool, Progress]:
    """Adam, at a constant rate and on few fixed points, until the loss there is half; whether it came to that within
    the budget, and what it cost. All is as before if it did not: a loss that rises, as from where a network is trained
    already, is no plateau.
    """
    lr, points = adam_lr(system.solution.net), Sampling.fixed(FEW, boundary)
    training = training_of(system, lambda groups: torch.optim.Adam(parameters(groups), lr=lr), points, seed)
    trained = training.objective.parameters
    before = [p.detach().clone() for p in trained]
    first = math.nan
    for record in loop.steps(training, budget):
        first = record.loss if record.step == 0 else first
        if record.loss < HALF * first:
            return True, training.progress
        if record.loss > RISEN * first:
            break
    with torch.no_grad():
        for p, value in zip(trained, before, strict=True):
            p.copy_(value)
    return False, training.progress


def lbfgs(system: System, interior: int, boundary: int, seed: int) -> Stage:
    """L-BFGS on fixed points; its cost is gradient evaluations, those of line searches included."""
    make = lambda groups: LBFGS(parameters(groups), iterations=ITERATIONS)
    training = training_of(system, make, Sampling.fixed(interior, boundary), seed)
    return Stage("L-BFGS", training, 3000, 300, lambda training: training.progress.gradient_evals)


def natural_gradient(system: System, interior: int, boundary: int, seed: int) -> Stage:
    """Linearly implicit steps on all weights; its cost is steps.

    Args:
        system: what is solved; its solution is trained.
        interior, boundary: points of a step at most; all terms and components together give at most ``interior``
            residuals.
        seed: of the points.
    """
    points = Sampling(
        interior=interior,
        boundary=boundary,
        residual=RESIDUAL,
        batch_size=interior,
        initial_batch_size=FIRST,
        best_iterate=False,
    )
    training = _training(system, full_implicit(LinearlyImplicit(memory=MEMORY)), points, seed)
    way = lambda budget: halve(system, boundary, seed, budget)
    return Stage("Natural gradient", training, 40, 20, lambda training: training.progress.step, way)


def unsuitable(stage: Stage) -> str | None:
    """Why natural gradient would be too expensive: its Jacobian does not follow from one reverse sweep, or does not fit
    the memory; None where it is not.
    """
    objective = stage.training.objective
    sweep, terms = objective.sweep, objective.system.terms
    if not all(sweep.paired(name) for name in terms):
        return "the network has no jet rules, or a term is coupled"
    if (alone := max(map(sweep.alone, terms))) > ALONE:
        return f"{alone} numbers are trained neither in linear layers nor as factors or summands"
    form = stage.training.optimizer.plan(stage.training.sampler.largest).form
    return "the linear algebra of a step does not fit the memory" if form == "cg" else None


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
    kept = Best(stage.training.objective)
    if not _reached(stage, budget, most, error, now, target, say, unseen, kept):
        kept.put_back()


def _reached(
    stage: Stage,
    budget: Budget,
    most: int,
    error: Callable[[], float],
    now: float,
    target: float,
    say: Message,
    unseen: Unseen | None,
    kept: Best,
) -> bool:
    """Run it; whether it has reached the target."""
    spent = reported = at = 0
    known = not math.isnan(now)
    best = now if known else math.inf
    least = None if known else math.inf
    plateau = Plateau(stage, budget)
    for record in loop.steps(stage.training, budget):
        before, spent = spent, stage.cost(stage.training)
        now = error()
        # Of the iterate that the step has led to, as the error is; record.loss is of the one before.
        loss = unseen.loss() if unseen else record.loss
        kept.consider(loss)
        least = loss if least is None else least
        falls = loss < 0.9 * least or (known and now < 0.9 * best)
        if falls or (spent - at >= stage.patience and _more_points(stage.training)):
            best, least, at = min(best, now), min(least, loss), spent
        if spent - reported >= stage.every:
            reported = spent
            guess = unseen.estimate() if unseen and not known else None
            say(f"{stage.name} {spent}/{most}: {_figures(loss, now, guess)}")
            if guess is not None and guess <= target:
                return True
        if now <= target:
            return True
        if plateau.crossed(loss):
            least, at = math.inf, spent
            say(f"{stage.name} {spent}/{most}: goes on where Adam has halved the loss")
        # A line search of L-BFGS that takes so many evaluations has lost its way.
        if spent - at >= stage.patience or spent - before > 10 * ITERATIONS:
            say(f"{stage.name} {spent}/{most}: no further progress")
            return False
    if stage.training.stalled:
        say(f"{stage.name} {spent}/{most}: no further progress")
    return False


@dataclass
class Best:
    """The best of some iterates.

    Attributes:
        objective: of the network.
        loss, last: of the best one so far, and of the last.
        snapshot: of the best one.
    """

    objective: Objective
    loss: float = math.inf
    last: float = math.inf
    snapshot: Snapshot | None = None

    def consider(self, loss: float) -> None:
        """The network as it is."""
        self.last = loss
        if loss < self.loss:
            self.loss, self.snapshot = loss, self.objective.snapshot()

    def put_back(self) -> None:
        """Leave the network there."""
        if self.snapshot is not None and not self.last <= self.loss:
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
        self.first, self.since, self.turns = math.nan, spent, self.turns + 1
        self.over = not halved or self.turns == TURNS
        return halved


def _more_points(training: Training) -> bool:
    """Enlarge the batch, if points are fresh at every step; whether that was possible."""
    if not (sampler := training.sampler).fresh:
        return False
    dimension = report_of(training.optimizer).dimension
    return training.batch_size.enlarge(sampler.largest, sampler.sufficient, dimension)


def _figures(loss: float, error: float, guess: float | None) -> str:
    known = "" if math.isnan(error) else f", relative L2 {error:.2e}"
    if guess is not None:
        known = f", relative L2 error about {guess:.0e}"
    return f"loss {loss:.2e}{known}"

"""One run of the race: the steps of a run of ``train.py``, taken from the one loop and timed by a clock of their own.

The clock is the CPU time of the thread that does the work, so that whatever else the machine does costs a contender
little. As in ``train.py`` it runs while a step chooses its points and is taken, and while the best iterate is found
where a run returns that; drawing candidates, which costs every step the same, and measuring are not timed.

The error at a mark is that of the iterate that a run would have returned then: the last one or, where
``Training.returns_best`` says so, the best one. A step under way counts when it is done. A run whose numbers fail, or
that asks for nothing new, keeps its last error until the end.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from pinn_odelora import config, loop
from pinn_odelora.adaptation import Adaptation
from pinn_odelora.budget import Budget
from pinn_odelora.config import build
from pinn_odelora.diagnostics import Reference
from pinn_odelora.loop import Row, StepRecord, Training
from pinn_odelora.objective import Snapshot
from pinn_odelora.pretraining.pretrain import pretrained
from pinn_odelora.system import Solution, System
from racing.cases import Case
from racing.contenders import CONFIGS, Contender

MARKS = (0.3, 1, 2, 3, 5, 10, 15, 20, 30, 50, 100, 150, 200, 300)
"""Seconds at which the error is taken, up to the end of the run."""
TEST_POINTS = 4096
SETTLED = 5
"""Steps after which a rise of the held-out loss counts."""
ENDLESS = Budget(steps=10**9)
"""The marks end a run, not its budget: the step that passes the last one is taken, and does not count."""


class Entry(NamedTuple):
    """A contender at the start: the pretrained network with what is trained, and the points of its steps.

    ``renewed``: evaluations after which points and optimiser are new; None for points as configured.
    """

    cfg: DictConfig
    adaptation: Adaptation
    training: Training
    renewed: int | None

    @property
    def reference(self) -> Reference:
        """What its solution is compared with."""
        return self.adaptation.diagnostics.reference


class Mark(NamedTuple):
    """What a run had reached after so many seconds."""

    seconds: float
    rel_l2: float
    evaluations: int
    steps: int


def configuration(case: Case, contender: Contender, seed: int, cache: Path | None = None) -> DictConfig:
    """As the command line composes it."""
    cache_key = [] if cache is None else [f"pretrain.cache={cache}"]
    by_lbfgs = ["pretrain.second_stage=lbfgs", "pretrain.adam_steps=500"]
    own = ["logger=csv", "output_dir=unused", "trainer.accelerator=cpu", f"seed={seed}"]
    measured = [f"log.test={TEST_POINTS}", f"log.heldout={TEST_POINTS}"]
    config.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [*own, *by_lbfgs, *measured, *cache_key, *case.overrides, *contender.overrides])


def enter(case: Case, contender: Contender, seed: int, cache: Path | None = None) -> Entry:
    """Compose, pretrain (or take from the cache) and put in what is trained."""
    cfg = configuration(case, contender, seed, cache)
    built = build.experiment(cfg)
    source = System(built.source, Solution(built.source, built.net))
    pretrained(source, built.pretraining, built.weights, cache, lambda line: None)
    adaptation = built.adaptation
    adaptation.error_before = math.nan  # the first mark has it
    return Entry(cfg, adaptation, adaptation.training, contender.renewed)


def cosine(rate: float, spent: float, seconds: float) -> float:
    """From ``rate`` at the start to 0 at the end."""
    return rate * (1 + math.cos(math.pi * min(spent / seconds, 1.0))) / 2


def records(
    entry: Entry, seconds: float, rate: float | None = None, observer: loop.Observer | None = None
) -> Iterator[StepRecord]:
    """The steps of an entry without end, their learning rate, points and optimiser changed between them.

    Args:
        entry: who runs; its network is changed.
        seconds: after which the learning rate is zero.
        rate: the learning rate at the start, for a contender that takes one.
        observer: see ``loop.Observer``.
    """
    training, renewed_at, draw = entry.training, 0, 0
    _set_rate(training, rate, seconds)
    while True:
        for record in loop.steps(training, ENDLESS, observer):
            if entry.renewed is not None:
                count = training.objective.count
                if training.stalled or count - renewed_at >= entry.renewed:
                    training.optimizer = training.method.optimizer(entry.adaptation.groups)
                    renewed_at, draw = count, draw + 1
                training.draw = draw
            _set_rate(training, rate, seconds)
            yield record
        if entry.renewed is None or training.failure is not None:
            return
        training.stalled = False  # on these points alone


def _set_rate(training: Training, rate: float | None, seconds: float) -> None:
    if rate is not None:
        for group in training.optimizer.param_groups:
            group["lr"] = cosine(rate, training.progress.seconds, seconds)


def ending(training: Training) -> Callable[[], Snapshot]:
    """What the run would return here, found when asked for; this changes neither the run nor its cost."""
    objective, sampler = training.objective, training.sampler
    if not training.returns_best:
        here = objective.snapshot()
        return lambda: here
    best, device = copy.copy(training.best), objective.parameters[0].device

    def closed() -> Snapshot:
        count = objective.count
        best.close(objective, lambda times: sampler.validation(times * sampler.total, device))
        objective.count = count
        return best.snapshot or objective.snapshot()

    return closed


class Heldout:
    """The loss on held-out points at the start, at the end, and its largest relative rise between two looks."""

    def __init__(self) -> None:
        self.first = self.last = math.nan
        self.largest_rise = 0.0
        self.settled = False

    def look(self, step: int, loss: float) -> None:
        if math.isnan(self.first):
            self.first = loss
        elif self.settled and self.last > 0:
            self.largest_rise = max(self.largest_rise, loss / self.last - 1)
        self.last = loss
        self.settled = step >= SETTLED


class Watch:
    """Notes where each step starts, and now and then the held-out loss there; an ``Observer`` of the loop.

    Args:
        reference: the held-out points.
        every: steps between two looks at the held-out loss.

    Attributes:
        ending: what the run would have returned where the last step started.
        evaluations, steps: spent until then.
        iterates, returned: held-out losses of the iterates, and of what would have been returned.
    """

    def __init__(self, reference: Reference, every: int) -> None:
        self.reference = reference
        self.every = every
        self.iterates, self.returned = Heldout(), Heldout()

    def before(self, training: Training) -> Row | None:
        self.ending = ending(training)
        self.evaluations, self.steps = training.objective.count, training.progress.step
        if self.steps % self.every == 0:
            self.iterates.look(self.steps, self.reference.loss())
            self.returned.look(self.steps, measured(training, self.ending(), self.reference.loss))
        return None

    def after(self, training: Training, record: StepRecord, row: Row) -> Row:
        return row


def race(
    entry: Entry, seconds: float, rate: float | None = None, clock: Callable[[], float] = time.thread_time
) -> dict[str, Any]:
    """Steps for so many seconds; what was reached at every mark, and how steadily.

    Args:
        entry: who runs; its network is changed.
        seconds: its time. A step that starts within it and ends after it does not count.
        rate: the learning rate at the start, for a contender that takes one.
        clock: seconds of work; by default the CPU time of this thread.
    """
    training, reference = entry.training, entry.reference
    training.clock = clock
    watch, progress = Watch(reference, entry.cfg.log.every), training.progress
    error = lambda: reference.errors()["error/rel_l2"]
    marks = [Mark(0.0, error(), 0, 0)]
    left = [t for t in MARKS if t < seconds] + [seconds]
    thread, process = time.thread_time(), time.process_time()
    for _ in records(entry, seconds, rate, watch):
        while left and progress.seconds > left[0] and not _stuck(entry):
            marks.append(Mark(left.pop(0), measured(training, watch.ending(), error), watch.evaluations, watch.steps))
        if not left:
            break
    cores = (time.process_time() - process) / (time.thread_time() - thread)
    training.objective.restore(ending(training)())
    watch.returned.look(progress.step, reference.loss())
    marks += [Mark(t, error(), training.objective.count, progress.step) for t in left]
    heldout = watch.returned
    fell = math.isfinite(heldout.last) and heldout.last <= heldout.first
    return {
        "marks": [mark._asdict() for mark in marks],
        "spent": progress.seconds,
        "cores": cores,
        "trained": sum(p.numel() for p in training.objective.parameters),
        "heldout_first": heldout.first,
        "heldout_last": heldout.last,
        "largest_rise": heldout.largest_rise,
        "largest_rise_of_iterates": watch.iterates.largest_rise,
        "diverged": training.failure is not None or not fell or not math.isfinite(marks[-1].rel_l2),
        "stalled": _stuck(entry),
        "failure": None if training.failure is None else str(training.failure),
        "settings": settings(entry.cfg),
    }


def _stuck(entry: Entry) -> bool:
    """Whether the last step asked for nothing new, and new points will not help."""
    return entry.renewed is None and entry.training.stalled


def measured(training: Training, there: Snapshot, measure: Callable[[], float]) -> float:
    """What the network has there."""
    with training.objective.restored(there):
        return measure()


def settings(cfg: DictConfig) -> dict[str, Any]:
    """What the run was configured with, so that a file tells by which defaults it was made."""
    return {
        key: OmegaConf.to_container(cfg[key], resolve=True)
        for key in ("method", "integrator", "points", "lora", "pretrain")
    }

"""One run: a plain loop of steps on the evaluator and the points of a run of ``train.py``, against the clock.

The clock is the CPU time of the one thread that does the work, so that whatever else the machine does costs a
contender little. It runs, as the clock of ``train.py`` does, while a step chooses its points and is taken, and while
the best point is found where a run ends with that; drawing candidates, which costs every step the same, and measuring
stand outside.

The error at a mark is that of the point that a run would have ended with then, which is the iterate or, where
``training.incumbent`` says so, the best of them: a step that is under way counts when it is done. A run
whose numbers fail, or that asks for nothing new, keeps its last error until the end.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from pinn_odelora import config as commandline
from pinn_odelora import loop as step
from pinn_odelora.config import build, run
from pinn_odelora.errors import InputError
from pinn_odelora.lightning.module import Adaptation
from pinn_odelora.objective import Standing
from pinn_odelora.pretraining.pretrain import pretrained
from pinn_odelora.sampling.batch_size import Growth
from pinn_odelora.sampling.sampler import PointStream
from pinn_odelora.selection.best_iterate import Incumbent
from racing.cases import Case
from racing.contenders import CONFIGS, Contender

MARKS = (0.3, 1, 2, 3, 5, 10, 15, 20, 30, 50, 100, 150, 200, 300)
"""Seconds at which the error is taken, up to the end of the run."""
TEST_POINTS = 4096
SETTLED = 5
"""Steps after which a rise of the held-out loss counts."""


class Entry(NamedTuple):
    """A contender at the start: the pretrained network with what is trained, and the points of its steps."""

    cfg: DictConfig
    module: Adaptation
    stream: PointStream
    renewed: int | None


class Mark(NamedTuple):
    """What a run had reached after so many seconds."""

    seconds: float
    rel_l2: float
    evaluations: int
    steps: int


def configuration(case: Case, contender: Contender, seed: int, cache: Path | None = None) -> DictConfig:
    """As the command line composes it."""
    cache_key = [] if cache is None else [f"pretrain.cache={cache}"]
    by_lbfgs = ["pretrain.finish=lbfgs", "pretrain.adam_steps=500"]
    own = ["logger=csv", "output_dir=unused", "trainer.accelerator=cpu", f"seed={seed}"]
    measured = [f"log.test={TEST_POINTS}", f"log.heldout={TEST_POINTS}"]
    commandline.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [*own, *by_lbfgs, *measured, *cache_key, *case.overrides, *contender.overrides])


def enter(case: Case, contender: Contender, seed: int, cache: Path | None = None) -> Entry:
    """Compose, pretrain (or take from the cache) and put in what is trained."""
    cfg = configuration(case, contender, seed, cache)
    built = build.experiment(cfg)
    if contender.method is not None:
        built = built._replace(method=contender.method())
    pretrained(built.source, built.net, build.pretraining(cfg), cfg.pretrain.checkpoint, cache, lambda line: None)
    module = run.adaptation(cfg, built, lambda row: None)
    module.yardstick.to(torch.device("cpu"), run.DTYPES[cfg.precision])
    return Entry(cfg, module, run.stream(cfg, module.evaluator.system), contender.renewed)


def cosine(rate: float, spent: float, seconds: float) -> float:
    """From ``rate`` at the start to 0 at the end."""
    return rate * (1 + math.cos(math.pi * min(spent / seconds, 1.0))) / 2


class Steps:
    """The steps of an entry, and what they cost.

    Args:
        entry: who runs.
        clock: seconds of work; by default the CPU time of this thread.
    """

    def __init__(self, entry: Entry, clock: Callable[[], float] = time.thread_time) -> None:
        self.entry = entry
        self.clock = clock
        self.evaluator = entry.module.evaluator
        self.optimizer = self._new_optimizer()
        self.seconds = 0.0
        self.process_seconds = 0.0
        self.done = 0
        self.draw = 0
        self.growth = Growth(entry.stream.first)
        self.incumbent = Incumbent()
        self.renewed_at = 0
        self.stalled = False
        self.failure: str | None = None

    @property
    def over(self) -> bool:
        return self.stalled or self.failure is not None

    def look(self) -> Callable[[], Standing]:
        """Where the run would end here, found when asked for."""
        if not step.looks(self.optimizer, self.entry.stream):
            return partial(Standing, *self.evaluator.standing())
        with self._timed():
            step.look(self.incumbent, self.evaluator, self.entry.stream, self.done)
        return partial(self._end, copy.copy(self.incumbent))

    def _end(self, incumbent: Incumbent) -> Standing:
        """As a run does at its end, which its seconds and evaluations do not have."""
        count = self.evaluator.count
        step.close(incumbent, self.evaluator, self.entry.stream)
        self.evaluator.count = count
        return incumbent.standing or self.evaluator.standing()

    def take(self, rate: float | None) -> None:
        """One step, with that learning rate if it takes one."""
        self._renew()
        stream = self.entry.stream
        candidates = stream.draw(self.draw, self.growth.rows)
        if rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        asked = self.evaluator.count
        with self._timed():
            try:
                step.advance(self.evaluator, self.optimizer, stream, candidates, self.entry.module.ranks)
            except (FloatingPointError, InputError) as failure:
                self.failure = str(failure)
                self.evaluator.restore()
                return
        self.done += 1
        step.look_back(self.growth, self.evaluator, self.optimizer, stream)
        if self.entry.renewed is None:
            self.draw += 1
            self.stalled = self.evaluator.count == asked
        elif self.evaluator.count == asked:
            self.renewed_at = -math.inf

    def _renew(self) -> None:
        if self.entry.renewed is not None and self.evaluator.count - self.renewed_at >= self.entry.renewed:
            self.optimizer = self._new_optimizer()
            self.renewed_at = self.evaluator.count
            self.draw += 1

    def _new_optimizer(self) -> Optimizer:
        return self.entry.module.method.optimizer(self.entry.module.groups)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start, everywhere = self.clock(), time.process_time()
        try:
            yield
        finally:
            self.seconds += self.clock() - start
            self.process_seconds += time.process_time() - everywhere


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


def race(
    entry: Entry, seconds: float, rate: float | None = None, clock: Callable[[], float] = time.thread_time
) -> dict[str, Any]:
    """Steps for so many seconds; what was reached at every mark, and how steadily.

    Args:
        entry: who runs; its network is changed.
        seconds: its time. A step that starts within it and ends after it does not count.
        rate: the learning rate at the start, for a contender that takes one.
        clock: see ``Steps``.
    """
    steps, heldout, yardstick = Steps(entry, clock), Heldout(), entry.module.yardstick
    error = lambda: yardstick.errors()["error/rel_l2"]
    marks = [Mark(0.0, error(), 0, 0)]
    left = [t for t in MARKS if t < seconds] + [seconds]
    shown, iterates = steps.look(), Heldout()
    while left and not steps.over:
        if steps.done % entry.cfg.log.every == 0:
            iterates.look(steps.done, yardstick.loss())
            heldout.look(steps.done, measured(steps, shown(), yardstick.loss))
        before, evaluations, done = shown, steps.evaluator.count, steps.done
        steps.take(None if rate is None else cosine(rate, steps.seconds, seconds))
        shown = steps.look()
        while left and steps.seconds > left[0] and not steps.over:
            marks.append(Mark(left.pop(0), measured(steps, before(), error), evaluations, done))
    steps.evaluator.stand(shown())
    heldout.look(steps.done, yardstick.loss())
    marks += [Mark(t, error(), steps.evaluator.count, steps.done) for t in left]
    fell = math.isfinite(heldout.last) and heldout.last <= heldout.first
    return {
        "marks": [mark._asdict() for mark in marks],
        "spent": steps.seconds,
        "cores": steps.process_seconds / steps.seconds if steps.seconds else math.nan,
        "trained": sum(p.numel() for p in steps.evaluator.parameters),
        "heldout_first": heldout.first,
        "heldout_last": heldout.last,
        "largest_rise": heldout.largest_rise,
        "largest_rise_of_iterates": iterates.largest_rise,
        "diverged": steps.failure is not None or not fell or not math.isfinite(marks[-1].rel_l2),
        "stalled": steps.stalled,
        "failure": steps.failure,
        "settings": settings(entry.cfg),
    }


def measured(steps: Steps, there: Standing, measure: Callable[[], float]) -> float:
    """What the network has there."""
    with steps.evaluator.standing_at(there):
        return measure()


def settings(cfg: DictConfig) -> dict[str, Any]:
    """What the run was configured with, so that a file tells by which defaults it was made."""
    return {
        key: OmegaConf.to_container(cfg[key], resolve=True)
        for key in ("method", "integrator", "points", "lora", "pretrain")
    }

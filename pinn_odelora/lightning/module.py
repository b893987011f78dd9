"""One method adapting one network, as a LightningModule under manual optimisation.

Lightning's batch is a block of several steps, so that its own cost vanishes beside ours; the step axis is ours. The
row of step n describes the point y_n that step n starts from, and the step that leaves it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from pinn_odelora import diagnostics as measure
from pinn_odelora import loop as step
from pinn_odelora.budget import Budget, Progress
from pinn_odelora.confidence import Interval, coefficient_intervals
from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.metrics import max_error, relative_l2
from pinn_odelora.objective import Draw, Evaluation, Evaluator
from pinn_odelora.optim.methods import Method
from pinn_odelora.points import Points
from pinn_odelora.sampling.batch_size import Growth
from pinn_odelora.selection.best_iterate import Incumbent
from pinn_odelora.selection.rank import Adaptive, Ranks
from pinn_odelora.system import System

Row = dict[str, float]


class Yardstick:
    """What a solution is held against: reference values at test points, and a held-out set of points for the loss."""

    def __init__(self, system: System, test: Points, heldout: Mapping[str, Points]) -> None:
        self.system = system
        self.test = test
        self.heldout = dict(heldout)
        self.reference = system.problem.known_reference(test)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.test = self.test.to(device, dtype)
        self.reference = None if self.reference is None else self.reference.to(device, dtype)
        self.heldout = {name: p.to(device, dtype) for name, p in self.heldout.items()}

    @torch.no_grad()
    def errors(self) -> Row:
        """Relative L2 and largest error of the solution at the test points."""
        prediction = self.system.solution(self.test)
        return {
            "error/rel_l2": relative_l2(prediction, self.reference),
            "error/max": max_error(prediction, self.reference),
        }

    def loss(self) -> float:
        """The loss on the held-out points, without the graph that derivatives by reverse mode need of the weights."""
        # Whether jets may be used is told by gradients of weights, which is asked while there are any.
        for name, p in self.heldout.items():
            self.system.engine(name, p)
        trained = [p for p in self.system.solution.parameters() if p.requires_grad]
        for p in trained:
            p.requires_grad_(False)
        try:
            with torch.no_grad():
                return float(self.system.loss(self.heldout).total)
        finally:
            for p in trained:
                p.requires_grad_(True)


class Adaptation(L.LightningModule):
    """A run of one method within a budget.

    Args:
        system: the residual system; its solution is trained.
        layers: the layers that are adapted, by name; ``LowRankLinear`` when the method trains factors.
        method: what is trained and how.
        budget: when to stop.
        yardstick: what the solution is held against.
        record: receives a row of measurements at every ``every``-th step and at the end.
        every: steps between two rows.
        compile: whether loss and gradient are compiled.
        adaptive: how the ranks of the layers follow the gradient; None where they stay.
    """

    def __init__(
        self,
        system: System,
        layers: Mapping[str, nn.Linear | LowRankLinear],
        method: Method,
        budget: Budget,
        yardstick: Yardstick,
        record: Callable[[Row], None],
        every: int = 10,
        compile: bool = False,
        adaptive: Adaptive | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.solution = system.solution
        self.layers = dict(layers)
        self.method = method
        self.budget = budget
        self.yardstick = yardstick
        self.record = record
        self.every = every
        self.progress = Progress()
        self.growth = Growth()
        self.incumbent = Incumbent()
        self.ranks = None if adaptive is None else Ranks(adaptive, self.layers)
        self.groups = method.groups(self.solution)
        self.evaluator = Evaluator(system, [p for group in self.groups for p in group["params"]], self.layers, compile)
        self.pretrained = measure.weights(self.layers)
        self.failure: NonFiniteError | None = None
        self.interrupted = False
        self.stalled = False
        self.linear_algebra: str | None = None
        self.intervals: dict[str, Interval] = {}

    def configure_optimizers(self) -> Optimizer:
        return self.method.optimizer(self.groups)

    def on_fit_start(self) -> None:
        self.yardstick.to(self.device, next(self.solution.parameters()).dtype)
        self.pretrained = {name: W.to(self.device) for name, W in self.pretrained.items()}
        self.growth.rows = self.growth.rows or self.trainer.datamodule.first

    def training_step(self, block: list[int], _: int) -> None:
        for number in block:
            if self.over:
                self.trainer.should_stop = True
                return
            self._step(number)

    @property
    def over(self) -> bool:
        """Whether the budget is spent, the numbers failed, nothing moves any more, or somebody asked to stop."""
        ended = self.failure is not None or self.interrupted or self.stalled
        return ended or self.budget.used(self.progress) >= 1

    def _step(self, number: int) -> None:
        observed = self.progress.step % self.every == 0
        self._look()
        row = self._state() if observed else {}
        before = measure.weights(self.layers) if observed else {}
        try:
            self._advance(self.trainer.datamodule.draw(number, self.growth.rows).to(self.device))
        except (FloatingPointError, InputError) as failure:
            # What a step refuses, as a flow that is singular where it stands, is a run that has gone astray.
            self.failure = failure if isinstance(failure, NonFiniteError) else NonFiniteError(str(failure))
            self.evaluator.restore()
            return
        if observed:
            self.record(row | self._left(self.evaluator.first, before))
        self.progress.step += 1

    def _look(self) -> bool:
        """Whether the run ends with the best point that it has seen; then this one may be it."""
        stream = self.trainer.datamodule
        if looks := step.looks(self.optimizers(use_pl_optimizer=False), stream):
            with self._counted():
                step.look(self.incumbent, self.evaluator, stream, self.progress.step)
        return looks

    def _advance(self, candidates: Draw) -> None:
        """One step of the optimiser."""
        optimizer, stream = self.optimizers(use_pl_optimizer=False), self.trainer.datamodule
        asked = self.evaluator.count
        try:
            with self._counted():
                step.advance(self.evaluator, optimizer, stream, candidates, self.ranks)
        finally:
            # A step that asks for nothing new has not moved; without this, no budget but time would end the run.
            self.stalled = self.evaluator.count == asked
        loss = float(self.evaluator.first.total)
        self.progress.rises += loss > self.progress.loss
        self.progress.loss = loss
        step.look_back(self.growth, self.evaluator, optimizer, stream)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """What runs inside is timed, and its evaluations are counted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.progress.seconds += time.perf_counter() - start
            self.progress.gradient_evals = self.evaluator.count

    def _state(self) -> Row:
        """What can be said of the point that the run would end with."""
        iterate = self.yardstick.loss()
        with self.evaluator.standing_at(self.incumbent.standing or self.evaluator.standing()):
            return self._shown() | {"stability/iterate_loss": iterate}

    def _shown(self) -> Row:
        heldout = self.yardstick.loss()
        p = self.progress
        rise = heldout / p.heldout_loss - 1 if p.heldout_loss > 0 else 0.0
        p.largest_rise = max(p.largest_rise, rise)
        p.heldout_loss = heldout
        if math.isnan(p.first_heldout_loss):
            p.first_heldout_loss = heldout
        return (
            {
                "step": p.step,
                "cost/gradient_evals": p.gradient_evals,
                "cost/seconds": p.seconds,
                "cost/rows": self.growth.rows,
                "stability/heldout_loss": heldout,
                "stability/rose": float(rise > 0),
                "stability/largest_rise": p.largest_rise,
            }
            | self.yardstick.errors()
            | measure.low_rank(self.layers, self.pretrained)
            | ({} if self.ranks is None else self.ranks.row())
            | {f"coefficient/{name}": x.item() for name, x in self.solution.coefficients.items()}
        )

    def _left(self, first: Evaluation, before: Mapping[str, Tensor]) -> Row:
        """What can be said of the loss at the point, and of the step that left it."""
        after = measure.weights(self.layers)
        return {
            "loss": float(first.total),
            **{f"loss/{name}": float(value) for name, value in first.terms.items()},
            "gradient/norm": measure.norm_of(first.gradients),
            "update/norm": measure.norm_of([after[name] - before[name] for name in before]),
            "flow/alignment": measure.alignment(before, after, first.weights),
            "integrator/h": self._step_size(),
            "integrator/bits": self._said("bits"),
            "integrator/fallback": self._said("fallback"),
            "lora/discarded": self._said("discarded"),
        }

    def _step_size(self) -> float:
        """h of the step just taken; for a rival its learning rate."""
        group = self.optimizers(use_pl_optimizer=False).param_groups[0]
        h = group.get("memory", {}).get("last_h", group["lr"])
        return math.nan if h is None else float(h)

    def _said(self, name: str) -> float:
        """What the optimiser says of its last step; NaN from one that says nothing."""
        found = self.optimizers(use_pl_optimizer=False).param_groups[0].get("memory", {}).get(name)
        return math.nan if found is None else float(found)

    def on_train_end(self) -> None:
        """The last row: where the run ended, with the loss on as many points as there may be."""
        if self.interrupted:
            return
        if self.ranks is not None and self.ranks.settle():
            self.optimizers(use_pl_optimizer=False).rank_changed()
        stream = self.trainer.datamodule
        if self._look():
            with self._counted():
                step.close(self.incumbent, self.evaluator, stream)
        self.evaluator.stand(self.incumbent.standing or self.evaluator.standing())
        here = stream.draw(self.progress.step, stream.most).to(self.device)
        look = self.evaluator.look
        points = stream.chosen(here, look).points
        loss = self.evaluator.system.loss_of(look(points))
        terms = {f"loss/{name}": float(x) for name, x in loss.terms.items()}
        self.record(self._state() | {"cost/rows": stream.most, "loss": float(loss.total)} | terms)
        if self.solution.coefficients and self.failure is None:
            self.intervals = coefficient_intervals(self.evaluator.sweep, self.groups, points)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        last = self.evaluator.last
        checkpoint["progress"] = self.progress.as_dict()
        checkpoint["growth"] = asdict(self.growth)
        checkpoint["incumbent"] = asdict(self.incumbent)
        checkpoint["ranks"] = None if self.ranks is None else self.ranks.state()
        checkpoint["evaluation"] = None if last is None else dict(last._asdict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning loads to the CPU, and moves the parameters and what torch keeps by parameter, but not these.
        here = self.trainer.strategy.root_device
        incumbent, evaluation = (move_data_to_device(checkpoint[name], here) for name in ("incumbent", "evaluation"))
        for state in checkpoint["optimizer_states"]:
            state["param_groups"] = move_data_to_device(state["param_groups"], here)
        self.progress = Progress(**checkpoint["progress"])
        self.growth = Growth(**checkpoint["growth"])
        self.incumbent = Incumbent.loaded(incumbent)
        if self.ranks is not None:
            self.ranks.load(checkpoint["ranks"])
        self.evaluator.count = self.progress.gradient_evals
        if evaluation is not None:
            self.evaluator.last = Evaluation(**evaluation)
        self.trainer.datamodule.first_step = self.progress.step

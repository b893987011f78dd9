"""An adaptation as a LightningModule: any Trainer can fit it, with its own callbacks and loggers.

    module = ODELoRAModule(steps(net, problem, budget=Budget(steps=200)))
    Trainer(max_epochs=-1, logger=CSVLogger("logs")).fit(module)
    result = module.adaptation.result()

The module asks the one loop for the next record, and brings its own points. Lightning's batch is a block of several
steps, so that its own cost vanishes beside theirs; the step axis is that of the records. There are batches without end:
callbacks that act at the end of an epoch, as ``EarlyStopping`` does, need ``Trainer(limit_train_batches=…)``.

With ``Trainer(strategy="ddp", devices=2)`` each process evaluates its part of the points, see
``pinn_odelora.distributed``. DDP's own exchange of gradients is not used, since steps ask for more than those.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
from lightning.fabric.utilities import move_data_to_device
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from pinn_odelora.adaptation import Adaptation
from pinn_odelora.distributed import ALONE, processes
from pinn_odelora.lightning import states
from pinn_odelora.loop import Row, StepRecord
from pinn_odelora.runs import saved_state

BLOCK = 50
"""Steps handed to Lightning at once."""


class ODELoRAModule(L.LightningModule):
    """Fit an adaptation by a Trainer.

    Metrics of every logged step go to the Trainer's loggers with the step of the record, and ``loss``, ``error/rel_l2``
    (where there is a reference) and ``stability/heldout_loss`` of the last one to its callbacks after every block.

    Args:
        adaptation: what ``steps`` returns.
        block: steps that Lightning sees as one batch, at most.
        every: a batch also ends at each step that is a multiple of this, so that callbacks can act there.

    Attributes:
        interrupted: set it to end the run after the step at hand, to be continued.
        listeners: called with each row of the history as it is made.
    """

    def __init__(self, adaptation: Adaptation, block: int = BLOCK, every: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.adaptation = adaptation
        self.solution = adaptation.solution
        self.block = block
        self.every = every
        self.interrupted = False
        self.listeners: list[Callable[[Row], None]] = []
        self._records: Iterator[StepRecord] | None = None

    def configure_model(self) -> None:
        # Factors are put in now: other processes must find the same parameters.
        _ = self.adaptation.training

    def configure_optimizers(self) -> Optimizer:
        return self.adaptation.training.optimizer

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Blocks(self.block), batch_size=None)

    def on_fit_start(self) -> None:
        self.adaptation.diagnostics.to(self.device, next(self.adaptation.net.parameters()).dtype)
        self.adaptation.share(processes())
        self._records = iter(self.adaptation)

    def training_step(self, block: int, _: int) -> None:
        rows = []
        for _ in range(self._until_pause(block)):
            # All processes stop after the same step.
            self.interrupted = self.adaptation.system.processes.any(self.interrupted)
            record = None if self.interrupted else next(self._records, None)
            if record is None:
                self.interrupted = self.interrupted or self.adaptation.training.paused
                self.trainer.should_stop = True
                break
            # Lightning counts the steps of optimisers that it has wrapped; callbacks and its limits go by the count.
            self._counted.increment_ready()
            self._counted.increment_completed()
            if record.measured:
                rows.append(record.measured)
                self._tell(record.measured)
        if rows:
            shown = ("loss", "error/rel_l2", "stability/heldout_loss")
            self.log_dict(
                {name: rows[-1][name] for name in shown if name in rows[-1]}, prog_bar=True, logger=False, batch_size=1
            )

    def _until_pause(self, block: int) -> int:
        if self.every is None:
            return block
        return min(block, self.every - self.adaptation.training.progress.step % self.every)

    @property
    def _counted(self) -> Any:
        return self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress

    def _tell(self, row: Row) -> None:
        for listener in self.listeners:
            listener(row)
        for logger in self.loggers:
            logger.log_metrics(row, step=int(row["step"]))

    def on_train_end(self) -> None:
        """The last row: the iterate that the run returns."""
        if not self.interrupted:
            self.adaptation.conclude()
            self._tell(self.adaptation.history[-1])
        self.adaptation.share(ALONE)

    def on_exception(self, exception: BaseException) -> None:
        self.adaptation.share(ALONE)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["adaptation"] = self.adaptation.training.state_dict()
        saved_state.seal(checkpoint, self.adaptation)  # Lightning has put in all of its own

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states.check(checkpoint, self.adaptation, self, "The checkpoint")
        # Lightning loads to the CPU, and moves the parameters and the optimiser's state, but not this.
        here = self.trainer.strategy.root_device
        self.adaptation.training.load_state_dict(move_data_to_device(checkpoint["adaptation"], here))


class _Blocks(IterableDataset):
    """Numbers of steps without end."""

    def __init__(self, block: int) -> None:
        self.block = block

    def __iter__(self) -> Iterator[int]:
        return itertools.repeat(self.block)

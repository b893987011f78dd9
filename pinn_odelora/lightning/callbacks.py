"""What accompanies training: the state to resume from, a progress line, and stopping on a signal."""

from __future__ import annotations

import atexit
import io
import math
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from pinn_odelora import manifest
from pinn_odelora.adaptation import Adaptation
from pinn_odelora.files import fill, flush
from pinn_odelora.lightning.module import ODELoRAModule
from pinn_odelora.loop import Row
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.runs.folder import HISTORY
from pinn_odelora.runs.location import check_there
from pinn_odelora.wall import elapsed


class Saver(L.Callback):
    """Save the state to resume from at each step that is a multiple of ``every``, and at the end; a process that is
    killed leaves a whole one.

    Args:
        path: the state file.
        every: steps between two states; the module's batches must end at its multiples.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self.saved = 0

    def on_train_start(self, trainer: L.Trainer, module: ODELoRAModule) -> None:
        self.saved = module.adaptation.training.progress.step
        if module.adaptation.budget.wall is not None:  # how long a saving takes must be known before the first step
            self.save(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: ODELoRAModule, *_: object) -> None:
        if module.adaptation.training.progress.step // self.every > self.saved // self.every:
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: ODELoRAModule) -> None:
        self.save(trainer, module)

    def save(self, trainer: L.Trainer, module: ODELoRAModule) -> None:
        training = module.adaptation.training
        with training.room.saving():
            if trainer.is_global_zero:
                check_there(self.path.parent)
                # Else a power failure could leave a state whose rows are not there, and nothing writes them again.
                flush(self.path.parent / HISTORY)
                with manifest.exchanging(self.path.parent / MANIFEST, self.path.name) as temporary:
                    trainer.save_checkpoint(temporary)
            else:  # it takes part, and writes nothing
                trainer.save_checkpoint(self.path)
        self.saved = training.progress.step


class WholeFiles(TorchCheckpointIO):
    """Writes a state where it is told to: Lightning's own way leads through the folder for temporary files, which may
    be full or on another disk. It reads none, as what is in the file is known.

    Args:
        content: of the state to go on from.
    """

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        self.content = content

    def load_checkpoint(self, path: str | Path, *arguments: Any, **settings: Any) -> dict[str, Any]:
        if self.content is None:
            return super().load_checkpoint(path, *arguments, **settings)
        return self.content

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        fill(path, content.getvalue())


class ProgressLine:
    """One line that says where a run stands: kept up to date on a terminal, beside a bar of the budget that is used;
    written again from time to time in a log.

    Args:
        adaptation: has the budget and what is used of it.
        interval: seconds between two lines when the output is not a terminal.
        console: where it is shown, standard error by default.
    """

    def __init__(self, adaptation: Adaptation, interval: float = 5.0, console: Console | None = None) -> None:
        self.adaptation = adaptation
        self.console = console or Console(stderr=True, highlight=False)
        self.interval = 0.2 if self.console.is_interactive else interval
        self.last = -math.inf
        # Drawn by us alone, at every line: a thread of its own would take time from the steps.
        self.bar = Progress(BarColumn(12), TextColumn("{task.description}"), console=self.console, auto_refresh=False)
        self.task = self.bar.add_task("", total=1.0)

    def __call__(self, row: Row) -> None:
        now = time.monotonic()
        if now - self.last < self.interval:
            return
        self.last = now
        if not self.console.is_interactive:
            self.console.print(self.line(row), soft_wrap=True, markup=False)
            return
        self._show()
        used = min(self.adaptation.budget.used(self.adaptation.training.progress), 1.0)
        self.bar.update(self.task, description=escape(self.line(row)), completed=used, refresh=True)

    def line(self, row: Row) -> str:
        """Step and loss of the iterate at hand, error or estimates of the one that would be returned, which is the best
        one where it is not the same; speed, and how long the budget will last, both of now, where the row has waited
        for the end of its batch.
        """
        progress = self.adaptation.training.progress
        seconds, evals, used = progress.seconds, progress.gradient_evals, self.adaptation.budget.used(progress)
        ahead = seconds * max(1 / used - 1, 0) if used > 0 and seconds > 0 else math.inf
        if (wall := self.adaptation.budget.wall) is not None:
            ahead = min(ahead, max(wall - elapsed(), 0))
        left = f"{ahead:.0f} s left" if ahead < math.inf else "…"
        speed = f"{evals / seconds:.0f} evals/s" if seconds > 0 else "…"
        loss = f"loss {row['loss']:.3e}" if "loss" in row else "…"
        found = {name.removeprefix("coefficient/"): x for name, x in row.items() if name.startswith("coefficient/")}
        quality = [f"{name} {x:.6g}" for name, x in found.items()]
        if "error/rel_l2" in row and not found:  # while a coefficient is unknown there is no reference
            quality.append(f"rel. L2 {row['error/rel_l2']:.3e}")
        elif "stability/heldout_loss" in row:
            quality.append(f"held out {row['stability/heldout_loss']:.3e}")
        if quality and self.adaptation.training.returns_best:
            quality[0] = f"best: {quality[0]}"
        return "  ".join([f"step {row['step']:.0f}", loss, *quality, speed, left])

    def close(self) -> None:
        """Leave the last line where it is, and show the cursor again."""
        if self.bar.live.is_started:
            self.bar.stop()

    def _show(self) -> None:
        if not self.bar.live.is_started:
            self.bar.start()
            # Whatever ends the program must not leave a terminal without a cursor.
            atexit.register(self.close)


class StopOnSignal(L.Callback):
    """Let Ctrl-C and SIGTERM end the run after the current step; a second Ctrl-C interrupts at once.

    The handlers are set when training starts, since Lightning sets its own just before, and a run that Lightning ends
    on SIGTERM cannot be told from a finished one.
    """

    def on_train_start(self, trainer: L.Trainer, module: ODELoRAModule) -> None:
        def stop(number: int, _: FrameType | None) -> None:
            if module.interrupted and number == signal.SIGINT:
                raise KeyboardInterrupt
            module.interrupted = True

        self.before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_end(self, trainer: L.Trainer, module: ODELoRAModule) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

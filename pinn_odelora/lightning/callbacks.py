"""What happens beside training: the resume state, the progress line, and a stop that somebody asks for."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import FrameType

import lightning as L

from pinn_odelora.adaptation import Adaptation
from pinn_odelora.files import replacing
from pinn_odelora.lightning.module import ODELoRAModule
from pinn_odelora.loop import Row


class Saver(L.Callback):
    """Save the resume state every so many steps and at the end, so that a kill at any moment loses none of it.

    Args:
        path: the state file; it is replaced in one move, never written in place.
        every: steps between two states.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every
        self.saved = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: ODELoRAModule, *_: object) -> None:
        if module.adaptation.training.progress.step // self.every > self.saved // self.every:
            self.save(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: ODELoRAModule) -> None:
        self.save(trainer, module)

    def save(self, trainer: L.Trainer, module: ODELoRAModule) -> None:
        with replacing(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        self.saved = module.adaptation.training.progress.step


class ProgressLine:
    """One line that says where a run stands: rewritten in place on a terminal, now and then in a log.

    Args:
        adaptation: gives the budget.
        interval: seconds between two lines when the output is not a terminal.
    """

    def __init__(self, adaptation: Adaptation, interval: float = 5.0) -> None:
        self.adaptation = adaptation
        self.interval = interval
        self.terminal = sys.stderr.isatty()
        self.last = -float("inf")

    def __call__(self, row: Row) -> None:
        now = time.monotonic()
        if now - self.last < (0.2 if self.terminal else self.interval):
            return
        self.last = now
        line = self.line(row)
        sys.stderr.write(f"\r{line:<100}" if self.terminal else f"{line}\n")
        sys.stderr.flush()

    def line(self, row: Row) -> str:
        seconds, evals = row["cost/seconds"], row["cost/gradient_evals"]
        used = self.adaptation.budget.used(self.adaptation.training.progress)
        left = f"{seconds * max(1 / used - 1, 0):.0f} s left" if used > 0 and seconds > 0 else "…"
        speed = f"{evals / seconds:.0f} evals/s" if seconds > 0 else "…"
        loss = f"loss {row['loss']:.3e}" if "loss" in row else "…"
        found = {name.removeprefix("coefficient/"): x for name, x in row.items() if name.startswith("coefficient/")}
        # While a coefficient is unknown there is no reference to be near to.
        standing = [f"{name} {x:.6g}" for name, x in found.items()] or [f"rel. L2 {row['error/rel_l2']:.3e}"]
        return "  ".join([f"step {row['step']:.0f}", loss, *standing, speed, left])

    def close(self) -> None:
        if self.terminal:
            print(file=sys.stderr)


class StopOnSignal(L.Callback):
    """Let Ctrl-C and SIGTERM end the run after the step at hand; a second Ctrl-C interrupts at once.

    The handlers are set when training starts, since Lightning sets its own just before, and a run that it ends on
    SIGTERM looks like a finished one.
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

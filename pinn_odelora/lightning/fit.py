"""Fitting the adaptation of a command line: trainer, trackers, saved states, and the way back from an interruption."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from torch import Tensor

from pinn_odelora.adaptation import Adaptation
from pinn_odelora.distributed import end
from pinn_odelora.errors import InputError
from pinn_odelora.lightning import states
from pinn_odelora.lightning.callbacks import ProgressLine, Saver, StopOnSignal, WholeFiles
from pinn_odelora.lightning.module import ODELoRAModule
from pinn_odelora.lightning.states import Saved
from pinn_odelora.lightning.tracking import Tracker
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.result import Result
from pinn_odelora.runs.folder import HISTORY, STATE
from pinn_odelora.runs.history import History
from pinn_odelora.runs.messages import say

SHOWN = 500
"""Points of the final table."""


def fit(
    adaptation: Adaptation,
    folder: Path,
    loggers: Sequence[Logger],
    settings: Mapping[str, Any],
    every: int,
    saved: Saved | None = None,
) -> ODELoRAModule:
    """Run an adaptation, from the saved state of the folder if there is one.

    Args:
        adaptation: what to run.
        folder: of the run.
        loggers: trackers.
        settings: of Lightning's Trainer.
        every: steps between two saved states.
        saved: what the folder held before it was this run's alone.
    """
    state, saved = folder / STATE, states.saved_in(folder, saved)
    module = ODELoRAModule(adaptation, every=every)
    line = ProgressLine(adaptation)
    trained = trainer(settings, loggers, [Saver(state, every), StopOnSignal()])
    if trained.is_global_zero:
        history = History(folder / HISTORY, up_to_step=(0 if saved is None else saved.steps) - 1)
        adaptation.history[:] = history.rows
        module.listeners += [history.append, line]
        if (plan := adaptation.plan()) is not None and plan.unusual:
            say(str(plan))
    trained.strategy.checkpoint_io = WholeFiles(None if saved is None else saved.content)
    try:
        with warnings.catch_warnings(), _from_state(state, saved, adaptation, module):
            warnings.filterwarnings("ignore", module="lightning|torch")
            trained.fit(module, ckpt_path=None if saved is None else state, weights_only=True)
    except SystemExit as left:
        if isinstance(left.__context__, KeyboardInterrupt):  # which Lightning has made an exit of
            raise KeyboardInterrupt from None
        raise
    finally:
        line.close()
    end()
    return module


@contextmanager
def _from_state(state: Path, saved: Saved | None, adaptation: Adaptation, module: ODELoRAModule) -> Iterator[None]:
    """Refuse a state that is not that of the run, or from which not even a first step can be taken."""
    if saved is None:
        yield
        return
    begun = saved.steps
    states.check(saved.content, adaptation, module, state)
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if adaptation.training.progress.step > begun:
            raise
        raise states.unsuitable(state, error) from error


def accelerator(chosen: str, precision: int) -> str:
    """``auto`` is a CUDA device where there is one, else the CPU: no other accelerator has float64 throughout."""
    if chosen == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if chosen == "mps" and precision == 64:
        raise InputError("trainer.accelerator=mps has no float64; use precision=32 or trainer.accelerator=cpu.")
    return chosen


def trainer(
    settings: Mapping[str, Any], loggers: Sequence[Logger] = (), callbacks: Sequence[L.Callback] = ()
) -> L.Trainer:
    """Lightning without what a run of small steps does not need; ``settings`` override any of it.

    Raises:
        InputError: if Lightning refuses a setting, or has no such accelerator here.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    chosen = {
        "max_epochs": -1,
        "min_epochs": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        **settings,
    }
    try:
        return L.Trainer(logger=list(loggers) or False, callbacks=list(callbacks), **chosen)
    except (TypeError, ValueError, MisconfigurationException) as error:
        said = str(error).rstrip(".!")
        raise InputError(f"trainer.* holds a setting that Lightning's Trainer refuses: {said}.") from None


def publish(loggers: Sequence[Tracker], result: Result, summary: Mapping[str, Any], folder: Path) -> None:
    """Summary, pictures and the final table to every tracker; then end it and say where the run can be seen."""
    images = {name: folder / f"{name}.png" for name in ("solution", "history")}
    for logger in loggers:
        logger.publish(summary, images, *final_points(result))
        say(logger.end(failed=bool(result.failure)))


@torch.no_grad()
def final_points(result: Result) -> tuple[list[str], list[list[float]]]:
    """Columns and rows: coordinates, fields, and with a reference its values and the errors, at the first test points.

    Unit matrices are told by the place of their entry: they have as many coordinates as there are points.
    """
    run = result.adaptation
    reference, problem = run.diagnostics.reference, run.problem
    u: Tensor = run.solution(reference.test)
    places = ("k", "l") if isinstance(problem.region, UnitMatrices) else problem.coords
    names, columns = [*places, *problem.fields], [reference.test.rows(places), u]
    if (ref := reference.values) is None:
        return names, torch.cat(columns, dim=1)[:SHOWN].tolist()
    names += [f"{field}_{kind}" for kind in ("ref", "error") for field in problem.fields]
    return names, torch.cat([*columns, ref, u - ref], dim=1)[:SHOWN].tolist()

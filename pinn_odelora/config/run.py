"""The stations of a run up to its end: threads, pretrained network, tracking, fit. ``conclude`` has what follows."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from pinn_odelora import diagnostics as measure
from pinn_odelora.budget import Budget
from pinn_odelora.checkpoints import load_network, save_network
from pinn_odelora.config import build
from pinn_odelora.errors import InputError
from pinn_odelora.files import write_json
from pinn_odelora.lightning import tracking
from pinn_odelora.lightning.callbacks import ProgressLine, Saver, StopOnSignal
from pinn_odelora.lightning.module import Adaptation, Row, Yardstick
from pinn_odelora.linalg.plan import Plan
from pinn_odelora.optim import ImplicitODELoRA
from pinn_odelora.pretraining import pretrain
from pinn_odelora.runs import conclude
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.runs.folder import BASE, HISTORY, START, STATE
from pinn_odelora.runs.history import History
from pinn_odelora.sampling.sampler import PointStream
from pinn_odelora.selection.initial_rank import components
from pinn_odelora.system import Solution, System, draw_points

DTYPES = {32: torch.float32, 64: torch.float64}


def set_up_process(cfg: DictConfig) -> None:
    """One thread unless told otherwise, since a second one makes steps of small networks slower; freed memory kept."""
    torch.set_num_threads(1 if cfg.threads == "auto" else cfg.threads)
    keep_freed_memory()


def check(cfg: DictConfig, folder: Path) -> None:
    """Refuse what only Lightning can tell, and a damaged run to continue, before anything is trained or written.

    Raises:
        InputError: one sentence.
    """
    _trainer(cfg)
    _steps_done(folder)
    if (folder / START).is_file():
        _facts(folder / START)


def accelerator(cfg: DictConfig) -> str:
    """``auto`` is a CUDA device where there is one, else the CPU: no other accelerator has float64 throughout."""
    chosen = cfg.trainer.accelerator
    if chosen == "auto":
        return "gpu" if torch.cuda.is_available() else "cpu"
    if chosen == "mps" and cfg.precision == 64:
        raise InputError("trainer.accelerator=mps has no float64; use precision=32 or trainer.accelerator=cpu.")
    return chosen


def pretrained_network(cfg: DictConfig, built: build.Experiment, folder: Path) -> dict[str, Any]:
    """Give ``built.net`` its pretrained weights, keep them in the run folder, and return the facts of the start."""
    facts_file, base = folder / START, folder / BASE
    if facts_file.exists():
        load_network(built.net, base)
        return _facts(facts_file)
    device = "cuda" if accelerator(cfg) == "gpu" else "cpu"
    built.net.to(device)
    kept = None if cfg.pretrain.cache is None else Path(cfg.pretrain.cache)
    with _leaving(folder):
        known = pretrain.pretrained(built.source, built.net, build.pretraining(cfg), cfg.pretrain.checkpoint, kept)
    built.net.to("cpu")
    save_network(built.net, base, {"problem": repr(built.source)})
    facts = {
        "pretrain_rel_l2": known.rel_l2,
        "pretrain_loss": known.loss,
        "pretrain_seconds": known.seconds,
        "pretrain_origin": known.origin,
        "rel_l2_before": _error_before(cfg, built),
        "tracking_id": secrets.token_hex(4),
    }
    write_json(facts_file, facts)
    return facts


@contextmanager
def _leaving(folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM before there is a step to end after: one line that says how to continue, and no traceback."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        conclude.leave("before the first step", folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def _facts(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); config.yaml repeats the run in another output_dir.") from None


def _error_before(cfg: DictConfig, built: build.Experiment) -> float:
    solution = Solution(built.problem, built.net, built.unknown)
    return measure.errors(solution.problem, solution, measure.FINER * cfg.log.test)["error/rel_l2"]


def loggers(cfg: DictConfig, folder: Path, facts: dict[str, Any]) -> list[Logger]:
    """The trackers of the run; a resumed run continues its own."""
    choices, rank = cfg.choices, cfg.lora.rank
    group = cfg.logger.group or f"{choices.problem}/{choices.method}/rank{rank}"
    return tracking.make_loggers(
        cfg.logger.kind,
        folder,
        project=cfg.logger.project,
        group=group,
        job_type=cfg.logger.job_type,
        name=cfg.logger.name or f"{group}/seed{cfg.seed}",
        tags=list(cfg.logger.tags),
        config=OmegaConf.to_container(cfg, resolve=True),
        run_id=facts["tracking_id"],
    )


def fit(cfg: DictConfig, built: build.Experiment, loggers: list[Logger], folder: Path) -> Adaptation:
    """Adapt ``built.net`` until the budget is spent, from the resume state if the folder has one."""
    state = folder / STATE
    done = _steps_done(folder)
    history = History(folder / HISTORY, up_to_step=done - 1)
    module: Adaptation

    def record(row: Row) -> None:
        history.append(row)
        for logger in loggers:
            logger.log_metrics(row, step=int(row["step"]))
        line(row)

    module = adaptation(cfg, built, record)
    line = ProgressLine(module)
    trainer = _trainer(cfg, loggers, [Saver(state, cfg.checkpoint.every), StopOnSignal()])
    points = stream(cfg, module.evaluator.system)
    if (plan := linear_algebra(module, points)) is not None:
        module.linear_algebra = str(plan)
        if plan.unusual:
            conclude.say(str(plan))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|torch")
        trainer.fit(module, points, ckpt_path=state if state.exists() else None, weights_only=True)
    line.close()
    module.yardstick.to(torch.device("cpu"), DTYPES[cfg.precision])
    return module.cpu()


def adaptation(cfg: DictConfig, built: build.Experiment, record: Callable[[Row], None]) -> Adaptation:
    """The module that adapts ``built.net``, which is changed: factors are put in, or all weights are trained."""
    adapted = build.layers(cfg, built.net, built.method.trains)
    solution = Solution(built.problem, built.net.to(DTYPES[cfg.precision]), built.unknown)
    system = System(solution.problem, solution, built.measurements, cfg.derivatives.engine)
    unseen = {name: term.unseen for name, term in system.terms.items()}
    held = draw_points(unseen, cfg.log.heldout, max(cfg.log.heldout // 5, 1), seed=998)
    yardstick = Yardstick(system, measure.test_points(built.problem, cfg.log.test), held)
    budget = Budget(**OmegaConf.to_container(cfg.budget))
    compile = cfg.derivatives.compile == "on"
    rule = build.adaptive(cfg, built.method.trains)
    return Adaptation(system, adapted, built.method, budget, yardstick, record, cfg.log.every, compile, rule)


def stream(cfg: DictConfig, system: System) -> PointStream:
    """The points of the run."""
    p, dtype = cfg.points, DTYPES[cfg.precision]
    return PointStream(
        system.terms,
        p.interior,
        p.boundary,
        cfg.seed,
        p.fresh,
        dtype,
        residual=p.residual,
        rows=p.rows,
        components=components(system),
        first=p.first,
        validation=p.validation,
    )


def linear_algebra(module: Adaptation, points: PointStream) -> Plan | None:
    """What an implicit method will use for steps of all rows and the largest rank, fewer of which may take another
    form; else None.
    """
    optimizer, system = module.configure_optimizers(), module.evaluator.system
    if not isinstance(optimizer, ImplicitODELoRA):
        return None
    nothing = lambda candidates: {name: torch.zeros(p.number, 1) for name, p in candidates.items()}
    first = points.chosen(points.draw(0), nothing).points
    each = components(system)
    most = None if module.ranks is None else module.ranks.rule.max
    return optimizer.plan(sum(p.number * each[name] for name, p in first.items()), most)


def _steps_done(folder: Path) -> int:
    """Steps behind the resume state of a folder, 0 without one.

    Raises:
        InputError: if the state is damaged.
    """
    state = folder / STATE
    if not os.path.exists(state):
        return 0
    try:
        return int(torch.load(state, weights_only=True, map_location="cpu")["progress"]["step"])
    except Exception as error:  # A damaged pickle can fail in any way.
        raise InputError(
            f"{state}, the state to continue from, is damaged ({type(error).__name__}); config.yaml beside it "
            "repeats the run in another output_dir."
        ) from error


def _trainer(cfg: DictConfig, loggers: Sequence[Logger] = (), callbacks: Sequence[L.Callback] = ()) -> L.Trainer:
    """Lightning without what a run of small steps does not need; ``trainer.*`` overrides any of it.

    Raises:
        InputError: if Lightning refuses a setting, or has no such accelerator here.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    settings = {
        "max_epochs": -1,
        "min_epochs": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        **OmegaConf.to_container(cfg.trainer, resolve=True),
        "accelerator": accelerator(cfg),
    }
    try:
        return L.Trainer(logger=list(loggers) or False, callbacks=list(callbacks), **settings)
    except (TypeError, ValueError, MisconfigurationException) as error:
        said = str(error).rstrip(".!")
        raise InputError(f"trainer.* holds a setting that Lightning's Trainer refuses: {said}.") from None

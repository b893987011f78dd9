"""A run of the command line: pretrained network, fit, and what is left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from pinn_odelora.config.build import Experiment
from pinn_odelora.config.request import Request
from pinn_odelora.errors import RefusedValueError
from pinn_odelora.lightning import fit, states, tracking
from pinn_odelora.lightning.module import ODELoRAModule
from pinn_odelora.result import Result
from pinn_odelora.runs import messages, save, start
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.runs.leader import leaders_folder, leading
from pinn_odelora.runs.unused import note
from pinn_odelora.threads import set_threads


@dataclass
class Run:
    """What a configuration asks for, in a folder.

    Args:
        cfg: the configuration, checked.
        folder: where the run leaves its files.
        experiment: the objects that the configuration names.

    Raises:
        InputError: for whatever would end the run after pretraining: a logger that is not installed, a setting that
            Lightning refuses, a damaged run to continue, a checkpoint that does not fit, a cache that cannot be
            written.
    """

    cfg: DictConfig
    folder: Path
    experiment: Experiment
    loggers: Sequence[Logger] = field(default=(), init=False)

    def __post_init__(self) -> None:
        pretrain = self.cfg.pretrain
        self.kept = None if pretrain.cache is None else Path(pretrain.cache)
        self.trainer = {
            **OmegaConf.to_container(self.cfg.trainer, resolve=True),
            "accelerator": fit.accelerator(self.cfg.trainer.get("accelerator", "auto"), self.cfg.precision),
        }
        budget = self.experiment.adaptation.budget
        if not self.cfg.family and budget.wall is not None and not budget.ends:
            raise RefusedValueError("budget.wall", budget.wall, "given with another limit, at which a run is finished")
        tracking.check_installed(self.cfg.logger.kind)
        fit.trainer(self.trainer)
        self.saved = states.saved_in(self.folder)
        built = self.experiment
        start.check_start(
            self.folder,
            built.source,
            built.adaptation,
            built.pretraining,
            built.weights,
            self.kept,
        )
        # One thread unless told otherwise, since a second one makes steps of small networks slower.
        set_threads(1 if self.cfg.threads == "auto" else self.cfg.threads)
        keep_freed_memory()
        if said := note(built.adaptation.method, Request.current().given):
            messages.say(said)

    def pretrain(self) -> dict[str, Any]:
        """Give the network its pretrained weights; returns what is known of them."""
        built = self.experiment
        device = "cuda" if self.trainer["accelerator"] == "gpu" else "cpu"
        facts = start.start(
            self.folder, built.source, built.adaptation, built.pretraining, built.weights, self.kept, device
        )
        self.experiment = built._replace(weights=None)  # a file may be large, and the network has them now
        return facts

    def fit(self, facts: dict[str, Any]) -> ODELoRAModule:
        """Adapt the network until the budget is spent, from the resume state if the folder has one.

        Raises:
            SystemExit: in a process that does not lead the run: its part is done.
        """
        leads = leaders_folder() is None
        self.loggers = self._trackers(facts["tracking_id"]) if leads else []
        every = self.cfg.checkpoint.every
        messages.say(self.experiment.adaptation.chosen)
        with leading(self.folder, torch.get_num_threads()):
            module = fit.fit(self.experiment.adaptation, self.folder, self.loggers, self.trainer, every, self.saved)
        self.saved = None  # it may be large, and the run is beyond it
        if not leads:
            raise SystemExit(0)
        return module

    def _trackers(self, run_id: str) -> list[Logger]:
        """The trackers of the run; a continued run goes on with its own."""
        cfg, choices = self.cfg, self.cfg.choices
        rank = self.experiment.adaptation.rank if cfg.lora.rank == "auto" else cfg.lora.rank
        group = cfg.logger.group or f"{choices.problem}/{choices.method}/rank{rank}"
        return tracking.make_loggers(
            cfg.logger.kind,
            self.folder,
            project=cfg.logger.project,
            group=group,
            job_type=cfg.logger.job_type,
            name=cfg.logger.name or f"{group}/seed{cfg.seed}",
            tags=list(cfg.logger.tags),
            config=OmegaConf.to_container(cfg, resolve=True),
            run_id=run_id,
            start=0 if self.saved is None else self.saved.steps,
        )

    def leave(self, module: ODELoRAModule) -> None:
        """End an interrupted run, whose state is saved, and say how to continue."""
        for logger in self.loggers:
            messages.say(logger.end())
        training = module.adaptation.training
        messages.leave(f"at step {training.progress.step}", self.folder, training.paused)

    def conclude(self, result: Result, facts: dict[str, Any]) -> None:
        """Leave everything in the folder and with the trackers, and say what came of it.

        Raises:
            NonFiniteError: where the numbers failed.
        """
        names = {name: self.cfg.choices[name] for name in ("problem", "method", "integrator")}
        summary = save.save_outcome(result, self.folder, facts, names)
        fit.publish(self.loggers, result, summary, self.folder)
        outcome = f"{names['problem']}, {names['method']}: {result.outcome()}"
        messages.last_line(outcome, result.failure, self.folder)

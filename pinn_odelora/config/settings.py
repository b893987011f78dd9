"""Where the settings of a run stand: the class of each part of the configuration, and rules of keys that have none."""

from __future__ import annotations

from collections.abc import Mapping

from pinn_odelora.rules import Rule, file, list_of, null, number, one_of, path, seed, text, whole

CLASSES: Mapping[str, str] = {
    "budget": "pinn_odelora.budget.Budget",
    "log": "pinn_odelora.log.Log",
    "points": "pinn_odelora.sampling.settings.Sampling",
    "weighting": "pinn_odelora.weighting.settings.Weighting",
    "lora": "pinn_odelora.lowrank.settings.LoRA",
    "lora.adaptive": "pinn_odelora.selection.rank.AdaptiveRank",
    "pretrain": "pinn_odelora.pretraining.pretrain.Pretraining",
    "stations": "pinn_odelora.families.settings.Stations",
    "training": "pinn_odelora.ntk.settings.Regime",
}
"""The classes whose arguments are the keys of a part."""
PARTS = ("", "data", "derivatives", "checkpoint", "logger", *CLASSES)
"""The parts in the order of their checks: what needs torch comes last, so that most refusals answer at once."""
RULES: Mapping[str, Rule] = {
    "seed": seed,
    "precision": one_of(32, 64),
    "threads": one_of("auto") | whole(1, 1024),
    "output_dir": path | null,
    "resume": path | null,
    "trust": text | list_of(text, "modules") | null,
    "data.file": file | null,
    "data.weight": number(above=0),
    "derivatives.engine": text,
    "checkpoint.every": whole(1),
    "logger.kind": one_of("wandb", "tensorboard", "mlflow", "csv"),
    "logger.project": text,
    "logger.group": text | null,
    "logger.name": text | null,
    "logger.job_type": text,
    "logger.tags": list_of(text, "tags"),
    "pretrain.checkpoint": file | null,
    "pretrain.part": text | null,
    "pretrain.cache": path | null,
}
"""Rules of what belongs to a run as a program, and to no object of the library."""
OPEN = ("problem", "net", "method", "integrator", "pretrain.source", "family", "trainer")
"""Parts that take any key: the arguments of what they name, and the parameters of a family."""

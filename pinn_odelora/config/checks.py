"""Everything that can be refused before a run starts, so that a sweep does not end at its last job.

Keys that do not exist; values, each by the rule of the object that holds it; files that are not there; and settings
that the chosen method would not look at.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pinn_odelora.config import components
from pinn_odelora.config.components import UNKNOWN, signature
from pinn_odelora.config.folders import chosen_folder, has_pretrained
from pinn_odelora.config.request import Request
from pinn_odelora.config.sentences import unknown_key
from pinn_odelora.config.settings import CLASSES, OPEN, RULES
from pinn_odelora.errors import InputError, within
from pinn_odelora.rules import one_of
from pinn_odelora.runs.location import check_free

DECIDED: Mapping[str, str] = {
    "logger": "set logger=wandb or logger=csv",
    "callbacks": "it brings its own",
    "precision": "set precision=32 or precision=64",
    "max_epochs": "set budget.steps",
    "max_steps": "set budget.steps",
    "max_time": "set budget.seconds",
    "limit_train_batches": "set budget.steps",
    "overfit_batches": "set points=fixed",
    "accumulate_grad_batches": "set points.interior",
    "gradient_clip_val": "a method has its own rule for steps",
    "gradient_clip_algorithm": "a method has its own rule for steps",
    "num_nodes": "it stays on one device",
}
"""Settings of Lightning's Trainer that would do nothing in a run, or spoil it, and what to do instead."""


def check(cfg: DictConfig, request: Request) -> None:
    """Refuse a configuration that cannot be run.

    Values are put into ``cfg`` as they were read: 1e4 evaluations as an integer, paths as absolute ones.

    Raises:
        InputError: one sentence on the first thing that is wrong.
    """
    config = resolved(cfg)
    for key in (*OPEN, "problem.weights"):
        mapping(key, OmegaConf.select(cfg, key, default={}), ["<name>"])
    parts = dict.fromkeys([*(k.rpartition(".")[0] for k in RULES if not k.startswith("pretrain.")), *CLASSES])
    for part in parts:
        keys = {f"{part}.{name}".strip("."): value for name, value in section(config, part).items()}
        if has_pretrained(cfg):
            keys.pop("pretrain.checkpoint", None)
        read = {key: RULES[key].check(key, value) for key, value in keys.items() if key in RULES}
        if part in CLASSES:
            read |= {f"{part}.{name}": value for name, value in vars(settings(config, part)).items()}
        for key in read.keys() - CLASSES.keys():
            OmegaConf.update(cfg, key, [*read[key]] if isinstance(read[key], tuple) else read[key])
    trainer(config["trainer"])
    objects(config, request)
    if cfg.resume is None:
        check_free(chosen_folder(cfg, request))


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain dictionaries with every ``${…}`` replaced."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key} cannot be resolved: {str(error).splitlines()[0]}.") from None


def settings(config: Mapping[str, Any], key: str) -> Any:
    """The object of ``CLASSES`` that holds the settings at ``key``, those in it included.

    Raises:
        InputError: if a key is missing or does not exist, or a value is not allowed.
    """
    cls, held = resolve_name(CLASSES[key]), section(config, key)
    values = {
        name: settings(config, f"{key}.{name}") if f"{key}.{name}" in CLASSES else held[name]
        for name in signature(cls).parameters
    }
    with within(key):
        return cls(**values)


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What is at ``key``, the whole configuration without one; only keys that exist, and all of them."""
    prefix = f"{key}." if key else ""
    below = [k.removeprefix(prefix).split(".")[0] for k in (*RULES, *OPEN, *CLASSES) if k.startswith(prefix)]
    names = [*dict.fromkeys([*below, *(signature(resolve_name(CLASSES[key])).parameters if key in CLASSES else ())])]
    held: Any = config
    for name in key.split(".") if key else ():
        held = held.get(name)
    for name in mapping(key, held, names).keys() - {"choices"}:
        if name not in names:
            raise unknown_key(f"{prefix}{name}", {known: held.get(known) for known in names})
    for name in names:
        if name not in held:
            raise InputError(f"{prefix}{name} is missing from the configuration; configs/train.yaml has all keys.")
    return held


def mapping(key: str, value: Any, names: Iterable[str]) -> Mapping[str, Any]:
    """A part of the configuration, which holds keys and has no value of its own."""
    if not isinstance(value, Mapping):
        allowed = ", ".join(f"{key}.{name}" for name in names)
        raise InputError(f"{key} is {value}, but it is not a key with a value: set {allowed}.")
    return value


def trainer(given: Mapping[str, Any]) -> None:
    """What Lightning's Trainer takes and a run leaves to the user; it is imported only for something unusual."""
    if given.keys() - {"accelerator", "devices"}:
        from lightning import Trainer

        takes = inspect.signature(Trainer).parameters.keys()
        for name in given.keys() - takes:
            raise unknown_key(f"trainer.{name}", takes - DECIDED.keys())
    for name in given.keys() & DECIDED.keys():
        raise InputError(f"trainer.{name} is given, but a run decides that itself: {DECIDED[name]}.")
    devices = given.get("devices", 1)
    if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        raise InputError(f"trainer.devices is {devices}, but a run stays on one device: 1, or its index as [0].")


def objects(config: Mapping[str, Any], request: Request) -> None:
    """Problem, network and method, which are built and thrown away; and what the method would not look at."""
    from pinn_odelora.derivatives import ENGINES
    from pinn_odelora.optim import methods

    one_of(*ENGINES).check("derivatives.engine", config["derivatives"]["engine"])
    problem, source, unknown = components.problem(config["problem"], config["pretrain"]["source"])
    if unknown and config["data"]["file"] is None:
        raise InputError(
            f"problem.{unknown[0]} is {UNKNOWN}, but there are no measurements to find it from: give data.file, or its "
            "value."
        )
    components.network(config["net"], problem, source, config["pretrain"]["seed"])
    name = config["method"]["_target_"].rpartition(".")[2]
    if (given := request.gives("integrator")) and not components.takes_integrator(config["method"]):
        functions = inspect.getmembers(methods, inspect.isfunction)
        others = ", ".join(other for other, f in functions if "integrator" in signature(f).parameters)
        raise InputError(f"{given[0]} is given, but method {name} takes no integrator; methods that do: {others}.")
    method = components.method(config["method"], config["integrator"])
    if method.trains == "weights" and (given := [key for key in request.gives("lora") if key != "lora.targets"]):
        raise InputError(
            f"{given[0]} is given, but method {name} trains all weights and has no low-rank factors; lora.targets "
            "alone can be set, for the layers that are measured."
        )
    rank = config["lora"]["rank"]
    if rank != "adaptive" and (given := request.gives("lora.adaptive")):
        raise InputError(f"{given[0]} is given, but lora.rank is {rank}: choose lora.rank=adaptive.")

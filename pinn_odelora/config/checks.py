"""All that can be refused from the configuration and what was typed, without building anything."""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Container, Iterable, Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pinn_odelora.config.folders import CONFIG, START, STATE, chosen_folder, has_pretrained
from pinn_odelora.config.keys import (
    ADAPTIVE,
    COMPONENT_RULES,
    DECIDED,
    KEYS,
    OPEN,
    PROVIDED,
    inside,
    unknown_key,
    unknown_member,
)
from pinn_odelora.config.request import Request
from pinn_odelora.config.signature import Parameter, Signature, signature
from pinn_odelora.errors import InputError
from pinn_odelora.rules import Rule, boolean, null, number, one_of, path, text, whole

UNKNOWN = "unknown"
"""What a coefficient of the equation is that is to be found from measurements."""
RESERVED = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
ANNOTATIONS = {"int": whole(), "float": number(), "bool": boolean, "str": text, "None": null}
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
Leaf = tuple[str, Any]


def check(cfg: DictConfig, request: Request) -> None:
    """Refuse unknown keys, values out of range, files that are not there and choices that do not go together.

    Values are put into ``cfg`` as they were read: 1e4 evaluations as an integer, paths as absolute ones.

    Raises:
        InputError: one sentence on the first thing that is wrong.
    """
    config = resolved(cfg)
    known_keys(config)
    finite(config)
    values = dict(_leaves(config, KEYS))
    for key, known in KEYS.items():
        if key not in values:
            raise InputError(f"{key} is missing from the configuration, but it must be {known.rule.allowed}.")
        needless = key == "pretrain.checkpoint" and has_pretrained(cfg)
        OmegaConf.update(cfg, key, (path | null if needless else known.rule).check(key, values[key]))
    for group, provided in PROVIDED.items():
        for key, value in component(group, config[group], provided):
            OmegaConf.update(cfg, key, value)
    source_parameters(config)
    trainer_settings(config["trainer"])
    budget(config["budget"])
    unknown_coefficients(config)
    points(config["points"])
    rank(config, request)
    combination(config, request)
    if cfg.resume is None:
        free_folder(chosen_folder(cfg, request))


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain dictionaries with every ``${…}`` replaced."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key} cannot be resolved: {str(error).splitlines()[0]}.") from None


def known_keys(config: Any, prefix: str = "") -> None:
    """Only keys that a run has, outside the parts that are open."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in KEYS or key in OPEN or key in PROVIDED or key == "choices":
            continue
        if not inside(key):
            raise unknown_key(key)
        known_keys(_mapping(key, value, inside(key)), f"{key}.")


def _mapping(key: str, value: Any, keys: Iterable[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{key} is {value!r}, but it is not a key with a value: set {', '.join(keys)}.")
    return value


def finite(config: Any) -> None:
    """No number that is NaN or infinite, wherever it stands."""
    for key, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key} is {value}, but it must be a finite number.")


def _leaves(value: Any, units: Container[str] = (), prefix: str = "") -> Iterator[Leaf]:
    """Keys in full with their values, down to single values or to the keys that are ``units``."""
    if prefix in units or not isinstance(value, dict | list):
        yield prefix, value
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, units, f"{prefix}.{name}" if prefix else str(name))


def component(key: str, node: Any, provided: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """The settings of a ``_target_`` as read, each by the rule of its parameter."""
    takes = _signature(key, node)
    parameters = {name: p for name, p in takes.parameters.items() if name not in provided}
    for name, value in node.items():
        full = f"{key}.{name}"
        if name in RESERVED:
            continue
        if name not in parameters and not takes.accepts_any:
            raise unknown_member(key, name, parameters)
        if isinstance(value, dict) and "_target_" in value:
            yield from component(full, value)
        elif full in OPEN:
            yield from ((leaf, number(above=0).check(leaf, x)) for leaf, x in _weights(full, value))
        else:
            rules = [COMPONENT_RULES.get(full), _rule(parameters.get(name, Parameter()))]
            if key == "problem" and _may_be_unknown(parameters.get(name, Parameter())):
                rules = [rule | one_of(UNKNOWN) for rule in rules if rule]
            yield from ((full, rule.check(full, value)) for rule in rules if rule)
    missing = [name for name, p in parameters.items() if p.required and name not in node]
    if missing and "_args_" not in node:
        raise InputError(f"{node['_target_']} needs a value for {', '.join(f'{key}.{name}' for name in missing)}.")


def _weights(key: str, value: Any) -> Iterator[Leaf]:
    return _leaves(_mapping(key, value, [f"{key}.<term>"]), prefix=key)


def _signature(key: str, node: Any) -> Signature:
    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(target, str):
        raise InputError(f"{key} has no _target_, but it must name a class or function.")
    try:
        return signature(target)
    except LookupError as error:
        raise InputError(
            f"{key}._target_ is {target!r}, but it must be the dotted name of a class or function ({error})."
        ) from None


def _rule(parameter: Parameter) -> Rule | None:
    """What annotation and declared bounds tell of a parameter; None if they tell nothing."""
    options = parameter.options
    if choices := options.get("choices"):
        return one_of(*choices)
    if "above" in options:
        above = options["above"]
        return whole(math.floor(above) + 1) if options.get("integer") else number(above)
    kinds = [_kind(kind) for kind in parameter.annotation.split(" | ")]
    return None if None in kinds else reduce(or_, kinds)


def _may_be_unknown(parameter: Parameter) -> bool:
    """Whether it is a number that may vary; ``build`` sees whether it was declared as a parameter of the equation."""
    return parameter.annotation == "float" and not parameter.options.get("integer")


def unknowns(config: Any) -> list[str]:
    """The keys of coefficients that are to be found."""
    return [f"problem.{name}" for name, value in config["problem"].items() if value == UNKNOWN]


def _kind(annotation: str) -> Rule | None:
    if literal := re.fullmatch(r"Literal\[(.*)\]", annotation):
        return one_of(*ast.literal_eval(f"({literal[1]},)"))
    return ANNOTATIONS.get(annotation)


def source_parameters(config: Any) -> None:
    """``pretrain.source`` names parameters of the problem, within their bounds."""
    takes = _signature("problem", config["problem"])
    declared = {name: p for name, p in takes.parameters.items() if name not in ("conditions", "weights")}
    source = _mapping("pretrain.source", config["pretrain"]["source"], ["pretrain.source.<parameter>"])
    for name, value in source.items():
        key = f"pretrain.source.{name}"
        if name not in declared and not takes.accepts_any:
            raise unknown_member("pretrain.source", name, declared)
        if rule := _rule(declared.get(name, Parameter())):
            rule.check(key, value)


def trainer_settings(settings: Any) -> None:
    """Lightning's Trainer takes them all; its source is read only when there is something unusual."""
    if _mapping("trainer", settings, ["trainer.<setting>"]).keys() - {"accelerator", "devices"}:
        takes = signature(TRAINER)
        for name in settings.keys() - takes.parameters.keys():
            raise unknown_member("trainer", name, takes.parameters.keys() - DECIDED.keys())
    for name in settings.keys() & DECIDED.keys():
        raise InputError(f"trainer.{name} is given, but a run decides that itself: {DECIDED[name]}.")
    devices = settings.get("devices", 1)
    if devices not in (1, "1") and not (isinstance(devices, list) and len(devices) == 1):
        raise InputError(f"trainer.devices is {devices!r}, but a run stays on one device: 1, or its index as [0].")


def budget(limits: Any) -> None:
    if all(limit is None for limit in limits.values()):
        raise InputError(f"No budget is set, but a run needs one of {', '.join(f'budget.{name}' for name in limits)}.")


def unknown_coefficients(config: Any) -> None:
    """Measurements to find them from, and steps that see them change."""
    found = unknowns(config)
    if found and config["data"]["file"] is None:
        raise InputError(
            f"{found[0]} is {UNKNOWN}, but there are no measurements to find it from: give data.file, or its value."
        )
    if found and config["derivatives"]["compile"] == "on":
        raise InputError(
            f"derivatives.compile is on, but a compiled step would keep {found[0]} at its first guess; it must be off."
        )


def points(settings: Any) -> None:
    """What only fresh points can do."""
    if settings["fresh"]:
        return
    if settings["residual"]:
        raise InputError(
            f"points.residual is {settings['residual']} with points.fresh=false, but only fresh points can follow the "
            "residual: choose points=residual, or leave points.residual out."
        )
    if settings["first"] is not None:
        raise InputError(
            f"points.first is {settings['first']} with points.fresh=false, but only fresh points can grow in number: "
            "choose points=residual, or leave points.first out."
        )


def rank(config: Any, request: Request) -> None:
    """What a rank that follows the gradient needs, and settings that a fixed one would not look at."""
    lora = config["lora"]
    if lora["rank"] != ADAPTIVE:
        if given := request.gives("lora.adaptive"):
            raise InputError(f"{given[0]} is given, but lora.rank is {lora['rank']}: choose lora.rank={ADAPTIVE}.")
        return
    if lora["adaptive"]["start"] > lora["adaptive"]["max"]:
        raise InputError(
            f"lora.adaptive.start is {lora['adaptive']['start']}, but it must be at most lora.adaptive.max, which is "
            f"{lora['adaptive']['max']}."
        )
    if lora["start"] == "zero":
        raise InputError(
            f"lora.start is zero with lora.rank={ADAPTIVE}, but a new direction takes its size from those that are "
            "there: choose lora.start=pissa or orthonormal."
        )
    if config["derivatives"]["compile"] == "on":
        raise InputError(
            f"derivatives.compile is on with lora.rank={ADAPTIVE}, but a compiled step holds for one rank: it must be "
            "off."
        )


def combination(config: Any, request: Request) -> None:
    """Settings that the chosen method would not look at."""
    target = config["method"]["_target_"]
    name = target.rpartition(".")[2]
    if (given := request.gives("integrator")) and not takes_integrator(target):
        others = [m for m, path in request.members("method").items() if takes_integrator(path)]
        advice = f"; methods that do: {', '.join(others)}" if others else ""
        raise InputError(f"{given[0]} is given, but method {name} takes no integrator{advice}.")
    given = [key for key in request.gives("lora") if key != "lora.targets"]
    if given and name.startswith("full_"):
        raise InputError(
            f"{given[0]} is given, but method {name} trains all weights and has no low-rank factors; lora.targets "
            "alone can be set, for the layers that are measured."
        )


def takes_integrator(method: str) -> bool:
    """Whether a method is a time discretisation of a flow."""
    return "integrator" in signature(method).parameters


def free_folder(folder: Path) -> None:
    """A folder that can be written and holds no run."""
    if any(os.path.exists(folder / name) for name in (CONFIG, START, STATE)):
        raise InputError(
            f"The output folder {folder} already holds a run; continue it with resume={folder}, "
            "or give another output_dir."
        )
    existing = next(f for f in (folder, *folder.parents) if os.path.exists(f))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"The output folder {folder} cannot be written; give an output_dir in a folder that can.")

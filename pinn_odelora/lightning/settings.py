"""Which settings of Lightning's Trainer a run leaves to the user."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pinn_odelora.errors import RefusedValueError, unknown
from pinn_odelora.rules import signature

DECIDED: Mapping[str, str] = {
    "logger": "set logger=wandb, tensorboard, mlflow or csv",
    "callbacks": "it brings its own",
    "precision": "set precision=32 or precision=64",
    "max_epochs": "set budget.steps",
    "max_steps": "set budget.steps",
    "min_epochs": "set budget.steps",
    "min_steps": "set budget.steps",
    "max_time": "set budget.seconds",
    "fast_dev_run": "set budget.steps=1",
    "limit_train_batches": "set budget.steps",
    "overfit_batches": "set points=fixed",
    "accumulate_grad_batches": "set points.interior",
    "gradient_clip_val": "a method has its own rule for steps",
    "gradient_clip_algorithm": "a method has its own rule for steps",
    "num_nodes": "it stays on one device",
}
"""Those that would do nothing in a run, or spoil it, and what to do instead."""
KINDS: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a word",
    type(None): "None",
}
"""What can be typed, in words."""


def check_trainer(settings: Mapping[str, Any], sweep: bool = False) -> None:
    """Refuse what the Trainer does not take, and what a run decides itself.

    Lightning is imported only for something unusual.

    Args:
        settings: those given.
        sweep: whether the run is a job of one, which Lightning cannot start in a second process.

    Raises:
        InputError: for the first such setting.
    """
    for name in settings.keys() & DECIDED.keys():
        raise RefusedValueError(name, settings[name], f"left out, since a run decides that itself: {DECIDED[name]}")
    if settings.keys() - {"accelerator", "devices"}:
        from lightning import Trainer

        takes = signature(Trainer).parameters
        for name, value in settings.items():
            if name not in takes:
                raise unknown("key of trainer:", name, takes.keys() - DECIDED.keys())
            _check_kind(name, value, takes[name].annotation)
    devices, strategy = settings.get("devices", 1), settings.get("strategy", "auto")
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    several = strategy == "ddp" and isinstance(devices, int | list) and devices not in (0, -1, [])
    if not one and (sweep or not several):
        others = "since the jobs of a sweep have one each" if sweep else "or several with strategy=ddp"
        raise RefusedValueError("devices", devices, f"one device, 1 or its index as [0], {others}")


def _check_kind(name: str, value: Any, annotation: Any) -> None:
    """Refuse a value of none of the plain kinds that an annotation has, which Lightning may find out in a step only."""
    union = get_origin(annotation) in (Union, UnionType)
    members = [type(None) if x is None else x for x in (get_args(annotation) if union else (annotation,))]
    if any(get_origin(member) in (list, dict, tuple) for member in members):
        return
    members = [str if get_origin(member) is Literal else member for member in members]
    plain = [kind for kind in KINDS if kind in members]
    fits = type(value) in plain or (float in plain and type(value) is int)
    if plain and not fits:
        raise RefusedValueError(name, value, " or ".join(KINDS[kind] for kind in plain))

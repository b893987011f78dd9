"""The configuration that a run keeps in its folder, by which it is repeated, continued and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pinn_odelora import manifest
from pinn_odelora.errors import InputError
from pinn_odelora.files import fill, write_text
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.plain_files import read_yaml_text
from pinn_odelora.runs.folder import CONFIG
from pinn_odelora.runs.leader import leaders_folder

RENAMED: Mapping[str, str] = {
    "points.rows": "points.batch_size",
    "points.first": "points.initial_batch_size",
    "points.validation": "points.best_iterate",
    "integrator.chart": "method.chart",
    "integrator.first": "integrator.initial_damping",
    "integrator.metric": "",
    "pretrain.finish": "pretrain.second_stage",
    "pretrain.implicit_steps": "pretrain.natural_gradient_steps",
    "lora.adaptive.rows": "lora.adaptive.residuals",
    "derivatives.compile": "",
}
"""Keys of earlier versions and what they are called now; those without a name are gone."""
MOVED: Mapping[str, str] = {
    **{name: name for name in ("lora_gd", "scaled_gd", "lora_adam", "lora_plus", "full_adam", "full_lbfgs")},
    "lora_muon": "factor_muon",
}
"""Methods that earlier versions had in ``pinn_odelora.optim.methods``, by their names there, and what they are called
in ``pinn_odelora.methods`` now; ``lora_muon`` is another one there.
"""


def renamed(key: str) -> str:
    """The sentence for a key of earlier versions."""
    return f"{key} is now {RENAMED[key]}." if RENAMED[key] else f"{key} no longer exists; leave it out."


def outdated(cfg: DictConfig, folder: Path) -> str:
    """The sentence for the configuration in a folder that is of an earlier version; empty for one of this version."""
    old = [key for key in RENAMED if OmegaConf.select(cfg, key) is not None]
    return f"{folder} holds a run of an earlier version, which cannot be read: {renamed(old[0])}" if old else ""


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Write ``config.yaml``, which repeats the run by itself, into a folder of its own, in one move:

        python train.py --config-path <absolute folder> --config-name config output_dir=<new folder>

    Raises:
        InputError: if the folder cannot be written.
    """
    if leaders_folder() is not None:  # it is what was read
        return
    own = {"output_dir": None, "resume": None, "trust": None}
    kept = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True) | own)
    if not (folder / MANIFEST).exists():
        write_text(folder / CONFIG, OmegaConf.to_yaml(kept))
        return
    with manifest.exchanging(folder / MANIFEST, CONFIG) as temporary:  # a run that goes on may have a new budget
        fill(temporary, OmegaConf.to_yaml(kept).encode())


def saved_config(folder: Path) -> DictConfig:
    """The configuration of the run in a folder; it takes no new keys.

    Raises:
        InputError: if the folder holds no run, or that of an earlier version, or something else at one of its keys.
    """
    try:
        kept = read_config(folder / CONFIG)
    except (OSError, ValueError, OmegaConfBaseException):
        kept = None
    if not OmegaConf.is_dict(kept) or not {"problem", "method", "choices", "output_dir"} <= kept.keys():
        raise InputError(f"{folder} holds no run: there is no {CONFIG} in it that can be read as that of a run.")
    for key, value in _texts(OmegaConf.to_container(kept)):
        if "${" in value:
            raise InputError(
                f"{folder / CONFIG} holds {value} at {key}, but the configuration of a run has values only."
            )
    try:
        said = outdated(kept, folder)
        find_method(kept)
    except OmegaConfBaseException as error:  # a list in the place of names with values
        raise InputError(f"{folder / CONFIG} is damaged: {str(error).partition(chr(10))[0].rstrip('.')}.") from None
    if said:
        raise InputError(said)
    OmegaConf.set_struct(kept, True)
    return kept


def read_config(file: Path) -> Any:
    """What a configuration file holds; nothing in it is resolved or called.

    Raises:
        OSError: if it cannot be read.
        ValueError, OmegaConfBaseException: if it is no YAML of plain values, or has aliases or tags.
    """
    text = read_yaml_text(file)
    try:
        return OmegaConf.create(text)
    except YAMLError as error:
        raise ValueError(f"it is no YAML of plain values ({type(error).__name__})") from None


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts in a configuration by their keys."""
    if isinstance(node, dict | list):
        for name, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(node, str):
        yield key, node


def find_method(cfg: DictConfig) -> None:
    """Name the method of an earlier version by where it is now."""
    home, _, name = str(OmegaConf.select(cfg, "method._target_")).rpartition(".")
    if home == "pinn_odelora.optim.methods" and name in MOVED:
        cfg.method["_target_"] = f"pinn_odelora.methods.{MOVED[name]}"
        if OmegaConf.select(cfg, "choices.method") == name:
            cfg.choices["method"] = MOVED[name]

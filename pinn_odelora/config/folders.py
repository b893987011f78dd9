"""Where a run leaves its files, and the configuration that is kept there to repeat or continue it."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from pinn_odelora.config.request import Request
from pinn_odelora.config.sentences import RENAMED, unknown_key
from pinn_odelora.errors import InputError
from pinn_odelora.files import write_text
from pinn_odelora.runs.folder import CONFIG, START, STATE, SUMMARY
from pinn_odelora.runs.location import new_folder

RUNS = Path("runs")
"""Where runs go that have no ``output_dir``."""
CONTINUABLE = ("budget", "checkpoint", "log.every", "logger")
"""What may change when a run is continued: nothing that takes part in the numbers."""


def chosen_folder(cfg: DictConfig, request: Request) -> Path:
    """The folder that ``output_dir`` asks for, one for each job of a sweep; without it, the one for all runs."""
    if cfg.output_dir is None:
        return RUNS.absolute()
    folder = Path(cfg.output_dir)
    return folder if request.job is None or cfg.resume is not None else folder / str(request.job)


def output_folder(cfg: DictConfig, request: Request) -> Path:
    """The run's folder: the chosen one, not yet made, or a new one ``runs/<problem>-<method>-<time>``, made here.

    Raises:
        InputError: if it cannot be made.
    """
    chosen = chosen_folder(cfg, request)
    if cfg.output_dir is not None:
        return chosen
    return new_folder(chosen, f"{cfg.choices.problem}-{cfg.choices.method}-{datetime.now():%Y%m%d-%H%M%S}")


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Write ``config.yaml``, which repeats the run by itself, into a folder of its own, in one move:

        python train.py --config-path <absolute folder> --config-name config output_dir=<new folder>

    Raises:
        InputError: if the folder cannot be written.
    """
    kept = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True) | {"output_dir": None, "resume": None})
    write_text(folder / CONFIG, OmegaConf.to_yaml(kept))


def saved(folder: Path) -> DictConfig:
    """The configuration of the run in a folder.

    Raises:
        InputError: if the folder holds no run, or that of an earlier version.
    """
    try:
        kept = OmegaConf.load(folder / CONFIG)
    except OSError:
        raise InputError(f"{folder} holds no run: it has no readable {CONFIG}.") from None
    except (yaml.YAMLError, ValueError):
        raise InputError(f"{folder} holds no run: its {CONFIG} is damaged.") from None
    if not OmegaConf.is_dict(kept) or not {"problem", "method", "choices", "output_dir"} <= kept.keys():
        raise InputError(f"{folder} holds no run: its {CONFIG} is not that of a run.")
    if old := [key for key in RENAMED if OmegaConf.select(kept, key) is not None]:
        raise InputError(f"{folder} holds a run of an earlier version, which cannot be read: {unknown_key(old[0], ())}")
    OmegaConf.set_struct(kept, True)
    return kept


def resumed(cfg: DictConfig, request: Request) -> DictConfig:
    """The configuration kept in the folder ``resume``, with what was given of ``CONTINUABLE`` put into it.

    Raises:
        InputError: if the folder holds no run, or something else was given that a continued run cannot change.
    """
    folder = Path(cfg.resume).expanduser().absolute()
    allowed = request.gives("resume", *CONTINUABLE)
    for key in request.given:
        if key not in allowed:
            raise InputError(
                f"{key} cannot change when a run is continued with resume; allowed: {', '.join(CONTINUABLE)}."
            )
    kept = saved(folder)
    if (folder / SUMMARY).exists() and not (folder / STATE).exists():
        raise InputError(
            f"resume={folder} is a finished run without {STATE}, the state to continue from; "
            f"its {CONFIG} repeats it in another output_dir."
        )
    with open_dict(kept):
        for key in request.gives(*CONTINUABLE):
            OmegaConf.update(kept, key, OmegaConf.select(cfg, key), merge=False)
        kept.resume = kept.output_dir = str(folder)
    return kept


def has_pretrained(cfg: DictConfig) -> bool:
    """Whether a run is continued whose folder has its pretrained network: neither checkpoint nor cache is needed."""
    return cfg.resume is not None and (Path(cfg.resume) / START).is_file()


def choices(cfg: DictConfig, request: Request, integrated: bool) -> dict[str, str | None]:
    """The names of problem, network, method and integrator, for summaries and for the folder.

    A name is that of the chosen YAML file, or made from the ``_target_`` where that was given by hand.

    Args:
        integrated: whether the method takes an integrator; the name is None otherwise.
    """
    names = {}
    for group in ("problem", "net", "method", "integrator"):
        by_hand = request.gives(f"{group}._target_", f"{group}.tableau")
        chosen = None if by_hand else {**request.choices, **(cfg.get("choices") or {})}.get(group)
        names[group] = chosen or _name(cfg[group])
    return names if integrated else names | {"integrator": None}


def _name(component: DictConfig) -> str:
    """A scheme's name in lower case, or that of the class or function: AllenCahn is allen_cahn."""
    target = OmegaConf.select(component, "tableau.path") or component["_target_"]
    name = target.rpartition(".")[2]
    return name.lower() if name.isupper() else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()

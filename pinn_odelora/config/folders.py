"""Which folder a run has, and the configuration of one that is continued."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from pinn_odelora.config.request import Request
from pinn_odelora.errors import InputError
from pinn_odelora.runs.folder import CONFIG, FAMILY, START, STATE, SUMMARY
from pinn_odelora.runs.reopened import reopened

RUNS = Path("runs")
"""Where runs go that have no ``output_dir``."""
CONTINUABLE = ("budget", "stations.tolerance", "stations.most", "checkpoint", "log.every", "logger")
"""What may change when a run is continued: how far it goes, and nothing that takes part in the numbers before."""


def chosen_folder(cfg: DictConfig, request: Request) -> Path:
    """The folder that ``output_dir`` asks for, one for each job of a sweep; without it, the one for all runs."""
    if cfg.output_dir is None:
        return RUNS.absolute()
    folder = Path(cfg.output_dir)
    return folder if request.job is None or cfg.resume is not None else folder / str(request.job)


def resumed(cfg: DictConfig, request: Request) -> DictConfig:
    """The configuration kept in the folder ``resume``, with what was given of ``CONTINUABLE`` put into it.

    Raises:
        InputError: if the folder holds no run, or its configuration names code that was not
            trusted; or something else was given that a continued run cannot change.
    """
    folder = Path(cfg.resume).expanduser().absolute()
    allowed = request.gives("resume", "trust", *CONTINUABLE)
    if other := [key for key in request.given if key not in allowed]:
        raise InputError(f"{other[0]} cannot change when a run is resumed; allowed: {', '.join(CONTINUABLE)}.")
    kept = reopened(folder, OmegaConf.select(cfg, "trust"))
    if (folder / SUMMARY).exists() and not ((folder / STATE).exists() or (folder / FAMILY).exists()):
        raise InputError(f"{folder} is a finished run without {STATE} to continue from; its {CONFIG} can repeat it.")
    with open_dict(kept):
        for key in request.gives(*CONTINUABLE):
            OmegaConf.update(kept, key, OmegaConf.select(cfg, key), merge=False)
        kept.resume = kept.output_dir = str(folder)
    return kept


def has_pretrained(cfg: DictConfig) -> bool:
    """Whether a run is continued whose folder has its pretrained network: neither checkpoint nor cache is needed."""
    return cfg.resume is not None and (Path(cfg.resume) / START).is_file()

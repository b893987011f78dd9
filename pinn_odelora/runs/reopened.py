"""The configuration of a run that is to go on, after what is asked of its folder: that its files are as they were
written, and that what they name may be called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from pinn_odelora import manifest
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.runs.configuration import saved_config
from pinn_odelora.runs.folder import BASE, CONFIG, FAMILY, PROVENANCE, START, STATE
from pinn_odelora.runs.trust import HOMES, check_names, trusted


def reopened(folder: Path, trust: Any) -> DictConfig:
    """The configuration in a folder, with the modules that the caller trusts in place of those that it names itself.

    Raises:
        InputError: if the folder holds no run, a file to go on from has changed, or the configuration names code that
            is not trusted.
    """
    manifest.check(folder / MANIFEST, CONFIG, PROVENANCE, START, BASE, STATE, FAMILY)
    kept = saved_config(folder)
    named, parts = OmegaConf.to_container(trust) if OmegaConf.is_config(trust) else trust, OmegaConf.to_container(kept)
    for key in HOMES:
        check_names(key, parts.get(key), trusted(named))
    with open_dict(kept):
        kept.trust = trust
    return kept

"""The configuration of a run that is to go on, after what is asked of its folder: that its files are as they were
written and lie in it, and that what they name may be called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from pinn_odelora import manifest
from pinn_odelora.errors import InputError
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.runs.configuration import saved_config
from pinn_odelora.runs.folder import ADAPTER, BASE, CONFIG, FAMILY, PROVENANCE, START
from pinn_odelora.runs.trust import HOMES, check_names, trusted


def reopened(folder: Path, trust: Any) -> DictConfig:
    """The configuration in a folder, with the modules that the caller trusts in place of those that it names itself.

    Raises:
        InputError: if the folder holds no run, a link in it leads elsewhere, a file to go on from has changed, or the
            configuration names code that is not trusted.
    """
    _check_links(folder)
    manifest.check(folder / MANIFEST, CONFIG, PROVENANCE, START, BASE, FAMILY)  # and the state when it is read
    kept = saved_config(folder)
    named, parts = OmegaConf.to_container(trust) if OmegaConf.is_config(trust) else trust, OmegaConf.to_container(kept)
    if missing := [key for key in HOMES if key not in parts]:
        raise InputError(f"{folder / CONFIG} is not that of a run: it has no {missing[0]}.")
    for key in HOMES:
        check_names(key, parts.get(key), trusted(named))
    with open_dict(kept):
        kept.trust = trust
    return kept


def _check_links(folder: Path) -> None:
    """Refuse links by which the run would write elsewhere: a log or a lock is opened where it is."""
    for place in (folder, folder / ADAPTER):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            leads = Path(os.path.realpath(file))  # to nowhere, too, or to itself
            if file.is_symlink() and not leads.is_relative_to(os.path.realpath(folder)):
                raise InputError(
                    f"{file} is a link to {leads}, but a run that goes on writes into its own folder only: put a copy "
                    "of the file in the place of the link."
                )

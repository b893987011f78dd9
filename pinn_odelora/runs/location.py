"""A place for the files of a run: a folder that holds no other one."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from pinn_odelora.arguments import given
from pinn_odelora.errors import InputError
from pinn_odelora.runs import trust
from pinn_odelora.runs.folder import CONFIG, START, STATE


def check_free(folder: Path) -> None:
    """Refuse a folder that holds a run, or cannot be written.

    Raises:
        InputError: with the way to continue that run.
    """
    if any(os.path.exists(folder / name) for name in (CONFIG, START, STATE)):
        raise InputError(
            f"The output folder {folder} already holds a run; continue it with {given('resume', folder)}"
            f"{trust.argument(folder)}, or give another output_dir."
        )
    existing = next(f for f in (folder, *folder.parents) if os.path.exists(f))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"The output folder {folder} cannot be written; give an output_dir in a folder that can.")


def new_folder(parent: Path, name: str) -> Path:
    """A new folder ``<parent>/<name>``, or ``<name>-2`` and so on where there is one.

    Making it is what keeps runs that start in the same second apart.

    Raises:
        InputError: if it cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for k in count(1):
            folder = parent / (name if k == 1 else f"{name}-{k}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise InputError(f"The output folder {parent} cannot be written ({error.strerror}); give another.") from None
    raise AssertionError

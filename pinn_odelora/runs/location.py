"""A place for the files of a run: a folder that holds no other one."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from pinn_odelora.arguments import given
from pinn_odelora.errors import InputError, UnwritableError
from pinn_odelora.runs import trust
from pinn_odelora.runs.folder import CONFIG, START, STATE


def check_free(folder: Path, typed: bool = True) -> None:
    """Refuse a folder that holds a run, or cannot be written.

    Args:
        folder: of a run that begins.
        typed: whether it was given on the command line, whose terms the messages then have.

    Raises:
        InputError: with the way to continue that run, on the command line.
    """
    if any(os.path.exists(folder / name) for name in (CONFIG, START, STATE)):
        advice = "give another"
        if typed:
            advice = f"continue it with {given('resume', folder)}{trust.argument(folder)}, or give another output_dir"
        raise InputError(f"The output folder {folder} already holds a run; {advice}.")
    existing = next(f for f in (folder, *folder.parents) if os.path.exists(f))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        place = "an output_dir" if typed else "one"
        raise InputError(f"The output folder {folder} cannot be written; give {place} in a folder that can.")


def check_there(folder: Path) -> None:
    """Refuse to go on where the folder of a run is gone: what it held is missing in a new one of that name.

    Raises:
        UnwritableError: one sentence.
    """
    if not folder.is_dir():
        raise UnwritableError(f"Cannot write into {folder}: the folder of the run is gone, with all that it held.")


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

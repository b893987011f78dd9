"""The file of the state to resume from: what it holds, and whether that is the state of the run at hand.

A file is read once: its digest is compared, and its content taken, from the very same bytes. What was read before a run
had its folder to itself is kept, and read again only if another file has taken its place meanwhile.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pinn_odelora import manifest
from pinn_odelora.adaptation import Adaptation
from pinn_odelora.errors import InputError, cause
from pinn_odelora.files import reason
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.pickles import UnreadableError
from pinn_odelora.runs import saved_state
from pinn_odelora.runs.folder import STATE
from pinn_odelora.runs.saved_state import Layout, OtherError, whole
from pinn_odelora.torch_files import read_torch

LAYOUT = Layout(
    ("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "optimizer_states", "adaptation"),
    "state_dict",
    "adaptation",
    lambda saved: saved["optimizer_states"],
)
"""As Lightning saves it, with the record of the run."""


class Saved(NamedTuple):
    """What a file holds, and which file that was."""

    content: dict[str, Any]
    file: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Those behind the state."""
        return self.content["adaptation"]["progress"]["step"]


def saved_in(folder: Path, before: Saved | None = None) -> Saved | None:
    """The state in the folder of a run; None where there is none.

    Args:
        folder: of the run.
        before: what was read there before, which is returned if the file is still that one: each is written beside the
            last one, and moved to its place.

    Raises:
        InputError: if it cannot be read, is damaged, or no state.
    """
    path = folder / STATE
    there = os.path.exists(path)
    # Before it is read: a file that takes its place from here on is another one than what is said here.
    file = _which(path) if there else ()
    if before is not None and before.file == file:
        return before
    content = _content(path)
    return None if content is None else Saved(_parsed(content, path), file)


def read(path: Path) -> dict[str, Any]:
    """What a file holds, on the CPU; nothing in it is called but what makes tensors.

    Raises:
        InputError: if it does not exist, cannot be read, is damaged, or no state.
    """
    content = _content(path)
    if content is None:
        raise _unreadable(path, FileNotFoundError(2, os.strerror(2)))
    return _parsed(content, path)


def check(saved: Mapping[str, Any], adaptation: Adaptation, names: nn.Module, path: str | Path) -> None:
    """Refuse a state that is not that of a run.

    Args:
        saved: what was read.
        adaptation: the run, before its first step.
        names: the module whose ``state_dict`` is in it.
        path: where it was read, for the sentence.

    Raises:
        InputError: naming what differs.
    """
    _ = adaptation.training  # with which factors are put into the network
    saved_state.check(saved, adaptation, LAYOUT, names.state_dict(), lambda said: _refused(path, said))


def unsuitable(path: str | Path, error: Exception) -> InputError:
    """The sentence for a state from which the first step fails."""
    return _refused(path, f"is not that of this run: the first step from it fails ({cause(error)})")


def _which(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _content(path: Path) -> bytes | None:
    try:
        return manifest.read_file(path.parent / MANIFEST, path.name)
    except OSError as error:
        raise _unreadable(path, error) from error


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    try:
        read_torch(content)  # which checks sizes and sums, and calls nothing
        saved = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        whole(saved["adaptation"]["progress"]["step"])
        return saved
    except Exception as error:  # A damaged pickle can fail in any way.
        said = str(error) if isinstance(error, UnreadableError | OtherError) else type(error).__name__
        raise _refused(path, f"is damaged or of an earlier version ({said})") from error


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"Cannot read {path}, the state to continue from: {reason(error)}.")


def _refused(path: str | Path, said: str) -> InputError:
    return InputError(
        f"{path}, the state to continue from, {said}; config.yaml beside it repeats the run in another output_dir."
    )

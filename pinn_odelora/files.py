"""Files that are replaced as a whole or not at all.

The content goes to a temporary file in the same folder, is flushed to the disk, and takes the place of the old file by
a rename, which POSIX makes atomic. A reader, or a process that is killed at any moment, therefore sees the old file or
the new one, never a part of either.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pinn_odelora.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a temporary file to write, which replaces ``path`` when the block ends without an exception.

    The folder is made if it is missing; the temporary file is removed in any case.

    Raises:
        InputError: if the folder cannot be made, or the file not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace a file by ``content``; see ``replacing`` for what is raised."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Replace a file by ``content`` in UTF-8, line ends as they are."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Replace a file by ``content`` as JSON; NaN and infinities, which JSON does not have, become null."""
    write_text(path, json.dumps(_representable(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _representable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _representable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_representable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

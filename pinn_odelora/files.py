"""Files that are replaced as a whole or not at all, and the sentences for those that cannot be written or read.

The content goes to a temporary file in the same folder, is flushed to the disk, and takes the place of the old file by
a rename, which POSIX makes atomic. A reader, or a process that is killed at any moment, therefore sees the old file or
the new one, never a part of either. The temporary file is made here and now, and no link is followed to it: in a folder
that others can write to, its name could be guessed and lead to a file of the user's. Only a log grows in place, by
whole lines: a line without its end is of a process that was killed meanwhile, and readers drop it.

Nothing else in this package writes files.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pinn_odelora.errors import InputError, UnwritableError

UNFINISHED = ".part"
"""How the names of temporary files end."""
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # and has neither of these two
_FOLDER = getattr(os, "O_DIRECTORY", 0)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a temporary file to write, which replaces ``path`` when the block ends without an exception.

    The folder is made if it is missing; the temporary file, which is there and empty, is removed in any case.

    Raises:
        UnwritableError: if the folder cannot be made, or the file not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _create(temporary)
        yield temporary
        _sync(temporary, os.O_RDWR | _BINARY | _NO_LINK)
        os.replace(temporary, path)
    except OSError as error:
        raise UnwritableError(f"Cannot write {path}: {reason(error)}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(path: Path) -> None:
    """A folder, with those above it, if it is missing.

    Raises:
        UnwritableError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnwritableError(f"Cannot make the folder {path}: {reason(error)}.") from error


def fill(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a temporary file, which ``replacing`` gave."""
    _write(path, os.O_TRUNC | _NO_LINK, content)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace a file by ``content``; see ``replacing`` for what is raised."""
    with replacing(path) as temporary:
        fill(temporary, content)


def write_by(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Replace a file by what a function writes into an open one, as ``numpy.savez`` and ``torch.save`` do."""
    content = io.BytesIO()
    write(content)
    write_bytes(path, content.getvalue())


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Replace a file by ``content`` in UTF-8, line ends as they are."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Replace a file by ``content`` as JSON; NaN and infinities, which JSON does not have, become null."""
    write_text(path, json.dumps(_representable(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_figure(path: str | os.PathLike[str], figure: Any) -> None:
    """Replace a file by a figure of matplotlib; the format is that of its name, PNG without one.

    Raises:
        InputError: if there is no such format, or the file cannot be written.
    """
    kind = Path(path).suffix.removeprefix(".").lower() or "png"
    if kind not in (formats := figure.canvas.get_supported_filetypes()):
        raise InputError(f"{path} ends in .{kind}, but a picture must be one of {', '.join(sorted(formats))}.")
    write_by(path, lambda file: figure.savefig(file, format=kind))


def append_text(path: str | os.PathLike[str], lines: str) -> None:
    """Add whole lines, in UTF-8, to the end of a log that exists; where they cannot be added, it is left as it was.

    Raises:
        UnwritableError: if there is no such file, or it cannot be written.
    """
    try:
        before = os.path.getsize(path)
        try:
            _write(path, os.O_APPEND, lines.encode())
        except OSError:
            with suppress(OSError):
                os.truncate(path, before)
            raise
    except OSError as error:
        raise UnwritableError(f"Cannot write {path}: {reason(error)}.") from error


def flush(path: str | os.PathLike[str]) -> None:
    """Have the lines of a log, and its name, on the disk when this returns; nothing where there is none.

    Raises:
        UnwritableError: if they cannot be written there.
    """
    try:
        with suppress(FileNotFoundError):
            _sync(path, os.O_RDWR | _BINARY)
            if _FOLDER:
                _sync(Path(path).parent, os.O_RDONLY | _FOLDER)
    except OSError as error:
        raise UnwritableError(f"Cannot write {path}: {reason(error)}.") from error


def _create(path: Path) -> None:
    """An empty file that was not there before."""
    how = os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINK
    try:
        os.close(os.open(path, how, 0o666))
    except FileExistsError:  # of a process of this number that was killed, or a link that somebody has put there
        path.unlink()
        os.close(os.open(path, how, 0o666))


def _sync(path: str | os.PathLike[str], how: int) -> None:
    file = os.open(path, how)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write(path: str | os.PathLike[str], how: int, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | _BINARY | how, 0o666)
    try:
        left = memoryview(content)
        while left:  # a write may take a part, as where the disk becomes full
            left = left[os.write(file, left) :]
    finally:
        os.close(file)


def discard_unfinished(folder: Path) -> None:
    """Remove temporary files that killed processes have left in a folder and all below it; nobody may write there."""
    for file in [*folder.rglob(f".*{UNFINISHED}")]:  # code/ has packages inside of it
        if re.fullmatch(r"\..+\.\d+", file.stem):
            with suppress(OSError):
                file.unlink()


def read_text(path: str | os.PathLike[str]) -> str:
    """A file in UTF-8.

    Raises:
        InputError: if it cannot be read, or is something else.
    """
    try:
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {reason(error)}.") from error
    except UnicodeDecodeError:
        raise InputError(f"{path} is damaged: it is not text in UTF-8.") from None


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file that ``write_json`` wrote.

    Raises:
        InputError: if it cannot be read, or is something else.
    """
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error if text.strip() else 'it is empty'}.") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it holds no names with values.")
    return found


def reason(error: OSError) -> str:
    """Why a file cannot be used, in the words of the operating system."""
    return str(error.strerror or error).rstrip(".")


def _representable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _representable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_representable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

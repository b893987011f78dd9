"""Digests (SHA-256) of the files of a folder, by which damage and later changes of them are seen.

A manifest is a JSON file,

    {"format": 1, "files": {"<name>": ["<digest>", ...], ...}, "facts": {...}, "sha256": "<digest of all this>"}

which is written after the files that it lists, in one move, and holds its own digest, so that a damaged manifest is not
taken for damaged files. A file that is replaced while others may be killed at any moment has two digests: that of what
comes is added before it takes the place of what was, so that the file and the manifest agree at each moment.

Digests find accidents. They prove nothing on who made a file, since whoever changes it can write the manifest again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pinn_odelora.errors import InputError
from pinn_odelora.files import replacing, write_json
from pinn_odelora.plain_files import read_mapping

MANIFEST = "manifest.json"
"""The manifest of a run folder."""
FORMAT = 1
ABSENT = ""
"""In the place of the digest of what was, where nothing was."""


class DamagedError(InputError):
    """A file that is not as it was written."""


class Manifest(NamedTuple):
    """The digests of each file by its name, any of which it may have, and plain facts kept with them."""

    files: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, Any]


def sha256(path: Path) -> str:
    """The digest of a regular file.

    Raises:
        OSError: if it cannot be read, or is a pipe, a device or a folder, whose content may have no end.
    """
    with _regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(*parts: bytes) -> str:
    """The digest of what is inside a file that keeps its own."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()


def read(path: Path) -> Manifest | None:
    """A manifest; None where there is none.

    Raises:
        DamagedError: if it is damaged.
    """
    try:
        content = read_mapping(path)
        if content["format"] != FORMAT:
            raise DamagedError(f"{path} has format {content['format']!r}, but this version reads format {FORMAT}.")
        if content["sha256"] != _own_digest(content):
            raise ValueError("its digest is another one")
        return Manifest({name: tuple(digests) for name, digests in content["files"].items()}, content["facts"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamagedError):
            raise
        reason = f"{error.strerror or error}" if isinstance(error, OSError) else type(error).__name__
        raise DamagedError(f"{path}, the digests of the files beside it, is damaged ({reason}).") from error


def write(path: Path, names: Iterable[str], facts: Mapping[str, Any] | None = None) -> None:
    """A manifest of these files, as they are, and of no others; what is not there is left out.

    Args:
        path: of the manifest.
        names: of files beside it, or of folders for all that is in them.
        facts: plain values to keep with them.

    Raises:
        InputError: if it cannot be written, or a file not be read.
    """
    _write(path, _digests(path.parent, names), facts or {})


def add(path: Path, names: Iterable[str]) -> None:
    """List these files, as they are, beside the others; see ``write``."""
    known = _rest(path)
    _write(path, {**known.files, **_digests(path.parent, names)}, known.facts)


def leave_out(path: Path, names: Iterable[str]) -> None:
    """List these files no longer, as they will change; names of folders stand for all that is in them."""
    known, out = _rest(path), (*names,)
    kept = {name: digests for name, digests in known.files.items() if not _is_in(name, out)}
    if kept != known.files:
        _write(path, kept, known.facts)


@contextmanager
def exchanging(path: Path, name: str) -> Iterator[Path]:
    """The path of a temporary file to write, which replaces a file; before and after that the manifest agrees with it.

    Args:
        path: of the manifest.
        name: of the file.
    """
    with replacing(path.parent / name) as temporary:
        yield temporary
        known, there = _rest(path), path.parent / name
        former = _digest(there) if there.exists() else ABSENT
        _write(path, {**known.files, name: (former, _digest(temporary))}, known.facts)


def check(path: Path, *names: str) -> None:
    """Refuse files that are not as they were written; nothing is said of those that are not listed.

    Args:
        path: of the manifest.
        names: of files, or of folders for all that is listed in them.

    Raises:
        DamagedError: naming the first file that differs, or is missing or cannot be read.
    """
    found = read(path)
    for name, digests in found.files.items() if found else ():
        if not _is_in(name, names):
            continue
        try:
            present = sha256(path.parent / name) if _inside(name) else None
        except OSError as error:
            if isinstance(error, FileNotFoundError) and ABSENT in digests:
                continue
            raise DamagedError(f"{path.parent / name} cannot be read ({error.strerror or error}).") from error
        if present not in digests:
            raise _changed(path, name)


def read_file(path: Path, name: str) -> bytes | None:
    """The content of a file, read once: the digest of these very bytes is compared. None where there is no such file.

    Args:
        path: of the manifest.
        name: of the file.

    Raises:
        DamagedError: if it is not as it was written, or is listed and missing.
        OSError: if it is there and cannot be read.
    """
    found = read(path)
    digests = found.files.get(name) if found else None
    try:
        with _regular(path.parent / name) as file:
            content = file.read()
    except FileNotFoundError as error:
        if digests is None or ABSENT in digests:
            return None
        raise DamagedError(f"{path.parent / name} cannot be read ({error.strerror or error}).") from error
    if digests is not None and digest_of(content) not in digests:
        raise _changed(path, name)
    return content


def _changed(path: Path, name: str) -> DamagedError:
    return DamagedError(
        f"{path.parent / name} has changed since it was written, or is damaged: its digest is not the one in "
        f"{path.name}."
    )


@contextmanager
def _regular(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading, if it is none of those whose content may have no end."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield file


def _rest(path: Path) -> Manifest:
    """What stays of a manifest that is written again; nothing of one that is damaged, which a reader refuses."""
    with suppress(DamagedError):
        return read(path) or Manifest({}, {})
    return Manifest({}, {})


def _is_in(name: str, folders: Iterable[str]) -> bool:
    return any(f"{name}/".startswith(f"{folder}/") for folder in folders)


def _inside(name: str) -> bool:
    """Whether a name stays in the folder of the manifest."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def _digests(folder: Path, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    places = [folder / name for name in names]
    files = [file for place in places for file in ([*place.rglob("*")] if place.is_dir() else [place])]
    return {file.relative_to(folder).as_posix(): (_digest(file),) for file in files if file.is_file()}


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error


def _write(path: Path, files: Mapping[str, tuple[str, ...]], facts: Mapping[str, Any]) -> None:
    content = {"format": FORMAT, "files": {name: [*files[name]] for name in sorted(files)}, "facts": dict(facts)}
    write_json(path, {**content, "sha256": _own_digest(content)})


def _own_digest(content: Mapping[str, Any]) -> str:
    covered = {name: value for name, value in content.items() if name != "sha256"}
    return digest_of(json.dumps(covered, sort_keys=True).encode())


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe without a writer at once."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

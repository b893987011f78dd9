"""One process writes into the folder of a run: a lock of the operating system on ``.lock`` in it.

The kernel releases the lock when its process ends in whatever way, so none is ever left behind: a file ``.lock`` of a
run that was killed locks nothing. POSIX systems have ``flock``, which network file systems pass on to their server;
Windows locks a byte. Where a file system has neither, the folder is not locked.

The processes of one run share its folder, and the first of them holds the lock.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pinn_odelora.errors import InputError
from pinn_odelora.files import discard_unfinished
from pinn_odelora.runs.leader import by_launcher, first
from pinn_odelora.runs.location import check_free

LOCK = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What a lock that is held answers; any other error is that of a file system without locks."""
BYTE = 1 << 30
"""The byte that Windows locks, where the file has none, since a locked one cannot be read."""


@contextmanager
def alone(folder: Path, new: bool, typed: bool = True) -> Iterator[None]:
    """Hold the lock of a folder inside the block; the folder is made if it is missing.

    Args:
        folder: of the run.
        new: whether the run begins, in a folder that holds no other one.
        typed: whether the folder was given on the command line, whose terms the messages then have.

    Raises:
        InputError: if another process holds it, if the folder cannot be written, or if it holds a run by now.
    """
    if not first():
        yield
        return
    file = _locked(folder / LOCK, "output_dir" if typed else "folder")
    try:
        discard_unfinished(folder)
        if new and not by_launcher():
            check_free(folder, typed)  # it was free when the command was read
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(file)


def _locked(path: Path, argument: str) -> int:
    """An open file that this process alone has locked; ``argument`` is that by which its folder was given."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if not _lock(file):
                holder = os.read(file, 200).decode(errors="replace").strip()
                os.close(file)
                raise InputError(
                    f"A run is writing into {path.parent}{holder and f' ({holder})'}; wait until it ends, or give "
                    f"another {argument}."
                )
            if _is(path, file):
                break
            os.close(file)  # of a run that ended meanwhile, and is gone
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"The output folder {path.parent} cannot be written ({reason}); give another.") from None
    with suppress(OSError):  # for information only, for which a full disk may have no space
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {platform.node()}\n".encode())
    return file


def _is(path: Path, file: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False


def _lock(file: int) -> bool:
    """Whether no other process has the lock."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(file, BYTE, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
            os.lseek(file, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in HELD
    return True

"""What a run says on stderr, so that its output may be piped elsewhere."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from pinn_odelora.arguments import given
from pinn_odelora.errors import NonFiniteError, UnwritableError
from pinn_odelora.runs import trust
from pinn_odelora.runs.folder import CONFIG
from pinn_odelora.streams import INTERRUPTED

CONTINUE = 75
"""Exit code of a run that is to be continued: EX_TEMPFAIL of ``sysexits.h``."""


def say(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)


def near(folder: Path) -> Path:
    """The folder as one would type it here."""
    with suppress(OSError):  # the working folder may be gone
        here = Path.cwd()
        return folder.relative_to(here) if folder.is_relative_to(here) else folder
    return folder


def leave(where: str, folder: Path, paused: bool = False) -> NoReturn:
    """Say how a run is continued that was interrupted, or paused before the end of its time, and end the program."""
    why = "Out of time (budget.wall)" if paused else "Interrupted"
    say(f"{why} {where}; continue with: python train.py {given('resume', near(folder))}{trust.argument(folder)}")
    raise SystemExit(CONTINUE if paused else INTERRUPTED)


@contextmanager
def leaving(where: str, folder: Path) -> Iterator[None]:
    """Ctrl-C and SIGTERM inside the block: one line that says how to continue, and no traceback."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        leave(where, folder)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def continuable(folder: Path) -> Iterator[None]:
    """The end of a run in a folder before its own, by a signal or by a file that cannot be written: a line that says
    how to continue, since nothing of before is lost, and no traceback.

    Raises:
        UnwritableError: for such a file.
    """
    with leaving("before its end", folder):
        try:
            yield
        except UnwritableError as error:
            if not (folder / CONFIG).is_file():
                raise
            how = f"python train.py {given('resume', near(folder))}{trust.argument(folder)}"
            raise UnwritableError(f"{str(error).rstrip('.')}; once that is mended, continue with: {how}") from error


def last_line(outcome: str, failure: str, folder: Path) -> None:
    """The result in one line.

    Raises:
        NonFiniteError: where the numbers failed.
    """
    say(f"{outcome}; files in {near(folder)}")
    if failure:
        raise NonFiniteError(f"{failure} The last good state is kept in {near(folder)}.")

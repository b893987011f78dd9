"""What a run says on stderr, so that its output may be piped elsewhere."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pinn_odelora.arguments import given
from pinn_odelora.errors import NonFiniteError
from pinn_odelora.runs import trust


def say(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)


def near(folder: Path) -> Path:
    """The folder as one would type it here."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def leave(where: str, folder: Path) -> NoReturn:
    """Say how an interrupted run is continued, and end the program."""
    say(f"Interrupted {where}; continue with: python train.py {given('resume', near(folder))}{trust.argument(folder)}")
    raise SystemExit(130)


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


def last_line(outcome: str, failure: str, folder: Path) -> None:
    """The result in one line.

    Raises:
        NonFiniteError: where the numbers failed.
    """
    say(f"{outcome}; files in {near(folder)}")
    if failure:
        raise NonFiniteError(f"{failure} The last good state is kept in {near(folder)}.")

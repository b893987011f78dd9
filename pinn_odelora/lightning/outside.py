"""Dealing with trackers, which are programs of others: what they raise ends no run, and what is set for them is put
back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def spared(tracker: str, what: str) -> Iterator[None]:
    """Report in one line what a tracker raises, and go on: everything is in the files of the run anyway."""
    try:
        yield
    except Exception as error:
        told(f"{tracker} did not take {what} ({type(error).__name__}: {first_line(error)}).")


def in_time(seconds: float, call: Callable[[], T]) -> T:
    """What a call gives. One that takes longer is left behind in a thread, which ends with the process: a server whose
    answer has no end keeps every limit on the time between two of its bytes.

    Raises:
        TimeoutError: if it takes longer.
    """
    found: list[tuple[Any, BaseException | None]] = []

    def called() -> None:
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))

    thread = Thread(target=called, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise TimeoutError(f"it has not answered within {seconds:g} s")
    given, error = found[0]
    if error is not None:
        raise error
    return given


class Sparing:
    """A logger that ends no run: once its tracker fails, nothing more is sent to it.

    Attributes:
        tracker: its name.
        lost: whether it has failed.
    """

    tracker: str
    lost = False

    def send(self, metrics: Callable[[], None]) -> None:
        """Do it, unless the tracker has failed before."""
        if self.lost:
            return
        self.lost = True
        with spared(self.tracker, "metrics any more"):
            metrics()
            self.lost = False


@contextmanager
def environment(**defaults: str) -> Iterator[None]:
    """Variables for choices that a tracker offers no setting for; what the user has set stays."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def homes(folder: Path) -> dict[str, str]:
    """Variables by which W&B keeps its own files in a folder; none for a user with a home that can be written."""
    home = os.path.expanduser("~")
    if os.path.isabs(home) and os.access(home, os.W_OK):
        return {}
    own = {"WANDB_CONFIG_DIR": "config", "WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data", "NETRC": "netrc"}
    own |= {
        "XDG_CACHE_HOME": "cache",
        "XDG_DATA_HOME": "data",
    }  # its defaults are looked up even where they are not used
    return {name: str(folder.absolute() / ".home" / place) for name, place in own.items()}


def told(line: str) -> None:
    """One line on standard error."""
    print(line, file=sys.stderr)


def first_line(error: Exception) -> str:
    """What an error says first."""
    return str(error).strip().partition("\n")[0].rstrip(".")

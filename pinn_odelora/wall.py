"""The time on the wall: how long this process has run, and whether there is room for another step before its end.

A scheduler ends a process at a time that is known from the start. With t seconds since the start of the process a step
is begun as long as

    t + (longest step so far) + (longest saving so far) < limit ,

where a step is all that happens from one to the next, measurements included and savings excluded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pinn_odelora.errors import RefusedValueError

_AFTER_COMMAND, _START = ")", 19
"""In /proc/<process>/stat: where the fields begin that hold no blanks, and which of them is the start, in ticks."""


def _now() -> float:
    """Seconds since the machine was started where that is known, with those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


_IMPORTED = _now()


def elapsed() -> float:
    """Seconds since this process was started; since this module was imported where the system does not tell."""
    began = _IMPORTED
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(_AFTER_COMMAND)[2]
        told = int(fields.split()[_START]) / os.sysconf("SC_CLK_TCK")
        began = told if told > 0 else began
    return max(_now() - began, 0.0)


def check_ahead(limit: float | None) -> None:
    """Refuse a limit that is over.

    Raises:
        RefusedValueError: with the time that the process has run.
    """
    if limit is not None and (so_far := elapsed()) >= limit:
        raise RefusedValueError("wall", limit, f"above {so_far:.1f}, the seconds that this process has run by now")


@dataclass
class Room:
    """What steps and savings take in this process.

    Attributes:
        step, save: seconds of the longest of each.
    """

    step: float = 0.0
    save: float = 0.0
    _began: float | None = field(default=None, repr=False)
    _saved: float = field(default=0.0, repr=False)

    def restart(self) -> None:
        """What happened since the last step was none of a run."""
        self._began = None

    def fits(self, limit: float) -> bool:
        """Whether another step, which begins here, ends before the limit, with its saving."""
        now = elapsed()
        if self._began is not None:
            self.step = max(self.step, now - self._began - self._saved)
        self._began, self._saved = now, 0.0
        return now + self.step + self.save < limit

    @contextmanager
    def saving(self) -> Iterator[None]:
        """What runs inside saves the state."""
        begun = elapsed()
        yield
        seconds = elapsed() - begun
        self.save = max(self.save, seconds)
        self._saved += seconds

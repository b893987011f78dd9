"""What is asked of a disk to keep, counted; at one of these moments something happens."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

WRITERS = ("write", "fsync", "replace")
"""The functions of ``os`` by which ``pinn_odelora/files.py`` has something kept."""


class Disk:
    """Takes half of what the nth write would keep, or does nothing of it, and then has something happen.

    Args:
        put: ``put(os, name, function)`` exchanges a function, as ``setattr`` and pytest's ``monkeypatch.setattr`` do.
        at: the number of the write; 0 only counts.
        then: what happens.
        first: what happens before half of it is taken.

    Attributes:
        asked: how many there were.
    """

    def __init__(
        self,
        put: Callable[[Any, str, Any], object],
        at: int = 0,
        then: Callable[[], object] = lambda: None,
        first: Callable[[], object] = lambda: None,
    ):
        self.at, self.then, self.first, self.asked = at, then, first, 0
        for name in WRITERS:
            put(os, name, self._of(getattr(os, name), half=name == "write"))

    def _of(self, do: Callable[..., Any], half: bool) -> Callable[..., Any]:
        def asked(*given: Any) -> Any:
            self.asked += 1
            if self.asked != self.at:
                return do(*given)
            self.first()
            if half:
                file, data = given
                do(file, data[: len(data) // 2])
            return self.then()

        return asked


def full() -> None:
    """As where a disk has no space left."""
    raise OSError(errno.ENOSPC, "No space left on device")

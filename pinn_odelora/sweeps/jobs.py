"""A job of a sweep, and how it ended: as something that travels between processes."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        number: its place in the sweep.
        line: what was typed for it.
        run: does it; returns the error that ended it, None where it is done. It and what it returns can be pickled.
    """

    number: int
    line: str
    run: Callable[[], BaseException | None]


Outcome = BaseException | None
"""The error that ended a job."""


def portable(error: Exception) -> Exception:
    """The error with its traceback as a note, since pickling loses that; its text where it cannot be pickled."""
    text = "".join(traceback.format_exception(error)).rstrip()
    error.add_note(f"It was raised in another process:\n{text}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # Somebody else's exception can fail in any way, there or back.
        return RuntimeError(text)
    return error

"""The two ways a run may refuse: bad input before it starts, and numbers that stopped being finite.

A value that breaks a rule raises an error where the object that holds it is made, in the caller's terms: ``h is -1, but
it must be a finite number above 0 or None.`` in Python. Whoever built the object from names of their own, as the
command line does, says so by ``within``: ``integrator.h is -1, but ...``.
"""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Invalid input, in one sentence: what is wrong, and what is allowed."""


class RefusedValueError(InputError):
    """A named value that breaks its rule.

    Attributes:
        name: of the argument, as the caller knows it.
        value: what was given.
        allowed: what it must be, in words, those of Python (None, True) among them.
    """

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        self.name, self.value, self.allowed = name, value, allowed
        super().__init__(name, value, allowed)

    def __str__(self) -> str:
        said = repr(self.value)
        # Networks and arrays fill lines.
        said = f"of type {type(self.value).__name__}" if "\n" in said else said
        return f"{self.name} is {said}, but it must be {self.allowed}."


class UnwritableError(InputError):
    """A file that cannot be written: a full disk, a folder that is gone, a missing permission."""


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite; the message names the loss term and the layer."""


class DomainError(NonFiniteError):
    """A residual without a value at a finite solution; the message names the term, the point and what it read there."""


class OutOfTimeError(Exception):
    """The time on the wall was over before what was to be done; nothing of it is kept."""


class ChangedWarning(UserWarning):
    """What a run was made of has changed since."""


def unknown(what: str, name: object, allowed: Iterable[object], advice: str = "") -> InputError:
    """The sentence for a name that does not exist, with the nearest existing name as a guess."""
    names = sorted(map(str, allowed))
    guess = get_close_matches(str(name), names, n=1)
    meant = f" (did you mean {guess[0]!r}?)" if guess else ""
    return InputError(f"Unknown {what} {str(name)!r}{meant}; allowed: {', '.join(names) or 'none'}{advice}.")


def cause(error: BaseException) -> str:
    """An error of somebody else's code in words: its kind, what it says, and the line that raised it."""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    first = next((line.strip() for line in said.splitlines() if line.strip()), "").rstrip(".:")
    place = place_of(error)
    return ": ".join(filter(None, (type(error).__name__, first))) + (f" ({place})" if place else "")


def place_of(error: BaseException) -> str:
    """File and line of somebody else's code that raised an error, the user's own before that of a package they call;
    empty where it came from Python or from here.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours, python = f"{Path(__file__).parent}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}"
    packages = f"{sysconfig.get_path('purelib')}{os.sep}"
    own = [(file, n) for file, n in lines if not file.startswith(("<", ours, python, packages))]
    called = [(file, n) for file, n in lines if file.startswith(packages) and not file.startswith(ours)]
    found = own[-1:] or called[:1]
    return f"{Path(found[0][0]).name}, line {found[0][1]}" if found else ""


@contextmanager
def within(prefix: str) -> Iterator[None]:
    """Name refused values by the keys of whoever builds the object: ``h`` becomes ``<prefix>.h``."""
    try:
        yield
    except RefusedValueError as refused:
        name = f"{prefix}.{refused.name}" if prefix else refused.name
        raise RefusedValueError(name, refused.value, refused.allowed) from None

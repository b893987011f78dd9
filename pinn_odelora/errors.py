"""The two ways a run may refuse: bad input before it starts, and numbers that stopped being finite."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input, said in one sentence: what was wrong, and what is allowed."""


class NonFiniteError(FloatingPointError):
    """A loss or gradient that is NaN or infinite; the message names the loss term and the layer."""


def unknown(what: str, name: object, allowed: Iterable[object], advice: str = "") -> InputError:
    """The sentence for a name that does not exist, with the nearest existing name as a guess."""
    names = sorted(map(str, allowed))
    guess = get_close_matches(str(name), names, n=1)
    meant = f" (did you mean {guess[0]!r}?)" if guess else ""
    return InputError(f"Unknown {what} {str(name)!r}{meant}; allowed: {', '.join(names) or 'none'}{advice}.")

"""What a value may be: in words for a refusal, and as a function that reads it.

A class states the rules of its settings once, in ``__post_init__``:

    check(self, h=number(above=0) | null, stages=whole(1, 1000))

so that Python and the command line refuse the same values, each by the name it has there (``errors.within``).
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable
from functools import reduce
from numbers import Real
from operator import or_
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pinn_odelora.errors import RefusedValueError


class Rule(NamedTuple):
    """``allowed`` in words; ``read`` gives the value as the program wants it, or raises ``ValueError``."""

    allowed: str
    read: Callable[[Any], Any]

    def __or__(self, other: Rule) -> Rule:
        def read(value: Any) -> Any:
            try:
                return self.read(value)
            except ValueError:
                return other.read(value)

        return Rule(f"{self.allowed} or {other.allowed}", read)

    def check(self, name: str, value: Any) -> Any:
        """The value as read.

        Raises:
            RefusedValueError: if it is not allowed.
        """
        try:
            return self.read(value)
        except ValueError:
            raise RefusedValueError(name, value, self.allowed) from None


def check(owner: Any, **rules: Rule) -> None:
    """Read the named settings of an object by their rules; what a rule reads (1e4 as 10000) takes the value's place.

    Raises:
        RefusedValueError: for the first that is not allowed.
    """
    for name, rule in rules.items():
        # A frozen dataclass is set up here, in its ``__post_init__``.
        object.__setattr__(owner, name, rule.check(name, getattr(owner, name)))


def _rule(allowed: str, holds: Callable[[Any], bool], read: Callable[[Any], Any] = lambda value: value) -> Rule:
    def checked(value: Any) -> Any:
        if not holds(value):
            raise ValueError
        return read(value)

    return Rule(allowed, checked)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def number(above: float = -math.inf, least: float = -math.inf) -> Rule:
    """A finite number, with an exclusive or an inclusive lower bound."""
    bound = f" above {above:g}" if math.isfinite(above) else f" of at least {least:g}" if math.isfinite(least) else ""
    return _rule(f"a finite number{bound}", lambda value: _is_number(value) and value > above and value >= least)


def whole(least: float = -math.inf, most: int = 2**63 - 1) -> Rule:
    """A whole number with inclusive bounds, of 64 bits at most; 1e4 is one, and is read as the integer."""
    bound = f" of at least {least:g}" if math.isfinite(least) else ""
    bound += f" and at most {most}" if most < 2**63 - 1 else ""
    return _rule(
        f"a whole number{bound}", lambda value: _is_number(value) and least <= value == int(value) <= most, int
    )


def one_of(*choices: Any) -> Rule:
    """One of a few values, of the same type."""
    listed = ", ".join(map(str, choices[:-1])) + " or " * (len(choices) > 1) + str(choices[-1])
    return _rule(listed, lambda value: any(value == c and type(value) is type(c) for c in choices))


def instance_of(kind: type, example: str) -> Rule:
    """An object of a class, such as the one of the example."""
    return _rule(f"a {kind.__name__}, such as {example}", lambda value: isinstance(value, kind))


def list_of(rule: Rule, plural: str, length: int | None = None) -> Rule:
    """A list or tuple, each entry by the same rule; it is read as a tuple.

    Args:
        rule: of an entry.
        plural: what the entries are, in words.
        length: how many there must be, if that is fixed.
    """

    def holds(value: Any) -> bool:
        return isinstance(value, list | tuple) and length in (None, len(value))

    return _rule(f"a list of {plural}", holds, lambda value: tuple(map(rule.read, value)))


def fractions(n: int) -> Rule:
    """A list of so many numbers in [0, 1)."""
    return list_of(below_one, f"{n} numbers, each at least 0 and below 1", n)


def _absolute(path: str | Path) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:  # a home folder of nobody
        raise ValueError(str(error)) from None


def _is_file(path: str | Path) -> bool:
    try:
        return Path(_absolute(path)).is_file()
    except OSError:  # a name that is too long, a folder that cannot be looked into
        return False


part = _rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
below_one = _rule("a number of at least 0 and below 1", lambda value: _is_number(value) and 0 <= value < 1)
boolean = _rule("True or False", lambda value: isinstance(value, bool))
null = _rule("None", lambda value: value is None)
seed = whole(0, 2**32 - 1)
# A name like 007 arrives as a number.
text = _rule("text", lambda value: isinstance(value, str) or _is_number(value), str)
path = _rule("a path", lambda value: isinstance(value, str | Path) and value != "", _absolute)
file = _rule("the path of an existing file", lambda value: isinstance(value, str | Path) and _is_file(value), _absolute)
PLAIN = {int: whole(), float: number(), bool: boolean, str: text, types.NoneType: null}


def signature(target: Callable[..., Any]) -> inspect.Signature:
    """With evaluated annotations, unless they name what only a type checker imports, and without the parameters that
    the class keeps to itself, those of its ``internal``.
    """
    try:
        found = inspect.signature(target, eval_str=True)
    except NameError:
        found = inspect.signature(target)
    internal = getattr(target, "internal", ())
    return found.replace(parameters=[x for name, x in found.parameters.items() if name not in internal])


def annotated(annotation: Any) -> Rule | None:
    """What an annotation of a parameter tells of its value; None if it tells nothing."""
    if get_origin(annotation) is Literal:
        return one_of(*get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        rules = [*map(annotated, get_args(annotation))]
        return None if None in rules else reduce(or_, rules)
    return PLAIN.get(annotation) if isinstance(annotation, type) else None

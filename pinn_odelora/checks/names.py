"""The names of a problem: those of coordinates and fields, by which residuals ask, and those of its attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError
from pinn_odelora.points import Points

RESERVED = {*dir(Field), *dir(Points), "points", "fields", "coords"}
"""What fields and points answer to already."""


def check_names(key: str, names: object, advice: str = "") -> tuple[str, ...]:
    """The names of coordinates or fields.

    Args:
        key: ``coords`` or ``fields``.
        names: what stands there.
        advice: what to say of a name that occurs twice.

    Raises:
        InputError: if there is none, one occurs twice, or one could not be asked for by name.
    """
    listed = tuple(names) if isinstance(names, Sequence | Mapping) else ()
    if not listed or not all(isinstance(name, str) and name.isidentifier() for name in listed):
        raise InputError(f"{key} is {names!r}, but it must be a string of letters or a sequence of names.")
    for name in listed if len(set(listed)) < len(listed) else ():
        if listed.count(name) > 1:
            raise InputError(f"{key} is {names!r}, but it may have {name!r} only once{advice}.")
    for name in listed:
        # What is derived from a field is written field_coordinates.
        if name.startswith("_") or (key == "fields" and "_" in name) or name in RESERVED:
            why = "_ stands before coordinates, as in u_xx" if "_" in name else "it has another meaning there"
            raise InputError(
                f"{key} has {name!r}, but a residual could not ask for it by that name, since {why}; choose another."
            )
    return listed


def check_apart(coords: Sequence[str], fields: Sequence[str]) -> None:
    """Coordinates and fields have names of their own.

    Raises:
        InputError: if two share one.
    """
    for name in fields:
        if name in coords:
            raise InputError(f"{name} is both a coordinate and a field, but names must differ.")


def _is_names(value: object) -> bool:
    return isinstance(value, str | tuple | list)


def _is_region(value: object) -> bool:
    return hasattr(value, "sample")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


DATA: Mapping[str, Callable[[object], bool]] = {
    "coords": _is_names,
    "fields": _is_names,
    "supports": _is_names,
    "enforced": _is_names,
    "periods": lambda value: isinstance(value, Mapping),
    "scales": lambda value: value is None or isinstance(value, Mapping),
    "accuracy": _is_number,
    "region": _is_region,
    "regular": _is_region,
}
"""Attributes of a problem by what they may be."""
METHODS = ("terms", "reference", "ansatz", "embed", "region")


def check_spelling(cls: type) -> None:
    """No attribute of a class is a misspelt one of a problem: it would be ignored.

    Only what has the right kind counts, and only where the class does not have the attribute that was meant.

    Raises:
        InputError: with what was meant.
    """
    own = vars(cls)
    annotated = own.get("__annotations__", {})
    fields = {name for name, kind in annotated.items() if "ClassVar" not in str(kind)}
    for name, value in own.items():
        if name.startswith("_") or name in fields:
            continue
        function = inspect.isfunction(value) or isinstance(value, property)
        known = METHODS if function else [key for key, holds in DATA.items() if holds(value)]
        missing = [key for key in known if key not in own]
        if name not in (*DATA, *METHODS) and (meant := get_close_matches(name, missing, n=1, cutoff=0.85)):
            raise InputError(f"{cls.__name__} has {name}, which means nothing to a problem; did you mean {meant[0]}?")


def undeclared(cls: type) -> str | None:
    """The name of a parameter of a class that is no dataclass, and therefore holds the declaration itself."""
    found: dict[str, Any] = {key: x for c in cls.__mro__ for key, x in vars(c).items()}
    return next((key for key, x in found.items() if "parameter" in getattr(x, "metadata", ())), None)

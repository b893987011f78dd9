"""Arguments of the command line, ``key=value``, that Hydra's grammar does not take as one types them.

Hydra reads a value as a small language, in which ``=``, brackets, commas, quotes, ``~`` and every letter that is not
ASCII mean something or nothing: ``epoch=9-step=100.ckpt``, ``données.csv``, ``a(1).csv``. Such a value is put in quotes
if it is that of a key which holds a path, or if it names a file that exists, or if it has letters that Hydra does not
know. Keys are words of ASCII letters; other letters are spelled, κ as ``_u3ba_``, and read back from the configuration.

``given`` writes a key with a path so that it can be pasted into a shell.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATHS = ("output_dir", "resume", "data.file", "pretrain.checkpoint", "pretrain.cache")
"""The keys that hold a path."""
_ARGUMENT = re.compile(r"(\+{0,2})([^\W\d][\w.\-@/]*)=(.*)", re.DOTALL)
_PLAIN = re.compile(r"[\w/\-\\+.$%*@?|: ]*", re.ASCII)
"""Values that Hydra takes as they are."""
_ORDINARY = re.compile(r"(?!(?:true|false|null|nan|inf)$)[a-z_./][a-z0-9_./-]*", re.IGNORECASE)
"""A path that Hydra reads as it is."""
_QUOTED = re.compile(r"""(?P<q>["'])(?:(?!(?P=q))[^\\]|\\.)*(?P=q)""", re.DOTALL)
_FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list|str|json_str)\(.*\)", re.DOTALL)
_ELEMENT = re.compile(rf"(?:{_QUOTED.pattern}|[^,])*", re.DOTALL)
_SPELLED = re.compile(r"_u([0-9a-f]{2,6})_")


def readable(arguments: Sequence[str]) -> list[str]:
    """The arguments with keys and values as Hydra reads them; what it reads already is left alone.

    Args:
        arguments: of the program, options of Hydra among them; with ``-m`` a comma stands between values, unless it is
            in the name of a file that exists.
    """
    several = bool({"-m", "--multirun"} & {*arguments})
    return [_readable(argument, several) for argument in arguments]


def _readable(argument: str, several: bool) -> str:
    found = None if argument.startswith("-") else _ARGUMENT.fullmatch(argument)
    if not found:
        return argument
    sign, key, value = found.groups()
    return f"{sign}{spelled(key)}={_value(key, value, several)}"


def _value(key: str, value: str, several: bool) -> str:
    is_path = key in PATHS
    left = not value or value.lower() == "null" or value.startswith("${") or _FUNCTION.fullmatch(value)
    if left or _QUOTED.fullmatch(value) or not (is_path or _unknown(value)):
        return value
    if _ORDINARY.fullmatch(value):
        return value
    if "," not in value or _exists(value) or (is_path and not several and not _all_exist(value)):
        return quoted(value)
    return ",".join(_value(key, part, several) for part in _parts(value))


def _unknown(value: str) -> bool:
    """Whether Hydra cannot read a value that was meant as text: one list, map or function is meant as such."""
    if _PLAIN.fullmatch(value):
        return False
    return _exists(value) or not (value.isascii() or re.search(r"[\[\]{}()'\"]", value))


def _parts(value: str) -> list[str]:
    """What stands between the commas that are not in quotes."""
    parts, place = [], 0
    while place <= len(value):
        found = _ELEMENT.match(value, place)
        parts.append(found[0])
        place = found.end() + 1
    return parts


def _exists(value: str) -> bool:
    return os.path.exists(os.path.expanduser(value))


def _all_exist(value: str) -> bool:
    return all(map(_exists, _parts(value)))


def quoted(value: str) -> str:
    """A value in Hydra's quotes, inside which only a quote has to be escaped, and the backslashes before one."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value) + "'"


def spelled(key: str) -> str:
    """A key in ASCII letters, from the letters that Python takes for the same name: micro and mu are one."""
    return re.sub(r"[^\x00-\x7f]", lambda letter: f"_u{ord(letter[0]):x}_", unicodedata.normalize("NFKC", key))


def unspelled(text: str) -> str:
    """A key, or a sentence on one, as it was typed."""
    return _SPELLED.sub(lambda code: chr(int(code[1], 16)), text)


def restore(node: Any, keys: Iterable[str]) -> None:
    """Give keys of a configuration their own letters back, in place.

    Args:
        node: maps in maps, in which the keys are spelled.
        keys: in full, as they were typed.
    """
    for key in (key for key in keys if not key.isascii()):
        inner = node
        for word in key.split("."):
            if (code := spelled(word)) != word and code in inner:
                inner[word] = inner.pop(code)
            inner = inner[word]


@contextmanager
def typed() -> Iterator[None]:
    """Hydra reads what was typed from ``sys.argv``, which holds it in a readable form meanwhile."""
    before = sys.argv[:]
    sys.argv[1:] = readable(before[1:])
    try:
        yield
    finally:
        sys.argv[:] = before


def given(key: str, path: str | Path) -> str:
    """``key=path`` as one would type it here in a shell."""
    value = os.fspath(path)
    ambiguous = "," in value or value.lower() == "null" or value.startswith("${")
    harmless = not (ambiguous or _FUNCTION.fullmatch(value) or _QUOTED.fullmatch(value))
    return shlex.quote(f"{key}={value if harmless else quoted(value)}")

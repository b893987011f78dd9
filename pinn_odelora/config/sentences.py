"""Invalid input in one sentence, in the words of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from pinn_odelora.errors import InputError, NonFiniteError, RefusedValueError, unknown
from pinn_odelora.runs.configuration import RENAMED, renamed


def of_run(error: BaseException) -> str | None:
    """The sentence for an error that a run ended with; None if it is nothing that a user could have avoided."""
    if isinstance(error, RefusedValueError):
        value = yaml.safe_dump(error.value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
        allowed = re.sub(r"\b(None|True|False)\b", lambda word: word[0].lower().replace("none", "null"), error.allowed)
        return _line(f"{error.name} is {value}, but it must be {allowed}.")
    return _line(str(error)) if isinstance(error, InputError | NonFiniteError) else None


def of_composition(error: Exception) -> str:
    """The sentence for a command line that Hydra could not make a configuration of."""
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        reason = first_line(error.message.removeprefix(f"Error parsing override {error.override!r}"))
        return f"Cannot read the argument {error.override!r} ({reason}); arguments read key=value."
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return str(unknown(group, name, error.options))
    missing = isinstance(cause, ConfigAttributeError | ConfigKeyError)
    if missing and not re.match(r"hydra(?!\.launcher\.)", str(cause.full_key)):
        return str(unknown_key(str(cause.full_key), cause.parent_node))
    if found := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        return f"{found[1]} holds several values: add -m to run one after the other, or write a list as key=[a,b]."
    if str(error).startswith("Config group override must be"):
        return "A group is chosen by the name of a member, as problem=heat; --help lists groups and members."
    reasons = [first_line(str(e)) for e in (error, cause) if e is not None and str(e)]
    return f"{': '.join(reasons) or type(error).__name__}."


def unknown_key(key: str, siblings: Any) -> InputError:
    """The error for a key that a run does not have, with the one that may have been meant.

    Args:
        key: in full.
        siblings: the keys there are in its place, or the part of the configuration that holds them.
    """
    if key in RENAMED:
        return InputError(renamed(key))
    prefix, _, name = key.rpartition(".")
    leaves = [full for full in _leaves(siblings) if full.endswith(f".{name}")]
    advice = f"; perhaps {' or '.join(leaves)} was meant" if leaves and not prefix else ""
    return unknown(f"key of {prefix}:" if prefix else "key", name, {*siblings} - {"hydra", "_target_"}, advice)


def _leaves(node: Any, prefix: str = "") -> Iterable[str]:
    """The keys of single values in a part of the configuration, in full."""
    if not isinstance(node, Mapping):
        return [prefix]
    return [leaf for name in node if name != "hydra" for leaf in _leaves(node[name], f"{prefix}.{name}".strip("."))]


def _line(text: str) -> str:
    return " ".join(text.split())


def first_line(text: str) -> str:
    """The first line that says something, without its full stop."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".")

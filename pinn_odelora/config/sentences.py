"""What is said, in one sentence, when a request is refused."""

from __future__ import annotations

import re

from hydra.errors import InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from pinn_odelora.config.keys import GROUPS, unknown_key
from pinn_odelora.errors import InputError, NonFiniteError, unknown


def one_line(text: str) -> str:
    return " ".join(text.split())


def of_run(error: BaseException) -> str | None:
    """The sentence for an error that a run ended with; None if it is nothing that a user could have avoided."""
    if isinstance(error, InputError | NonFiniteError):
        return one_line(str(error))
    if isinstance(error, InstantiationException):
        return one_line(str(error)) if error.__cause__ is None else _of_loading(error.__cause__)
    return None


def _of_loading(error: BaseException) -> str | None:
    """As ``of_run``, and for a dotted name that leads nowhere."""
    if isinstance(error, ImportError):
        return f"{_first(str(error)).rstrip(':')}, but it must be the dotted name of something that exists."
    return of_run(error)


def of_composition(error: Exception) -> str:
    """The sentence for a command line that Hydra could not make a configuration of."""
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        reason = _first(error.message.removeprefix(f"Error parsing override {error.override!r}"))
        return f"Cannot read the argument {error.override!r} ({reason}); arguments read key=value."
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return str(unknown(group, name, error.options))
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and not str(cause.full_key).startswith("hydra"):
        return str(unknown_key(cause.full_key))
    if found := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        return f"{found[1]} holds several values: add -m to run one after the other, or write a list as key=[a,b]."
    if str(error).startswith("Config group override must be"):
        return f"Each of {', '.join(GROUPS)} is chosen by the name of a member, as problem=heat; --help lists them."
    reasons = [_first(str(e)) for e in (error, cause) if e is not None and str(e)]
    return f"{': '.join(reasons) or type(error).__name__}."


def _first(text: str) -> str:
    """The first line that says something, without its full stop."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".")

"""The command line: from what was typed to a configuration that is worth running, or to one sentence why not.

    application      what Hydra is told, and the text of ``--help``
    program          the start of a run, and how it ends
    request          what was typed
    settings         which class holds which keys
    components       the objects that ``_target_`` names
    checks           every check before a run starts
    family           the checks of a family of solutions
    folders          where a run leaves its files, and continuing it
    sentences        invalid input in words
    build, running   the objects that a configuration names, and the run itself
    solving          the run that solves a family
    suggesting       advice on the rank, before a run
    load             a finished run as a function, a finished family

A rule on a value stands in the class that holds the value; here it only gets the name of a key. torch is imported by
the checks of what needs it, so that ``--help`` and most refusals answer at once; the names below are loaded on first
use, so that ``load`` needs no Hydra where it builds nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "begin": "pinn_odelora.config.program",
    "register": "pinn_odelora.config.application",
    "run": "pinn_odelora.config.program",
    "save_config": "pinn_odelora.runs.configuration",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

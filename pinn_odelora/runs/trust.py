"""Which names in the configuration of a run folder may be imported and called.

A configuration that is typed is a program of the user's. One that lies in a folder is data of whoever made the folder,
and what it names is looked up here first, before anything is imported or called:

    problem        a class in ``problems``, in this package, or in a package that declares problems by entry points
    net            a class in ``pinn_odelora.nets`` or ``torch.nn``, a class or function in ``problems``
    method         a function behind ``pinn_odelora.methods``
    integrator     a class in ``pinn_odelora.integrators``
    inside these   a network, layer, optimiser or tableau of this package or torch

and beyond these what lies in modules that the caller names, ``trust=["mine"]``. A name is known by where it leads, too:
``pinn_odelora.files.os.remove`` begins in this package, and ends elsewhere. That what is called gives a problem, a
network, a method or an integrator is a rule of the groups, whoever wrote the configuration.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from pinn_odelora.errors import InputError, RefusedValueError, cause
from pinn_odelora.plain_files import read_yaml
from pinn_odelora.registry import targets
from pinn_odelora.runs.folder import CONFIG

HOMES: Mapping[str, Sequence[str]] = {
    "problem": ("problems", "pinn_odelora"),
    "net": ("pinn_odelora.nets", "problems", "torch.nn"),
    "method": ("pinn_odelora.methods", "pinn_odelora.optim", "pinn_odelora.rivals"),
    "integrator": ("pinn_odelora.integrators",),
}
"""The modules of what each group names, with all that are below them."""
INSIDE = ("pinn_odelora.nets", "pinn_odelora.integrators", "problems", "torch.nn", "torch.optim")
"""The modules of what an argument may be."""
OWN = ("problems",)
"""Modules of the user's, whose functions may be called, too."""
ATTRIBUTE = "hydra.utils.get_object"
"""Calls nothing, and gives what is at ``path``."""
TABLEAU = re.compile(r"pinn_odelora\.integrators\.tableau\.[A-Z]\w*")
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class UntrustedError(InputError):
    """A name of code that a configuration in a folder may not call by itself.

    Attributes:
        module: that has to be named by the caller.
    """

    def __init__(self, key: str, path: str) -> None:
        self.module = path.partition(".")[0]
        super().__init__(
            f"{key}._target_ is {path}, which a run folder may not call by itself; if you trust {self.module!r}, add "
            f"trust={self.module!r} (--trust {self.module} for predict, family, export and dashboard)."
        )


def trusted(trust: str | Sequence[str] | None) -> tuple[str, ...]:
    """The modules that a caller names.

    Raises:
        InputError: for what is not the name of a module.
    """
    names = () if trust is None else (trust,) if isinstance(trust, str) else tuple(trust)
    for name in names:
        if not (isinstance(name, str) and DOTTED.fullmatch(name)):
            raise RefusedValueError("trust", name, "the name of a module, as mine or mine.waves")
    return names


def check_names(key: str, settings: Any, trust: Sequence[str] = ()) -> None:
    """Refuse what a configuration in a folder may not call, before it is imported.

    Args:
        key: where the part stands, ``problem`` or ``problem.region``.
        settings: the part, of plain values.
        trust: modules that the caller has named.

    Raises:
        InputError: for a name of another module, or one that leads to nothing or elsewhere.
    """
    if isinstance(settings, Mapping):
        if "_target_" in settings:
            _check_name(key, settings, trust)
        for name, value in settings.items():
            check_names(f"{key}.{name}", value, trust)
    elif isinstance(settings, list | tuple):
        for k, value in enumerate(settings):
            check_names(f"{key}.{k}", value, trust)


def others(folder: Path) -> list[str]:
    """The modules that a caller has to name for the run in a folder; none for one that cannot be read."""
    try:
        config = read_yaml(folder / CONFIG)
    except (OSError, ValueError):
        return []
    parts = config if isinstance(config, dict) else {}
    found = [(key, name) for key in HOMES for name in _names(parts.get(key))]
    return sorted({name.partition(".")[0] for key, name in found if not _is_in(name, (*_homes(key), *INSIDE))})


def argument(folder: Path) -> str:
    """The same as it is typed behind ``resume=…``; empty where there are none."""
    names = others(folder)
    return f" trust={names[0]}" if len(names) == 1 else f" 'trust=[{','.join(names)}]'" if names else ""


def _check_name(key: str, settings: Mapping[str, Any], trust: Sequence[str]) -> None:
    path, homes = settings["_target_"], _homes(key)
    if not (isinstance(path, str) and DOTTED.fullmatch(path)):
        raise RefusedValueError(f"{key}._target_", path, "the dotted name of a class or function")
    if path == ATTRIBUTE and TABLEAU.fullmatch(str(settings.get("path"))):
        return
    if _is_in(path, trust):
        return
    if not _is_in(path, homes):
        raise UntrustedError(key, path)
    try:
        target = resolve_name(path)
    except Exception as error:  # A problem file that somebody is writing can fail in any way.
        raise InputError(f"{key}._target_ is {path}, which cannot be imported: {cause(error)}.") from error
    module = getattr(target, "__module__", None)
    if not (isinstance(module, str) and _is_in(module, homes)):
        raise UntrustedError(key, path)
    # Functions of this package and of torch may do more than make an object; those behind methods do not.
    if not inspect.isclass(target) and key != "method" and not _is_in(module, OWN):
        raise UntrustedError(key, path)


def _homes(key: str) -> Sequence[str]:
    if key not in HOMES:
        return INSIDE
    installed = [path.partition(".")[0] for path in targets().values()] if key == "problem" else []
    return (*HOMES[key], *installed)


def _is_in(path: str, modules: Sequence[str]) -> bool:
    return any(f"{path}.".startswith(f"{module}.") for module in modules)


def _names(node: Any) -> Iterator[str]:
    """All that a part of a configuration names, what is inside of it included."""
    if isinstance(node, Mapping):
        if isinstance(path := node.get("_target_"), str) and path != ATTRIBUTE:
            yield path
        for value in node.values():
            yield from _names(value)

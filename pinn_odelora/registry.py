"""The problems that there are: those of this repository, and those that installed packages bring.

A module of the top-level package ``problems`` is a problem of its name. A package declares its own as entry points,

    [project.entry-points."pinn_odelora.problems"]
    wave = "acme_waves.wave:Wave"

a name and the class. Names are found without importing anything; torch is imported with the first class.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pinn_odelora.errors import InputError, cause, unknown

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem

GROUP = "pinn_odelora.problems"
"""Of entry points."""
NAME = re.compile(r"[A-Za-z_][\w-]*")
"""Names that can be written on a command line as they are."""


def problem_classes() -> dict[str, type[Problem]]:
    """Every problem class by its name: this repository's first, then those of installed packages.

    Raises:
        InputError: if two problems have one name, or the entry point of a package gives no problem.
    """
    installed = _installed()
    return {name: _own_class(name) for name in _own()} | {name: _loaded(entry) for name, entry in installed.items()}


def problem_class(name: str) -> type[Problem]:
    """The problem class of that name; no other is imported.

    Raises:
        InputError: if there is no problem of that name, with the nearest one as a guess, or it cannot be imported.
    """
    own, installed = _own(), _installed()
    if name in own:
        return _own_class(name)
    if name not in installed:
        raise unknown("problem", name, [*own, *installed])
    return _loaded(installed[name])


def targets() -> dict[str, str]:
    """The dotted name of the class of every problem that an installed package brings; none of them is imported.

    Raises:
        InputError: if two problems have one name, or an entry point names no class.
    """
    return {name: f"{entry.module}.{entry.attr}" for name, entry in _installed().items()}


def _own() -> list[str]:
    """The names of the modules of ``problems``, without importing them."""
    spec = find_spec("problems")
    places = None if spec is None else spec.submodule_search_locations
    return sorted(module.name for module in pkgutil.iter_modules(places or []) if not module.name.startswith("_"))


def _own_class(name: str) -> type[Problem]:
    from pinn_odelora.formulation import Problem

    try:
        module = importlib.import_module(f"problems.{name}")
    except InputError:
        raise
    except Exception as error:  # A file that somebody is writing can fail in any way.
        raise InputError(f"problems/{name}.py cannot be imported: {cause(error)}.") from error
    classes = [found for found in vars(module).values() if inspect.isclass(found) and issubclass(found, Problem)]
    defined = [found for found in classes if found.__module__ == module.__name__]
    if not defined:
        raise InputError(f"problems/{name}.py has no problem: it must define a subclass of pinn_odelora.Problem.")
    return defined[-1]


def _installed() -> dict[str, EntryPoint]:
    """The entry points of installed packages by name, each name once."""
    known = {name: f"problems/{name}.py" for name in _own()}
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, _package(entry))):
        source = f"the package {_package(entry)}"
        if not NAME.fullmatch(entry.name):
            raise InputError(
                f"The package {_package(entry)} names a problem {entry.name!r}, but a name has letters, digits, _ and "
                "- only."
            )
        if not entry.attr:
            raise InputError(f"{_declares(entry)}, but it must be a class, as in acme_waves.wave:Wave.")
        if entry.name in known:
            raise InputError(
                f"The problem {entry.name} comes both from {known[entry.name]} and from {source}, but a name may have "
                "only one source: rename the problem or uninstall a package."
            )
        known[entry.name], found[entry.name] = source, entry
    return found


def _loaded(entry: EntryPoint) -> type[Problem]:
    from pinn_odelora.formulation import Problem

    try:
        found = entry.load()
    except Exception as error:  # Importing a package may fail in any way.
        said = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
        raise InputError(f"{_declares(entry)}, which cannot be imported: {said}.") from error
    if not (inspect.isclass(found) and issubclass(found, Problem)):
        raise InputError(f"{_declares(entry)}, but that is no subclass of pinn_odelora.Problem.")
    return found


def _declares(entry: EntryPoint) -> str:
    return f"The package {_package(entry)} declares the problem {entry.name} as {entry.value}"


def _package(entry: EntryPoint) -> str:
    return "without a name" if entry.dist is None else entry.dist.name

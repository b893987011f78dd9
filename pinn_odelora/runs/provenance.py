"""What a run was made of: digests (SHA-256) of the files that its numbers depend on, so that a later change of them is
not silent.

``provenance.json`` lists the modules that define the classes of problem and network, and what these import, as far as
they are files of the user's own; the functions given to ``pinn_odelora.problem``, and classes of a script or notebook,
by their source; the files of measurements and weights; of an installed package that defines problem or network the
version; and of this package the version and a digest of all its Python files, which may be edited where it is installed
from a checkout. Modules and functions are kept in ``code/`` as they were, so that

    PYTHONPATH=my_run/code python train.py resume=my_run

goes on with those where the present ones are elsewhere. What a function reads at run time is not seen, nor are values
that it takes from around it. A run without the file was made before there were digests.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

import pinn_odelora
from pinn_odelora.equation import Equation
from pinn_odelora.errors import ChangedWarning
from pinn_odelora.files import write_bytes, write_json, write_text
from pinn_odelora.formulation import Problem
from pinn_odelora.manifest import sha256
from pinn_odelora.plain_files import read_mapping, read_yaml
from pinn_odelora.pretraining.cache import package as sources
from pinn_odelora.runs.folder import CODE, CONFIG, PROVENANCE, SUMMARY
from pinn_odelora.runs.messages import near
from pinn_odelora.user_modules import MAIN, file_of, installed, modules

APART = ("torch",)
"""Packages whose versions every summary has."""


def record(folder: Path, problem: Problem, net: nn.Module, files: Iterable[str | Path | None]) -> None:
    """Write down what a run is made of, and keep its code.

    Args:
        folder: of the run.
        problem, net: what is solved, by which network.
        files: data and weights that it reads; None for none.

    Raises:
        InputError: if the folder cannot be written.
    """
    kept: dict[str, dict[str, Any]] = {"modules": {}, "source": {}, "files": {}, "packages": {}}
    for module in modules(problem, net, _targets(folder)):
        path = file_of(module)
        copy = f"{CODE}/{'/'.join(_place(module, path))}"
        write_bytes(folder / copy, path.read_bytes())
        kept["modules"][module.__name__] = {"path": str(path), "sha256": _digest(path), "copy": copy}
    for name, text in source(problem, net).items():
        copy = f"{CODE}/{_file_name(name)}.txt"
        write_text(folder / copy, text)
        kept["source"][name] = {"sha256": _sha256(text.encode()), "copy": copy}
    for path in (Path(file).absolute() for file in files if file is not None):
        kept["files"][str(path)] = {"sha256": _digest(path)}
    for package in {package for thing in (problem, net) if (package := _package(type(thing)))}:
        kept["packages"][package] = {"version": _version(package)}
    kept["packages"][pinn_odelora.__name__] = {"version": pinn_odelora.__version__, "sha256": _own_digest()}
    write_json(folder / PROVENANCE, kept)


def changed(folder: Path, problem: Problem | None = None, net: nn.Module | None = None) -> dict[str, Path | None]:
    """What is no longer as it was when the run in a folder was made, each with the copy of it in the folder, if any.

    What is no longer there is left out, as a file of measurements may be on another machine.

    Args:
        folder: of the run.
        problem, net: those that the run is reopened with, whose source can be compared.
    """
    try:
        kept = read_mapping(folder / PROVENANCE)
        modules, texts, files, packages = (kept[part] for part in ("modules", "source", "files", "packages"))
        found = [
            (Path(now).name, _digest(now), x["sha256"], x["copy"])
            for name, x in modules.items()
            if (now := file_of(sys.modules.get(name)) or Path(x["path"]))
        ]
        found += [(Path(name).name, _digest(Path(name)), x["sha256"], None) for name, x in files.items()]
        present = source(problem, net)
        found += [
            (name, _sha256(present[name].encode()) if name in present else None, x["sha256"], x["copy"])
            for name, x in texts.items()
        ]
        for name, x in packages.items():
            version = _version(name)
            found.append((f"{name} ({x['version']} then, {version} now)", version, x["version"], None))
            if "sha256" in x and version == x["version"]:
                found.append((f"{name} (its code, still {version})", _own_digest(), x["sha256"], None))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # of an earlier version, or damaged
    return {name: copy and folder / copy for name, now, then, copy in found if now is not None and now != then}


def sentence(folder: Path, problem: Problem | None = None, net: nn.Module | None = None) -> str:
    """What ``changed`` finds, in one sentence; empty where nothing is changed."""
    found = changed(folder, problem, net)
    if not found:
        return ""
    here = near(folder.absolute())
    copies = [near(copy.absolute()) for copy in found.values() if copy is not None]
    then = "" if not copies else f"; as it was then: {copies[0]}" if len(copies) == 1 else f"; as then in {here / CODE}"
    return f"{_has_changed(found)} since the run in {here} was made, and results may differ from its own{then}."


def sentence_on(folders: Iterable[str | Path]) -> str:
    """The same for all finished runs in or below folders, which are compared."""
    runs = [file.parent for folder in folders for file in sorted(Path(folder).rglob(SUMMARY))]
    found = [names for run in runs if (names := changed(run))]
    if not found:
        return ""
    if len(runs) == 1:
        return sentence(runs[0])
    since = f"{len(found)} of the {len(runs)} runs compared {'was' if len(found) == 1 else 'were'} made"
    said = _has_changed({name: None for names in found for name in names})
    return f"{said} since {since}, so that they need not be of the same problem or network as the others."


def warn(folder: Path, problem: Problem, net: nn.Module) -> None:
    """The sentence as a warning, to whoever loads a run."""
    if said := sentence(folder, problem, net):
        warnings.warn(said, ChangedWarning, stacklevel=4)


def _has_changed(names: Mapping[str, Any]) -> str:
    return f"{', '.join(names)} {'has' if len(names) == 1 else 'have'} changed"


# Code.


def _targets(folder: Path) -> Iterator[str]:
    """The modules of all that the configuration in a folder names, functions that make a network among them."""
    try:
        waiting = [read_yaml(folder / CONFIG)]
    except (OSError, ValueError):
        return
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += part.values()
            name = str(part.get("_target_", ""))
            while name and name not in sys.modules:
                name = name.rpartition(".")[0]
            yield name


def source(problem: Problem | None, net: nn.Module | None) -> dict[str, str]:
    """The source of functions that make an equation, by its name and theirs, and of classes of a script or notebook."""
    things: dict[str, Any] = {}
    if isinstance(problem, Equation):
        about = problem.declaration
        things |= {f"{about.name}.{name}": function for name, function in about.functions.items()}
    things |= {type(x).__qualname__: type(x) for x in (problem, net) if x is not None and type(x).__module__ == MAIN}
    found = {}
    for name, thing in things.items():
        with suppress(OSError, TypeError):  # typed into an interpreter, or no function of Python's
            found[name] = inspect.getsource(thing)
    return found


def _file_name(name: str) -> str:
    """A name as every system takes it for a file: ``main.<locals>.Net`` has characters that Windows does not."""
    return re.sub(r'[<>:"/\\|?*]', "", name)


def _place(module: ModuleType, path: Path) -> tuple[str, ...]:
    """Where a copy of a module is found by its name."""
    *above, last = module.__name__.split(".")
    return (*above, last, path.name) if path.stem == "__init__" else (*above, path.name)


def _package(cls: type) -> str | None:
    """The installed package that defines a class."""
    top = cls.__module__.partition(".")[0]
    file = file_of(sys.modules.get(cls.__module__))
    return top if file is not None and installed(file) and top not in APART else None


def _version(package: str) -> str | None:
    if package == pinn_odelora.__name__:
        return pinn_odelora.__version__
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return getattr(sys.modules.get(package), "__version__", None)


def _own_digest() -> str:
    """Of the Python files of this package."""
    return _sha256(json.dumps(sources()).encode())


def _digest(file: Path) -> str | None:
    """None for a file that is not there."""
    with suppress(OSError):
        return sha256(file)
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

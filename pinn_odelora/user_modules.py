"""The modules of the user's own that a problem and a network are made of, those that they import among them.

A module counts as the user's own if it is a file that belongs neither to Python, nor to an installed package, nor to
this one. What a function reads at run time is not seen.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

from torch import nn

import pinn_odelora
from pinn_odelora.formulation import Problem

MAIN = "__main__"
"""The module of a script or notebook, which may do much else besides defining a class."""
OWN = Path(pinn_odelora.__file__).parent


def modules(problem: Problem, net: nn.Module, others: Iterable[str]) -> list[ModuleType]:
    """The user's own modules that define the classes of problem and network, the others, and what all these import."""
    classes = [*type(problem).__mro__, *(cls for part in net.modules() for cls in type(part).__mro__)]
    waiting = [*others, *(cls.__module__ for cls in classes if cls.__module__ != MAIN)]
    found: dict[str, ModuleType] = {}
    while waiting:
        module = sys.modules.get(name := waiting.pop())
        if name not in found and module is not None and (file := file_of(module)) and not installed(file):
            found[name] = module
            waiting += [name.rpartition(".")[0], *_imported(file, module)]
    return [found[name] for name in sorted(found)]


def _imported(file: Path, module: ModuleType) -> Iterator[str]:
    """The names of what a module may import: modules, or what is in them."""
    with suppress(SyntaxError, ValueError, OSError):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                name = "." * node.level + (node.module or "")
                with suppress(ImportError):
                    base = resolve_name(name, module.__package__) if node.level else name
                    yield from [base, *(f"{base}.{alias.name}" for alias in node.names)]


def file_of(module: ModuleType | None) -> Path | None:
    """The source of a module."""
    found = getattr(module, "__file__", None)
    return Path(found) if found and found.endswith(".py") else None


def installed(file: Path) -> bool:
    """Whether a file is a part of Python, of an installed package, or of this one."""
    places = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib")]
    packages = {"site-packages", "dist-packages"} & {*file.parts}
    return bool(packages) or any(file.is_relative_to(place) for place in (OWN, *places))

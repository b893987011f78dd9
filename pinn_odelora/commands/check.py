"""python -m pinn_odelora check <problem>: what holds of a problem, in a table."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from pinn_odelora import registry
from pinn_odelora.errors import InputError, unknown


def run(what: str) -> int:
    """Print the table of every problem that is meant; 1 if something fails."""
    from rich.console import Console
    from rich.table import Table

    from pinn_odelora.contract.report import check

    console = Console(width=max(Console().width, 120))
    failed = False
    for title, problem in meant(what).items():
        found = check(problem)
        table = Table("what", "verdict", "found", title=title)
        for row in found.rows:
            table.add_row(*row)
        console.print(table, markup=False)
        failed = failed or not found.holds
    return int(failed)


def meant(what: str) -> dict[str, object]:
    """Problems, or classes of problems, by name.

    Args:
        what: the name of a problem or of a file in the current folder, the path of a file, or ``module.Class``.

    Raises:
        InputError: if there is none, or it cannot be imported.
    """
    file = Path(what)
    if what.endswith(".py") or file.is_file():
        return _problems(_module_at(file))
    if "." in what:
        module, _, name = what.rpartition(".")
        found = _imported(module)
        if not hasattr(found, name):
            raise unknown(f"problem in {module}:", name, _problems(found))
        return {name: getattr(found, name)}
    own = Path(f"{what}.py")
    if own.is_file():
        return _problems(_module_at(own))
    return {what: registry.problem_class(what)}


def _imported(module: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(module)
    except Exception as error:  # Somebody's module can fail in any way.
        raise _unreadable(module, error) from error


def _module_at(file: Path) -> ModuleType:
    if not file.is_file():
        raise InputError(f"There is no file {file}.")
    spec = importlib.util.spec_from_file_location(file.stem, file.absolute())
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file: its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # where dataclasses look for the names in annotations
    sys.path.insert(0, str(file.absolute().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _unreadable(str(file), error) from error
    finally:
        sys.path.pop(0)
    return module


def _unreadable(what: str, error: Exception) -> InputError:
    said = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
    return InputError(f"{what} cannot be imported: {said}.")


def _problems(module: ModuleType) -> dict[str, object]:
    """The problem classes that a module defines, and its problems made by ``po.problem``."""
    from pinn_odelora.formulation import Problem

    found = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, Problem)
        or (inspect.isclass(value) and issubclass(value, Problem) and value.__module__ == module.__name__)
    }
    if not found:
        raise InputError(f"{module.__name__} has no problem: neither a subclass of Problem nor one by po.problem.")
    return found

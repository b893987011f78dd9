"""python -m pinn_odelora new <name>: a problem file that runs at once, to be changed into one's own equation."""

from __future__ import annotations

import keyword
import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

from pinn_odelora import registry
from pinn_odelora.commands.template import Equation
from pinn_odelora.errors import InputError
from pinn_odelora.files import write_text


def run(name: str, coords: str = "xt", fields: tuple[str, ...] = ("u",)) -> list[Path]:
    """Write the files of a new problem and say what to do next; nothing is overwritten.

    Args:
        name: of the file, in snake_case; the class has it in CamelCase.
        coords: a letter for each coordinate, ``t`` for time.
        fields: names of the solution's components.

    Returns:
        The paths of the files.

    Raises:
        InputError: if a name cannot be used or is taken, or a file exists.
    """
    inside = Path("problems/__init__.py").is_file() and Path("configs/problem").is_dir()
    check_name(name, inside)
    equation = Equation(name, *checked(coords, fields))
    module = f"problems.{name}" if inside else name
    files = {
        Path(f"problems/{name}.py" if inside else f"{name}.py"): equation.problem(),
        Path(f"tests/test_{name}.py" if inside else f"test_{name}.py"): equation.test(module),
    }
    if inside:
        files[Path(f"configs/problem/{name}.yaml")] = f"_target_: {module}.{equation.cls}\n"
    for file in files:
        if file.exists():
            raise InputError(f"{file} exists, and nothing is overwritten; choose another name.")
    for file, text in files.items():
        write_text(file, text)
        print(file)
    chosen = f"problem={name}" if inside else f"problem._target_={module}.{equation.cls}"
    print(f"Check it: python -m pinn_odelora check {name}")
    print(f"Run it:   {_command(chosen, equation.cls, module)}")
    return [*files]


def _command(chosen: str, cls: str, module: str) -> str:
    """What runs the problem from the current folder: ``train.py`` there or beside the package, else the call."""
    if Path("train.py").is_file():
        return f"python train.py {chosen}"
    program = Path(__file__).parents[2] / "train.py"
    if program.is_file():
        return f"python {shlex.quote(os.fspath(program))} {chosen}"
    return f"po.adapt(po.pretrain({cls}().at_source()), {cls}()) after from {module} import {cls}"


def check_name(name: str, inside: bool) -> None:
    """A name for a module that no other has.

    Raises:
        InputError: if it is not one.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise InputError(f"The name is {name!r}, but it must be lower-case words joined by _, such as my_equation.")
    if name in registry.targets() or find_spec(f"problems.{name}" if inside else name):
        file = Path(f"problems/{name}.py" if inside else f"{name}.py")
        what = f"{file} exists" if file.exists() else f"There is a module or problem {name} already"
        raise InputError(f"{what}, and nothing is overwritten; choose another name.")


def checked(coords: str, fields: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Coordinates and fields as names that a residual can ask for.

    Raises:
        InputError: if they are not.
    """
    from pinn_odelora.checks.names import check_apart, check_names

    letters = check_names("coords", coords, "; a string names one by each letter")
    fields = tuple(name for words in fields for name in words.split(",") if name)  # r,p as well as r p
    check_apart(letters, check_names("fields", fields))
    return letters, fields

"""The public names: loaded on first use, documented, and never hidden by a module of the same name."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import pinn_odelora as po

ROOT = Path(__file__).parents[1]

# Names whose modules do not have them yet; a name that is there now must leave the list.
MISSING: set[str] = set()
# Names whose docstrings do not say yet what they take.
UNSAID: set[str] = set()


def every_name(waiting):
    """Every public name; those that wait must fail."""
    waits = pytest.mark.xfail(reason="not written yet", strict=True)
    cases = [pytest.param(name, marks=waits if name in waiting else ()) for name in po.__all__]
    return pytest.mark.parametrize("name", cases)


# Shapes, arguments or errors, in one of the forms in which docstrings state them.
STATED = re.compile(r"Args:|Attributes:|Raises:|\bshapes?\b|\((N|n|m|r|…|R|\.\.\.),? ?\w*[),]")


def fresh(code):
    """What a fresh process prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return run.stdout.strip()


def test_importing_the_package_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import pinn_odelora; seconds = time.perf_counter() - start;"
        "print(seconds, sorted({'torch', 'hydra', 'lightning', 'wandb', 'numpy'} & sys.modules.keys()))"
    )
    seconds, heavy = fresh(code).split(maxsplit=1)
    assert heavy == "[]"
    assert float(seconds) < 0.3


@pytest.mark.parametrize("name", ["Budget", "InputError", "Box", "Problem", "problem", "MLP", "Solution"])
def test_what_a_notebook_needs_comes_without_lightning_and_hydra(name):
    code = f"import sys, pinn_odelora as po; po.{name}; print({{'hydra', 'lightning', 'wandb'}} & sys.modules.keys())"
    assert fresh(code) == "set()"


@every_name(MISSING)
def test_every_public_name_is_there_under_its_name(name):
    found = getattr(po, name)
    if name in po.MODULES:
        assert found is import_module(f"pinn_odelora.{po.MODULES[name]}")
        return
    assert not inspect.ismodule(found)
    assert found.__name__ == name


@every_name(MISSING | UNSAID)
def test_every_public_name_says_what_it_is_and_what_it_takes(name):
    for described in [getattr(po, name), *functions_of(name)]:
        check_described(described)


def functions_of(name):
    """Those that a public module defines or hands on."""
    if name not in po.MODULES:
        return []
    module = getattr(po, name)
    public = getattr(module, "__all__", None) or [
        key for key, x in vars(module).items() if inspect.isfunction(x) and x.__module__ == module.__name__
    ]
    return [getattr(module, key) for key in public if not key.startswith("_")]


def check_described(found):
    name = found.__name__
    # Dataclasses and named tuples without a docstring have one made of their signature.
    assert found.__doc__ is not None
    assert not found.__doc__.startswith(f"{name}(")
    first = inspect.getdoc(found).splitlines()[0]
    assert first.strip()
    if takes(found):
        said = inspect.getdoc(found) + (inspect.getdoc(found.__init__) or "" if inspect.isclass(found) else "")
        assert STATED.search(said), f"the docstring of {name} gives no shapes, arguments or errors"


def takes(found):
    """Whether a function or class is called with arguments of its own."""
    if inspect.ismodule(found):
        return False
    if inspect.isclass(found) and (issubclass(found, BaseException) or inspect.isabstract(found)):
        return False
    try:
        return bool(inspect.signature(found).parameters)
    except ValueError:  # a class of the language's own constructor, as that of a dict
        return True


def test_there_are_as_many_names_as_one_can_read():
    assert 20 <= len(po.__all__) <= 55
    assert set(po.__all__) <= set(dir(po))
    assert sum(len(names) for names in po.PUBLIC.values()) + len(po.MODULES) == len(po.__all__)


def test_no_module_hides_a_public_name():
    """Importing pinn_odelora.adapt would set the attribute adapt of the package to that module."""
    modules = {module.name for module in pkgutil.iter_modules(po.__path__)}
    assert modules.isdisjoint({*po.__all__} - {*po.MODULES.values()})


def test_public_names_stay_what_they_are_when_every_module_is_imported():
    kept = {name: getattr(po, name) for name in po.__all__ if name not in MISSING}
    for module in po.PUBLIC:
        if MISSING.isdisjoint(po.PUBLIC[module]):
            import_module(f"pinn_odelora.{module}")
    assert all(getattr(po, name) is found for name, found in kept.items())
    assert inspect.isfunction(po.problem)


def test_editors_are_told_the_same_names():
    tree = ast.parse((ROOT / "pinn_odelora/__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = [
        (node.module.removeprefix("pinn_odelora."), alias.name, alias.asname)
        for node in block.body
        for alias in node.names
    ]
    names = [(module, name, name) for module, names in po.PUBLIC.items() for name in names]
    names += [(module.rpartition(".")[0] or "pinn_odelora", name, name) for name, module in po.MODULES.items()]
    assert sorted(told) == sorted(names)


def test_an_unknown_name_is_an_attribute_error_with_a_guess():
    with pytest.raises(AttributeError, match="module 'pinn_odelora' has no attribute 'Boxx'") as refused:
        _ = po.Boxx
    assert refused.value.name == "Boxx"
    assert "Box" in dir(refused.value.obj)

"""The parameters of a ``_target_``, read from its source file: importing it would take seconds, for torch alone.

A class has the parameters of its ``__init__``, or, as a dataclass, its fields with those of its bases. What the source
does not show (a name made at run time, an extension module) is imported after all.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef

BARE = ("abc.ABC", "typing.Generic", "typing.Protocol")
"""Bases without fields or a signature, whose modules have no source file to read."""


class Parameter(NamedTuple):
    """``annotation`` as written; ``options``: literal keyword arguments of a default that is a call."""

    annotation: str = ""
    required: bool = False
    options: Mapping[str, Any] = {}


class Signature(NamedTuple):
    """``accepts_any``: there is a ``**kwargs``."""

    parameters: Mapping[str, Parameter]
    accepts_any: bool = False


class Module(NamedTuple):
    name: str
    is_package: bool
    tree: ast.Module


class Definition(NamedTuple):
    node: ast.ClassDef | Function
    module: Module


class UnreadableError(Exception):
    """The source alone does not tell."""


@cache
def signature(target: str) -> Signature:
    """The parameters that a class or function takes, by its dotted name.

    Raises:
        LookupError: if there is no such class or function; the message says why.
    """
    try:
        return _read(_definition(target))
    except UnreadableError:
        return _imported(target)


def _imported(target: str) -> Signature:
    try:
        found = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise LookupError(str(error)) from None
    named = {
        p.name: Parameter(
            "" if p.annotation is p.empty else inspect.formatannotation(p.annotation), p.default is p.empty
        )
        for p in found
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    return Signature(named, any(p.kind is p.VAR_KEYWORD for p in found))


def _read(found: Definition) -> Signature:
    if not isinstance(found.node, ast.ClassDef):
        return _of_function(found.node)
    for cls in _bases(found):
        for node in cls.node.body:
            if isinstance(node, Function) and node.name == "__init__":
                return _of_function(node, skip=1)
        if _is_dataclass(cls.node):
            return _of_dataclass(cls)
    return Signature({})


def _bases(cls: Definition) -> Iterator[Definition]:
    """The class and its bases, depth first; each base is looked up only when it is asked for."""
    yield cls
    for base in cls.node.bases:
        name = _full_name(ast.unparse(base).split("[")[0], cls.module)
        if name in BARE:
            continue
        found = _definition(name)
        if not isinstance(found.node, ast.ClassDef):
            raise UnreadableError
        yield from _bases(found)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(d).split("(")[0].rpartition(".")[2] == "dataclass" for d in node.decorator_list)


def _of_function(node: Function, skip: int = 0) -> Signature:
    a = node.args
    positional = [*a.posonlyargs, *a.args]
    defaults = [*[None] * (len(positional) - len(a.defaults)), *a.defaults]
    pairs = [*zip(positional, defaults, strict=True), *zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    return Signature(
        {arg.arg: _parameter(arg.annotation, default) for arg, default in pairs[skip:]}, a.kwarg is not None
    )


def _of_dataclass(cls: Definition) -> Signature:
    fields: dict[str, Parameter] = {}
    for base in reversed([*_bases(cls)]):
        if _is_dataclass(base.node):
            fields |= {name: p for name, p in _fields(base.node) if p.options.get("init", True)}
    return Signature(fields)


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, Parameter]]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            kind = ast.unparse(line.annotation).split("[")[0].rpartition(".")[2]
            if kind not in ("ClassVar", "KW_ONLY"):
                yield line.target.id, _parameter(line.annotation, line.value)


def _parameter(annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    keywords = default.keywords if isinstance(default, ast.Call) else []
    options = {k.arg: value for k in keywords for value in _literal(k.value)}
    return Parameter("" if annotation is None else ast.unparse(annotation), default is None, options)


def _literal(node: ast.expr) -> list[Any]:
    try:
        return [ast.literal_eval(node)]
    except ValueError:
        return []


def _definition(target: str) -> Definition:
    """The class or function of that name, followed through the imports of its module."""
    module_name, _, name = target.rpartition(".")
    module = _module(module_name)
    for node in module.tree.body:
        if isinstance(node, ast.ClassDef | Function) and node.name == name:
            return Definition(node, module)
    full = _full_name(name, module)
    if full == target:
        raise UnreadableError
    return _definition(full)


def _full_name(name: str, module: Module) -> str:
    """The dotted name of what a module calls ``name``."""
    first, dot, rest = name.partition(".")
    for node in _imports(module.tree.body):
        for alias in node.names:
            if (alias.asname or alias.name) == first:
                origin = f"{_origin(node, module)}." if isinstance(node, ast.ImportFrom) else ""
                return f"{origin}{alias.name}{dot}{rest}"
    return f"{module.name}.{name}"


def _imports(body: Iterable[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a module, those for type checkers included: so names are declared that are loaded on first use."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            yield from _imports(node.body)


def _origin(node: ast.ImportFrom, module: Module) -> str:
    """The module that an import names, relative ones resolved."""
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    package = package[: len(package) - node.level + module.is_package]
    return ".".join([*package, *([node.module] if node.module else [])])


@cache
def _module(name: str) -> Module:
    """The parsed source of a module; neither it nor the packages above it are run."""
    spec = _spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UnreadableError
    source = Path(spec.origin).read_text(encoding="utf-8")
    return Module(name, spec.submodule_search_locations is not None, ast.parse(source))


def _spec(name: str) -> ModuleSpec | None:
    first, *rest = name.split(".")
    try:
        spec = find_spec(first)
    except ValueError:
        return None
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec

"""The objects that a configuration names: ``_target_`` is a class or function, the other keys are its arguments.

A name is resolved before anything is called, and only what gives an object of the right kind is called at all. A value
is held against the annotation of its parameter, then the constructor applies its own rules; both refuse it by its key.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from pinn_odelora.config.sentences import first_line, unknown_key
from pinn_odelora.errors import InputError, cause, place_of, within
from pinn_odelora.rules import annotated, one_of, signature

UNKNOWN = "unknown"
"""The value of a coefficient of the equation that is to be found from measurements."""
KINDS = {
    "problem": "pinn_odelora.formulation.Problem",
    "net": "torch.nn.Module",
    "method": "pinn_odelora.optim.methods.Method",
    "integrator": "integrator",
}
"""What each group gives; an integrator is whatever has a method ``step``."""
PROVIDED = ("inputs", "outputs", "generator", "source", "integrator")
"""Arguments that the program gives itself, to a class or function that has them."""


def problem(settings: Mapping[str, Any], source: Mapping[str, Any]) -> tuple[Any, Any, tuple[str, ...]]:
    """The problem, the one that the pretrained network solved, and the names of the unknown coefficients.

    An unknown coefficient has its value at the source, the first guess.

    Args:
        settings: ``_target_`` and its arguments.
        source: parameters at the source, other than the declared ones.

    Raises:
        InputError: if a value is not allowed.
    """
    declared = resolve("problem", settings).parameters()
    for name in declared.keys() & settings.keys():
        p = declared[name]
        rule = p.rule if p.integer or p.choices else p.rule | one_of(UNKNOWN)
        rule.check(f"problem.{name}", settings[name])
    unknown = tuple(name for name in declared if settings.get(name) == UNKNOWN)
    posed = build("problem", {name: value for name, value in settings.items() if name not in unknown})
    with within("pretrain.source"):
        solved = posed.at_source(**source)
    return dataclasses.replace(posed, **{name: getattr(solved, name) for name in unknown}), solved, unknown


def network(settings: Mapping[str, Any], problem: Any, source: Any, seed: int) -> Any:
    """The network for a problem; ``source``: the problem that the pretrained one solves; ``seed``: of its weights."""
    from torch import Generator

    sizes = {"inputs": problem.inputs, "outputs": len(problem.fields)}
    return build("net", settings, **sizes, generator=Generator().manual_seed(seed), source=source)


def method(settings: Mapping[str, Any], integrator: Mapping[str, Any]) -> Any:
    """The method, with the integrator if it takes one; that is built in any case."""
    return build("method", settings, integrator=build("integrator", integrator))


def build(key: str, settings: Any, **offered: Any) -> Any:
    """The object that one part of a configuration names.

    Args:
        key: where it stands in the configuration; a group of ``KINDS`` must give an object of that kind.
        settings: ``_target_``, and its arguments by name.
        offered: arguments of ``PROVIDED``, given if there is such a parameter.

    Raises:
        InputError: if the name leads nowhere, or to something of another kind; for an unknown or missing argument, or
            a value that is not allowed; if the constructor fails.
    """
    target = resolve(key, settings)
    takes = signature(target).parameters
    own = {name: p for name, p in takes.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    allowed = [name for name in own if name not in PROVIDED]
    values = {name: offered[name] for name in own if name in offered}
    for name, value in settings.items():
        if name in allowed and isinstance(value, Mapping) and "_target_" in value:
            values[name] = build(f"{key}.{name}", value)
        elif name in allowed:
            rule = annotated(own[name].annotation)
            values[name] = rule.check(f"{key}.{name}", value) if rule else value
        elif name != "_target_" and len(own) == len(takes):
            raise unknown_key(f"{key}.{name}", allowed)
    if missing := [name for name in allowed if own[name].default is inspect.Parameter.empty and name not in values]:
        raise InputError(f"{settings['_target_']} needs a value for {', '.join(f'{key}.{name}' for name in missing)}.")
    try:
        with within(key):
            return target(**values)
    except InputError:
        raise
    except Exception as error:  # Somebody else's constructor can fail in any way.
        raise InputError(f"{key}._target_ is {settings['_target_']}, which fails: {cause(error)}.") from error


def resolve(key: str, settings: Mapping[str, Any]) -> Any:
    """The class or function that ``_target_`` names, which is not called.

    Raises:
        InputError: if there is none, or it does not give what the group is about.
    """
    path, kind = settings.get("_target_"), KINDS.get(key)
    wanted = f"a class that is a {kind}, or a function annotated to return one" if kind else "a class or function"
    refused = f"{key}._target_ is {path}, but it must be the dotted name of {wanted}"
    try:
        target = resolve_name(path)
        gives = target if inspect.isclass(target) else signature(target).return_annotation
    except Exception as error:  # Somebody else's module can fail in any way.
        if place_of(error):
            raise InputError(f"{key}._target_ is {path}, which cannot be imported: {cause(error)}.") from error
        raise InputError(f"{refused} ({first_line(str(error)).rstrip(':')}).") from None
    if kind and not (inspect.isclass(gives) and _is_a(gives, kind)):
        raise InputError(f"{refused}.")
    return target


def _is_a(cls: type, kind: str) -> bool:
    return hasattr(cls, "step") if kind == "integrator" else issubclass(cls, resolve_name(kind))

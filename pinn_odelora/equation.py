"""An equation without a class, for scripts and notebooks: its terms and parameters are keyword arguments.

    box = po.Box(x=(0, 1), t=(0, 1))
    wave = po.problem(
        coords="xt",
        region=box,
        c=po.parameter(1.0, 1.5, above=0),
        pde=lambda f, c: f.u_tt - c**2 * f.u_xx,
        ic=(box.face(t=0.0), lambda f: f.u - torch.sin(math.pi * f.x)),
        rest=(box.face(t=0.0), lambda f: f.u_t),
        bc=(box.boundary("x"), lambda f: f.u),
        reference=lambda p, c: torch.sin(math.pi * p.x) * torch.cos(c * math.pi * p.t),
    )

Every function takes the field or the points first and then, by name, the parameters that it reads, so that another
value, ``dataclasses.replace(wave, c=2.0)``, an unknown coefficient or the source ``wave.at_source()`` reaches all of
them. The result is a ``Problem`` like those in ``problems/``; what can be wrong with it is found by evaluating each
function once at a few points.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError, unknown
from pinn_odelora.formulation import Parameter, Problem, Term
from pinn_odelora.geometry import Region, sobol
from pinn_odelora.points import Points

SAMPLE = 8
"""Points at which each function is evaluated once."""
ENFORCED = 1e-6
"""Largest residual of an enforced condition under the ansatz, relative to one plus that without it."""


def problem(
    *,
    coords: str | Sequence[str] | Mapping[str, float],
    region: Region,
    fields: str | Sequence[str] | Mapping[str, float] = ("u",),
    reference: Callable[..., Tensor | None] | None = None,
    ansatz: Callable[..., tuple[Tensor, Tensor]] | None = None,
    enforced: str | Sequence[str] = (),
    periods: Mapping[str, float] | None = None,
    scales: Mapping[str, float | tuple[float, float]] | None = None,
    accuracy: float = 1e-12,
    regular: Region | None = None,
    conditions: str = "",
    weights: Mapping[str, float] | None = None,
    name: str = "Equation",
    **parts: Any,
) -> Equation:
    """A problem from its terms, ``po.problem(coords="xt", region=po.Box(x=(0, 1), t=(0, 1)), pde=lambda f: …, …)``.

    Every further keyword argument is a named part. ``nu=po.parameter(0.05, 0.02, above=0)`` is a parameter: source,
    target and bounds. Anything else is a term of the loss, w · mean |r|²: a residual r that must vanish on the whole
    region, a pair ``(region, residual)``, or a ``po.Term``, which also has a weight. A residual takes the field f,
    which it asks for columns (N, 1) by name (``f.x``, ``f.u``, ``f.u_xx``), and returns a column, or a tuple of columns
    for a system. Residuals, ansatz and reference may take parameters as further arguments: ``lambda f, nu: …``.

    Args:
        coords: names of the coordinates, the network's inputs in order; a string names one by each letter, and a
            mapping gives their scales, too.
        region: domain of the equation, all coordinates included.
        fields: names of the solution's components, the network's outputs in order; given as ``coords`` are.
        reference: the solution at points p, (N, fields); None where none is known. Errors are measured against it.
        ansatz: (g, m) at points p, each (N, 1) or (N, fields), for hard conditions u = g + m · network.
        enforced: names of the terms that the ansatz satisfies identically.
        periods: period of each coordinate in which the network is to be exactly periodic.
        scales: size, or (shift, size), of coordinates, fields and residuals by name, in place of what is found; an
            empty mapping leaves everything in the units that it has.
        accuracy: relative accuracy of the reference.
        regular: part of the region where the reference is smooth, if that is not all of it.
        conditions: ``hard`` or ``soft``; empty is hard with an ansatz and soft without.
        weights: loss weights by term, instead of those in the terms.
        name: of the equation, for messages and pictures.

    Raises:
        InputError: if a part is neither parameter nor term; a name is taken twice; a region lacks a coordinate; a
            function takes an argument that is no parameter, cannot be evaluated, or returns other shapes; the ansatz
            does not satisfy what it enforces; or a parameter, a weight or ``conditions`` has a value that is not
            allowed.
    """
    sizes = {name: size for part in (coords, fields) if isinstance(part, Mapping) for name, size in part.items()}
    scales = {**sizes, **(scales or {})} if sizes or scales is not None else None
    coords, fields = _names("coords", coords), _names("fields", fields)
    declared = {key: part for key, part in parts.items() if _is_parameter(part)}
    terms = {key: _term(key, part, region) for key, part in parts.items() if key not in declared}
    declaration = Declaration(
        name=name,
        coords=coords,
        fields=fields,
        region=region,
        regular=regular,
        parameters={key: (part.metadata["parameter"], part.default) for key, part in declared.items()},
        terms=terms,
        reference=reference,
        ansatz=ansatz,
        enforced=(enforced,) if isinstance(enforced, str) else tuple(enforced),
        periods=dict(periods or {}),
        scales=scales,
        accuracy=accuracy,
    )
    _check_names(declaration)
    _check_regions(declaration)
    _check_conditions(declaration)
    _check_arguments(declaration)
    posed = declaration.cls(conditions=conditions, weights=dict(weights or {}))
    _check_reference(posed)
    for case in (posed, posed.at_source()):
        _check_functions(case)
    return posed


def read(what: str, function: Callable[..., Any], parameters: Collection[str]) -> tuple[str, ...]:
    """The parameters that a function takes after its first argument.

    Raises:
        InputError: if it takes no argument, or needs another one that is no parameter.
    """
    try:
        takes = [*inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return ()  # A function without a signature is one of another language, which knows no parameters of ours.
    if not takes or takes[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise InputError(f"{what} takes no argument, but its first one must be the field or the points.")
    found: list[str] = []
    for argument in takes[1:]:
        if argument.kind is argument.VAR_KEYWORD:
            return tuple(parameters)
        if argument.name in parameters:
            found.append(argument.name)
        elif argument.default is argument.empty and argument.kind is not argument.VAR_POSITIONAL:
            advice = f"; declare a parameter by {argument.name}=po.parameter(source, target)"
            raise unknown(f"argument of {what}:", argument.name, parameters, advice)
    return tuple(found)


@dataclass(frozen=True, eq=False, kw_only=True)
class Declaration:
    """What ``problem`` was told: the part of an equation that no parameter changes."""

    name: str
    coords: tuple[str, ...]
    fields: tuple[str, ...]
    region: Region
    regular: Region | None
    parameters: Mapping[str, tuple[Parameter, Any]]
    """Each with its value at the target."""
    terms: Mapping[str, Term]
    reference: Callable[..., Tensor | None] | None
    ansatz: Callable[..., tuple[Tensor, Tensor]] | None
    enforced: tuple[str, ...]
    periods: Mapping[str, float]
    scales: Mapping[str, float | tuple[float, float]] | None
    accuracy: float

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """Every function of the equation: residuals by the names of their terms, ansatz and reference by theirs."""
        others = {"ansatz": self.ansatz, "reference": self.reference}
        residuals = {name: term.residual for name, term in self.terms.items()}
        return residuals | {name: function for name, function in others.items() if function is not None}

    @cached_property
    def takes(self) -> dict[str, tuple[str, ...]]:
        """The parameters that each function takes."""
        return {name: read(name, function, self.parameters) for name, function in self.functions.items()}

    @cached_property
    def cls(self) -> type[Equation]:
        """The dataclass that has the parameters as fields."""
        described = {
            "__module__": __name__,
            "__doc__": f"{self.name}, an equation made by ``po.problem``.",
            "declaration": self,
            "coords": self.coords,
            "fields": self.fields,
            "supports": ("hard", "soft") if self.ansatz else ("soft",),
            "enforced": self.enforced,
            "periods": self.periods,
            "scales": self.scales,
            "accuracy": self.accuracy,
            "regular": self.regular,
        }
        parameters = [
            (name, type(target), dataclasses.field(default=target, metadata={"parameter": declared}))
            for name, (declared, target) in self.parameters.items()
        ]
        return dataclasses.make_dataclass(
            self.name, parameters, bases=(Equation,), namespace=described, frozen=True, kw_only=True, repr=False
        )

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "cls"}

    def __deepcopy__(self, memo: dict[int, Any]) -> Declaration:
        # It never changes, and copies of an equation are of one class.
        return self


@dataclass(frozen=True, kw_only=True, repr=False)
class Equation(Problem):
    """A problem made by ``problem``, of a subclass that has its parameters as fields.

    It can be pickled where its functions can, which those of a module can and lambdas cannot.
    """

    declaration: ClassVar[Declaration]
    has_source = False

    @property
    def region(self) -> Region:
        return self.declaration.region

    def terms(self) -> dict[str, Term]:
        return {
            name: term._replace(residual=self._at_values(name, term.residual))
            for name, term in self.declaration.terms.items()
        }

    def reference(self, p: Points) -> Tensor | None:
        function = self.declaration.reference
        return None if function is None else self._at_values("reference", function)(p)

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        function = self.declaration.ansatz
        return super().ansatz(p) if function is None else self._at_values("ansatz", function)(p)

    def _at_values(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """One of the functions at the present values of the parameters: it takes the field or the points alone."""
        values = {parameter: getattr(self, parameter) for parameter in self.declaration.takes[name]}
        return partial(function, **values) if values else function

    def __repr__(self) -> str:
        enforced = self.enforced if self.conditions == "hard" else ()
        weights = {name: term.weight for name, term in self.loss_terms().items() if term.weight != 1}
        notes = {name: f" (weight {weight:g})" for name, weight in weights.items()}
        notes |= dict.fromkeys(enforced, " (enforced)")
        terms = ", ".join(f"{name}{notes.get(name, '')}" for name in self.declaration.terms)
        values = "".join(f", {name}={_shown(getattr(self, name))}" for name in self.parameters())
        solution = f"{', '.join(self.fields)}({', '.join(self.coords)})"
        return f"<{type(self).__name__} for {solution}: {terms}{values}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A class made at run time has no name to be found by.
        return _blank, (self.declaration,), vars(self)


def _blank(declaration: Declaration) -> Equation:
    return object.__new__(declaration.cls)


def _shown(value: Any) -> str:
    return f"unknown, now {value.item():.6g}" if isinstance(value, Tensor) else repr(value)


# What a caller may give.


def _names(key: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """A string as its letters, a sequence as it is.

    Raises:
        InputError: if there is none, one occurs twice, or one could not be asked for by name.
    """
    letters = isinstance(given, str)
    names = tuple(given) if letters or isinstance(given, Sequence | Mapping) else ()
    if not names or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise InputError(f"{key} is {given!r}, but it must be a string of letters or a sequence of names.")
    for name in names:
        if names.count(name) > 1:
            advice = "; a string names one by each letter" if letters else ""
            raise InputError(f"{key} is {given!r}, but it may have {name!r} only once{advice}.")
        # What is derived from a field is written field_coordinates, and a field or points answer to other names too.
        if name.startswith("_") or (key == "fields" and "_" in name) or name in RESERVED:
            raise InputError(f"{key} has {name!r}, but a residual could not ask for it by that name; choose another.")
    return names


RESERVED = {*dir(Field), *dir(Points), "points", "fields", "coords"}


def _is_parameter(part: Any) -> bool:
    return isinstance(part, dataclasses.Field) and "parameter" in part.metadata


def _term(name: str, part: Any, region: Region) -> Term:
    arguments = [key for key, p in inspect.signature(problem).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if meant := get_close_matches(name, arguments, n=1, cutoff=0.85):
        raise InputError(f"{name} is no argument of problem (did you mean {meant[0]!r}?), and no name for a term.")
    match part:
        case Term():
            term = part
        case (where, residual):
            term = Term(where, residual)
        case _:
            term = Term(region, part)
    if not callable(term.residual):
        raise InputError(
            f"{name} is {part!r}, but it must be a residual, a pair (region, residual), a po.Term, or a parameter: "
            "po.parameter(source, target)."
        )
    weight = term.weight
    if not (isinstance(weight, Real) and 0 < weight < math.inf):
        raise InputError(f"The weight of {name} is {weight!r}, but a loss weight is a positive number.")
    return term


def _check_names(declaration: Declaration) -> None:
    taken = dict.fromkeys(declaration.coords, "a coordinate")
    for name in declaration.fields:
        if name in taken:
            raise InputError(f"{name} is both a coordinate and a field, but names must differ.")
        taken[name] = "a field"
    for name in (*declaration.terms, *declaration.parameters):
        if name in taken:
            kind = "term" if name in declaration.terms else "parameter"
            raise InputError(f"{name} is {taken[name]}, so no {kind} may have that name.")
    for name in declaration.parameters:
        if hasattr(Equation, name) or name in Problem.__annotations__ or not name.isidentifier():
            raise InputError(f"A parameter cannot be called {name}: a problem has something else of that name.")
    if "data" in declaration.terms:
        raise InputError("data is the name of the term of measurements, so no other term may have it.")
    if not declaration.terms:
        raise InputError("The problem has no term: give at least an equation, as in pde=lambda f: f.u_t - f.u_xx.")
    if not (isinstance(declaration.name, str) and declaration.name.isidentifier()):
        raise InputError(f"name is {declaration.name!r}, but it must be a word of letters and digits.")


def _check_regions(declaration: Declaration) -> None:
    regions = {"region": declaration.region, "regular": declaration.regular}
    for name, term in declaration.terms.items():
        regions |= {f"The region of {name}": term.where, f"The held-out region of {name}": term.heldout}
    for what, region in regions.items():
        if region is None and what != "region":
            continue
        if not (hasattr(region, "sample") and hasattr(region, "interior")):
            raise InputError(f"{what} is {region!r}, but it must be a region, such as po.Box(x=(0, 1), t=(0, 1)).")
        columns = _some(region)
        if missing := [name for name in declaration.coords if name not in columns]:
            raise InputError(
                f"{what} has no coordinate {', '.join(missing)}, only {', '.join(columns)}; it must have all of "
                f"{', '.join(declaration.coords)}."
            )


def _some(region: Region) -> Points:
    """A few points of a region."""
    p = region.sample(SAMPLE, lambda n, d: sobol(n, d, seed=0))
    return Points({name: column[:SAMPLE] for name, column in p.items()})


def _check_conditions(declaration: Declaration) -> None:
    for name in declaration.enforced:
        if name not in declaration.terms:
            raise unknown("term in enforced:", name, declaration.terms)
    if declaration.enforced and declaration.ansatz is None:
        raise InputError(f"enforced names {', '.join(declaration.enforced)}, but there is no ansatz to satisfy it.")
    if declaration.ansatz and not declaration.enforced:
        raise InputError("There is an ansatz, but enforced does not say which of the terms it satisfies.")
    if declaration.terms.keys() <= set(declaration.enforced):
        raise InputError("enforced names every term, but at least one must be left to train on.")
    for name, period in declaration.periods.items():
        if name not in declaration.coords:
            raise unknown("coordinate in periods:", name, declaration.coords)
        if not (isinstance(period, Real) and 0 < period < math.inf):
            raise InputError(f"The period of {name} is {period!r}, but it must be a positive number.")
    if not (isinstance(declaration.accuracy, Real) and 0 < declaration.accuracy < math.inf):
        raise InputError(f"accuracy is {declaration.accuracy!r}, but it must be a positive number.")


def _check_arguments(declaration: Declaration) -> None:
    for what, function in declaration.functions.items():
        if not callable(function):
            raise InputError(f"{what} is {function!r}, but it must be a function of points.")
    asked = {name for names in declaration.takes.values() for name in names}
    for name in declaration.parameters:
        if name not in asked:
            raise InputError(
                f"{name} is a parameter, but no function takes it; write it as in pde=lambda f, {name}: …."
            )


# What shows when each function is evaluated once.


def _check_functions(posed: Equation) -> None:
    """Evaluate residuals and ansatz with a smooth function in the network's place."""
    free = _trial(dataclasses.replace(posed, conditions="soft", weights={}))
    hard = None
    if "hard" in posed.supports:
        posed = dataclasses.replace(posed, conditions="hard", weights={})
        _check_ansatz(posed)
        hard = _trial(posed)
    for name, term in posed.terms().items():
        p = _some(term.where)
        r = _residual(name, term, AutogradField(free, p, posed.fields, posed.coords))
        if hard and name in posed.enforced:
            left = _residual(name, term, AutogradField(hard, p, posed.fields, posed.coords))
            # Written so that a NaN raises, too.
            if not float(left.abs().max()) <= ENFORCED * (1 + float(r.abs().max())):
                raise InputError(
                    f"{name} is enforced, but the ansatz does not satisfy it: its residual reaches "
                    f"{float(left.abs().max()):.2g} with a network that is not zero."
                )


def _trial(posed: Equation) -> Callable[[Points], Tensor]:
    """u = g + m · N, or N alone under soft conditions, with N = 2 + sin of generic plane waves."""
    outputs = len(posed.fields)
    directions = torch.arange(posed.inputs * outputs, dtype=torch.float64).cos().reshape(posed.inputs, outputs)

    def solution(p: Points) -> Tensor:
        N = 2 + torch.sin(posed.embed(p) @ directions + torch.arange(outputs))
        if posed.conditions == "soft":
            return N
        g, m = posed.ansatz(p)
        return g + m * N

    return solution


def _residual(name: str, term: Term, field: Field) -> Tensor:
    n = field.points.number
    with _evaluating(f"The residual of {name}"), torch.enable_grad():
        r = term.residual(field)
    for column in r if isinstance(r, tuple) else (r,):
        if not (isinstance(column, Tensor) and column.ndim == 2 and len(column) == n):
            raise InputError(
                f"The residual of {name} gives {_described(column)} at {n} points, but it must give a column of shape "
                f"({n}, 1), or a tuple of columns."
            )
    return torch.cat(r, dim=1).detach() if isinstance(r, tuple) else r.detach()


def _check_ansatz(posed: Equation) -> None:
    p = _some(posed.region)
    with _evaluating("ansatz"):
        made = posed.ansatz(p)
    shapes = {(p.number, 1), (p.number, len(posed.fields))}
    if not (isinstance(made, tuple) and len(made) == 2):
        raise InputError(f"ansatz gives {_described(made)}, but it must give a pair (g, m) for u = g + m · network.")
    for part in made:
        if not isinstance(part, Tensor) or tuple(part.shape) not in shapes:
            raise InputError(
                f"ansatz gives {_described(part)} at {p.number} points, but g and m must have shape "
                f"{' or '.join(map(str, sorted(shapes)))}."
            )


def _check_reference(posed: Equation) -> None:
    p = _some(posed.region)
    with _evaluating("reference"):
        values = posed.reference(p)
    shape = (p.number, len(posed.fields))
    if values is not None and not (isinstance(values, Tensor) and tuple(values.shape) == shape):
        raise InputError(f"reference gives {_described(values)} at {p.number} points, but it must have shape {shape}.")


@contextmanager
def _evaluating(what: str) -> Iterator[None]:
    """One sentence for whatever goes wrong in a function of the caller's, whose traceback it keeps."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = next(iter(str(error).splitlines()), "").rstrip(".") or type(error).__name__
        raise InputError(f"{what} cannot be evaluated: {said}.") from error


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"

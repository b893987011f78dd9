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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from typing import Any, ClassVar

from torch import Tensor

from pinn_odelora.checks.evaluation import check_reference
from pinn_odelora.checks.names import check_apart, check_names
from pinn_odelora.checks.problem import check_problem
from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError, unknown
from pinn_odelora.formulation import Network, Parameter, Problem, Term
from pinn_odelora.geometry import Region
from pinn_odelora.points import Points
from pinn_odelora.unknown_fields import UnknownField


def problem(
    *,
    coords: str | Sequence[str] | Mapping[str, float],
    region: Region,
    fields: str | Sequence[str] | Mapping[str, float] = ("u",),
    reference: Callable[..., Tensor | None] | None = None,
    ansatz: Callable[..., tuple[Tensor, Tensor] | Tensor] | None = None,
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
    target and bounds, and ``k=po.unknown_field("x", guess=1.0)`` a field that is found from measurements. Anything else
    is a term of the loss, w · mean |r|²: a residual r that must vanish on the whole
    region, a pair ``(region, residual)``, or a ``po.Term``, which also has a weight. A residual takes the field f,
    which it asks for columns (N, 1) by name (``f.x``, ``f.u``, ``f.u_xx``), and returns a column, or a tuple of columns
    for a system. Residuals, ansatz and reference may take parameters as further arguments: ``lambda f, nu: …``.

    Args:
        coords: names of the coordinates, the network's inputs in order; a string names one by each letter, and a
            mapping gives their scales, too.
        region: domain of the equation, all coordinates included.
        fields: names of the solution's components, the network's outputs in order; given as ``coords`` are.
        reference: the solution at points p, (N, fields); None where none is known. Errors are measured against it.
        ansatz: (g, m) at points p, each (N, 1) or (N, fields), for hard conditions u = g + m · network; or, with a
            second argument called N, u itself, (N, fields): N is the network as a function of points.
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
    sought = {key: part for key, part in parts.items() if isinstance(part, UnknownField)}
    terms = {key: _term(key, part, region) for key, part in parts.items() if key not in {*declared, *sought}}
    declaration = Declaration(
        name=name,
        coords=coords,
        fields=fields,
        region=region,
        regular=regular,
        parameters={key: (part.metadata["parameter"], part.default) for key, part in declared.items()},
        unknown_fields=sought,
        terms=terms,
        reference=reference,
        ansatz=ansatz,
        enforced=(enforced,) if isinstance(enforced, str) else tuple(enforced),
        periods=dict(periods or {}),
        scales=scales,
        accuracy=accuracy,
    )
    _check_names(declaration)
    _check_arguments(declaration)
    posed = declaration.cls(conditions=conditions, weights={} if weights is None else weights)
    check_reference(posed)
    for case in (posed, posed.at_source()):
        for kind in posed.supports:
            check_problem(dataclasses.replace(case, conditions=kind, weights={}))
    return posed


def read(what: str, function: Callable[..., Any], parameters: Collection[str], given: int = 1) -> tuple[str, ...]:
    """The parameters that a function takes after its first argument, or after the first ``given`` ones.

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
    for argument in takes[given:]:
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
    unknown_fields: Mapping[str, UnknownField]
    terms: Mapping[str, Term]
    reference: Callable[..., Tensor | None] | None
    ansatz: Callable[..., tuple[Tensor, Tensor] | Tensor] | None
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
        first = {"ansatz": 2 if self.reads_network else 1}
        return {name: read(name, f, self.parameters, first.get(name, 1)) for name, f in self.functions.items()}

    @cached_property
    def reads_network(self) -> bool:
        """Whether the second argument of the ansatz is the network N."""
        if not callable(self.ansatz) or "N" in self.parameters:
            return False
        return [*inspect.signature(self.ansatz).parameters][1:2] == ["N"]

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
            **self.unknown_fields,
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

    @property
    def has_ansatz(self) -> bool:
        return self.declaration.ansatz is not None

    def terms(self) -> dict[str, Term]:
        return {
            name: term._replace(residual=self._at_values(name, term.residual))
            for name, term in self.declaration.terms.items()
        }

    def reference(self, p: Points) -> Tensor | None:
        function = self.declaration.reference
        return None if function is None else self._at_values("reference", function)(p)

    def ansatz(self, p: Points, *network: Network) -> tuple[Tensor, Tensor] | Tensor:
        function = self.declaration.ansatz
        return super().ansatz(p) if function is None else self._at_values("ansatz", function)(p, *network)

    @property
    def reads_network(self) -> bool:
        return self.declaration.reads_network

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


# What equations of other programs have in common.

LETTERS = "xyz", "abcdefghijklmnopqrsvwxyz"
"""Names of up to three coordinates, and of more; t is time, u a field."""


def coordinate_names(number: int) -> tuple[str, ...]:
    """Names for coordinates that have none.

    Raises:
        InputError: if there are too many.
    """
    letters = LETTERS[number > len(LETTERS[0])]
    if number > len(letters):
        raise InputError(f"There are {number} coordinates, but at most {len(letters)} are possible.")
    return tuple(letters[:number])


def field_names(number: int) -> tuple[str, ...]:
    """Names for fields that have none."""
    return ("u",) if number == 1 else tuple(f"u{k + 1}" for k in range(number))


def taking(names: Sequence[str], rows: Callable[[Field, Mapping[str, Any]], Tensor]) -> Callable[..., Tensor]:
    """A residual that takes parameters by these names, from one that takes them as a mapping."""

    def residual(f: Field, **values: Any) -> Tensor:
        return rows(f, values)

    arguments = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("f", *names)]
    residual.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return residual


# What a caller may give.


def _names(key: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """A string as its letters, a sequence as it is."""
    return check_names(key, given, "; a string names one by each letter" if isinstance(given, str) else "")


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
    return term


def _check_names(declaration: Declaration) -> None:
    check_apart(declaration.coords, declaration.fields)
    taken = dict.fromkeys(declaration.coords, "a coordinate") | dict.fromkeys(declaration.fields, "a field")
    inner = {"parameter": declaration.parameters, "unknown field": declaration.unknown_fields}
    for kind, names in {"term": declaration.terms, **inner}.items():
        for name in names:
            if name in taken:
                raise InputError(f"{name} is {taken[name]}, so no {kind} may have that name.")
            other = hasattr(Equation, name) or name in Problem.__annotations__ or not name.isidentifier()
            if kind in inner and other:
                a = f"{'A' if kind == 'parameter' else 'An'} {kind}"
                raise InputError(f"{a} cannot be called {name}: a problem has something else of that name.")
    if declaration.ansatz and not declaration.enforced:
        raise InputError("There is an ansatz, but enforced does not say which of the terms it satisfies.")
    if not (isinstance(declaration.name, str) and declaration.name.isidentifier()):
        raise InputError(f"name is {declaration.name!r}, but it must be a word of letters and digits.")


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

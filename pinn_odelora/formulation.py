"""A problem: an equation and its conditions as named terms, its parameters, and a reference solution.

The loss is  L = Σ_k w_k · mean_i |r_k(x_i)|²,  summed over the components of r_k. With the residual vector r of entries
√(2 w_k / N_k) · r_k(x_i) this is ½‖r‖². The package has no other definition of the loss.

Conditions are either soft, that is, terms of the loss, or hard, enforced by the ansatz  u = g + m · N  with the network
N: g satisfies the conditions, and m vanishes where they are imposed. An ansatz may also take N as a function of points,
u = a(p, N), for conditions on derivatives, such as  u = h x + x (1 - x) N(x, t) + x N(1, t)  with u = 0 at x = 0 and
u_x = h at x = 1.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from pinn_odelora.checks.declaration import check_declaration, check_supports
from pinn_odelora.checks.evaluation import check_values
from pinn_odelora.checks.names import check_spelling, undeclared
from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError, unknown
from pinn_odelora.geometry import Cloud, Region
from pinn_odelora.points import Points
from pinn_odelora.rules import Rule, instance_of, number, one_of, whole
from pinn_odelora.units import Unit
from pinn_odelora.unknown_fields import UnknownField

Residual = Callable[[Field], Tensor | tuple[Tensor, ...]]
"""A map from the field at N points to a column (N, 1), or to one column per component, that must vanish."""
Network = Callable[[Points], Tensor]
"""N as an ansatz sees it, from as many points to (N, fields)."""
SOURCE, TARGET = "source", "target"


class Term(NamedTuple):
    """One term of the loss: a region, a residual that must vanish there, and the weight w_k.

    Args:
        where: the region from which its points are drawn.
        residual: r_k, a map from the field at N points to a column (N, 1), or to a tuple of columns for a system.
        weight: w_k, positive.
        coupled: whether row i of the residual may depend on points other than point i, as for a mean over all points.
        heldout: the region of the held-out loss, if every draw from ``where`` returns the same points.
        only: ``source`` for a term of the problem that the pretrained network solves alone, ``target`` for one of the
            problem to adapt to; empty for both.
        measured: whether the residual is the error of measurements at the points of a ``Cloud``, such as
            ``f.u_x - f.slope``: unknown parameters are found from it, and its noise enters their intervals.
    """

    where: Region
    residual: Residual
    weight: float = 1.0
    coupled: bool = False
    heldout: Region | None = None
    only: str = ""
    measured: bool = False

    def check(self, name: str) -> None:
        """Check what does not depend on the points.

        Raises:
            InputError: if ``only`` is another word, or measurements are not at given points.
        """
        one_of("", SOURCE, TARGET).check(f"only of term {name}", self.only)
        if self.measured and not isinstance(self.where, Cloud):
            raise InputError(f"Term {name} is measured, so its region must be the measured points, po.Cloud(points).")

    @property
    def unseen(self) -> Term:
        """The term on the region of the held-out loss."""
        return self if self.heldout is None else self._replace(where=self.heldout)

    def rows(self, field: Field) -> Tensor:
        """The residual as one tensor (N, components)."""
        r = self.residual(field)
        return torch.cat(tuple(r), dim=1) if isinstance(r, tuple | list) else r


@dataclass(frozen=True)
class Parameter:
    """The declaration of a problem parameter: its source value, and the values allowed.

    Attributes:
        source: its value in the problem solved by the pretrained network.
        above: exclusive lower bound.
        integer: whether it is a whole number.
        choices: the allowed words, if it is not a number.
    """

    source: Any
    above: float = -math.inf
    integer: bool = False
    choices: tuple[str, ...] = ()

    @property
    def rule(self) -> Rule:
        """The rule for its values."""
        if self.choices:
            return one_of(*self.choices)
        if self.integer:
            return whole(math.floor(self.above) + 1 if math.isfinite(self.above) else -math.inf)
        return number(above=self.above)

    def check(self, name: str, value: Any) -> None:
        """Check a value, or the present one of an unknown parameter.

        Raises:
            InputError: if it is not allowed.
        """
        self.rule.check(name, value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)


def parameter(
    source: Any,
    target: Any,
    *,
    above: float = -math.inf,
    integer: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field for a problem parameter: ``nu: float = parameter(0.05, 0.02, above=0)``.

    Args:
        source: value in the problem solved by the pretrained network.
        target: value to adapt to, the field's default.
        above: exclusive lower bound.
        integer: whether it is a whole number.
        choices: the allowed words, for a parameter that is not a number.
    """
    return dataclasses.field(default=target, metadata={"parameter": Parameter(source, above, integer, choices)})


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """Base class of all problems; a subclass defines coordinates, fields, region, terms, ansatz and reference.

    Args:
        conditions: ``hard`` or ``soft``; empty for the first that the problem supports.
        weights: loss weights w_k by term; those of the terms themselves, usually 1, if not given.
        role: ``target``, or ``source`` for the problem that the pretrained network solves, see ``at_source``.

    Raises:
        InputError: if a parameter, the kind of conditions, a term or a weight is invalid; or what the class declares
            does not fit together, see ``checks.declaration``.
    """

    coords: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[str, ...]] = ("u",)
    supports: ClassVar[tuple[str, ...]] = ("hard", "soft")
    enforced: ClassVar[tuple[str, ...]] = ()
    """Names of the terms that vanish identically with the ansatz."""
    periods: ClassVar[Mapping[str, float]] = {}
    """Coordinates in which the network is exactly periodic, and their periods."""
    accuracy: ClassVar[float] = 1e-12
    """Relative accuracy of the reference solution; put into the equation it may leave about the root of that."""
    regular: ClassVar[Region | None] = None
    """The region where the reference is smooth enough to satisfy the equation, if not everywhere."""
    scales: ClassVar[Mapping[str, float | tuple[float, float]] | None] = None
    """Sizes of coordinates, fields and residuals (by term), or (shift, size); what is left out is found, and an empty
    mapping leaves everything in the user's own units."""
    internal: ClassVar[tuple[str, ...]] = ("role",)
    """Arguments that no configuration sets."""
    has_source: ClassVar[bool] = True
    """Whether source file and parameters determine the problem, so that pretrained networks can be cached."""

    conditions: str = ""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    role: str = TARGET

    @property
    @abstractmethod
    def region(self) -> Region:
        """The domain of the equation, with all coordinates."""

    @abstractmethod
    def terms(self) -> Mapping[str, Term]:
        """All terms by name, including those enforced by hard conditions."""

    def reference(self, p: Points) -> Tensor | None:
        """The solution at p, (N, fields), differentiable with respect to the coordinates; None if not known."""
        return None

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        """(g, m), each (N, 1) or (N, fields), of u = g + m · N; used with hard conditions only.

        With a second argument, ``ansatz(self, p, N)``, it takes the network as a function of points, which may be
        others than p, one for each, and returns u itself, (N, fields).
        """
        raise NotImplementedError(f"{type(self).__name__} supports hard conditions but defines no ansatz")

    def represented(self, p: Points, N: Network, conditions: str = "") -> Tensor:
        """The solution at p that a network represents, (N, fields), without what ``Solution`` keeps between calls.

        Args:
            p: points.
            N: the network as a function of points.
            conditions: those of the problem if not given.
        """
        if (conditions or self.conditions) == "soft":
            return N(p)
        if self.reads_network:
            return self.ansatz(p, N)
        g, m = self.ansatz(p)
        return g + m * N(p)

    @property
    def reads_network(self) -> bool:
        """Whether the ansatz takes the network as its second argument."""
        _, *others = inspect.signature(self.ansatz).parameters.values()
        return any(a.default is a.empty and a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in others)

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for part in ("coords", "fields"):
            # A mapping names and declares the sizes at once: fields = {"u": 1.0, "P": 1e5}.
            if isinstance(given := cls.__dict__.get(part), Mapping):
                setattr(cls, part, (*given,))
                cls.scales = {**given, **(cls.scales or {})}
        check_spelling(cls)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        if missing := sorted(cls.__abstractmethods__):
            raise InputError(f"{cls.__name__} has no {' and no '.join(missing)}, which every problem must define.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if name := undeclared(type(self)):
            raise InputError(
                f"{type(self).__name__} declares the parameter {name}, but is no dataclass; write "
                "@dataclass(frozen=True, kw_only=True) above the class."
            )
        check_supports(self)
        if not self.conditions:
            object.__setattr__(self, "conditions", self.supports[0])
        if self.conditions not in self.supports:
            raise unknown(f"conditions of {type(self).__name__}:", self.conditions, self.supports)
        one_of(SOURCE, TARGET).check("role", self.role)
        for name, declared in self.parameters().items():
            value = getattr(self, name)
            declared.check(name, value)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):  # which an unknown one is
                object.__setattr__(self, name, value.item())
        terms = check_declaration(self)
        instance_of(Mapping, "{'ic': 10.0}").check("weights", self.weights)
        for name, weight in self.weights.items():
            number(above=0).check(f"weights.{name}", weight)
        for name, term in terms.items():
            term.check(name)
        loss_terms = self.loss_terms()
        if not loss_terms:
            raise InputError(f"{type(self).__name__} has no term left for its {self.role}; at least one must be.")
        for name in self.weights.keys() - loss_terms.keys() - {"data"}:
            raise unknown(f"loss term in problem.weights of {type(self).__name__}:", name, loss_terms)
        if self.scales:
            self.units()

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """The declared parameters by name."""
        return {f.name: f.metadata["parameter"] for f in dataclasses.fields(cls) if "parameter" in f.metadata}

    @classmethod
    def unknown_fields(cls) -> dict[str, UnknownField]:
        """The declared unknown fields by name."""
        found = {name: x for c in reversed(cls.__mro__) for name, x in vars(c).items()}
        return {name: x for name, x in found.items() if isinstance(x, UnknownField)}

    @property
    def readable(self) -> tuple[str, ...]:
        """The names of all fields that residuals read: those of the solution, then the unknown ones."""
        return (*self.fields, *self.unknown_fields())

    @property
    def unknown(self) -> tuple[str, ...]:
        """The parameters to be estimated, held as tensors by ``Solution``."""
        return tuple(name for name in self.parameters() if isinstance(getattr(self, name), Tensor))

    def known_reference(self, p: Points) -> Tensor | None:
        """The reference, (N, fields); None where it is that of another problem than this.

        An estimate of an unknown parameter defines another problem, and so does the guess of an unknown field at the
        source: the reference is that of the field sought, unless it is another one there than at the target.
        """
        values = None if self.unknown else self.reference(p)
        if values is None:
            return None
        check_values("reference", values, p.number, len(self.fields))
        if self.role == SOURCE and self.unknown_fields():
            target = dataclasses.replace(self, role=TARGET, weights={})
            return None if torch.equal(values, target.reference(p)) else values
        return values

    @property
    def has_ansatz(self) -> bool:
        """Whether it has an ansatz for hard conditions."""
        return type(self).ansatz is not Problem.ansatz

    def at_source(self, **values: Any) -> Problem:
        """The problem solved by the pretrained network.

        Args:
            values: source parameters that replace the declared ones.

        Raises:
            InputError: if there is no such parameter, or a value is not allowed.
        """
        for name in values.keys() - self.parameters().keys():
            raise unknown(f"source parameter of {type(self).__name__}:", name, self.parameters())
        source = {name: declared.source for name, declared in self.parameters().items()} | values
        return self.as_source(**source)

    def as_source(self, **values: Any) -> Problem:
        """The problem with its present parameters, apart from those given, as the one that the network solves."""
        bare = dataclasses.replace(self, **values, weights={}, role=SOURCE)
        return dataclasses.replace(bare, weights={k: w for k, w in self.weights.items() if k in bare.loss_terms()})

    def units(self) -> dict[str, Unit]:
        """The declared scales by name.

        Raises:
            InputError: for a name that is no coordinate, field or term, or a size that is not a positive number.
        """
        allowed = (*self.coords, *self.fields, *self.terms())
        found = {}
        for name, given in (self.scales or {}).items():
            if name not in allowed:
                raise unknown(f"name in scales of {type(self).__name__}:", name, allowed)
            shift, size = given if isinstance(given, tuple) and len(given) == 2 else (0.0, given)
            number().check(f"the shift in scales of {name}", shift)
            found[name] = Unit(float(shift), float(number(above=0).check(f"scales of {name}", size)))
        return found

    def loss_terms(self) -> dict[str, Term]:
        """The terms of the loss with their weights: all, except those that hard conditions enforce and those of the
        source or the target alone if this is the other.
        """
        enforced = self.enforced if self.conditions == "hard" else ()
        return {
            name: term._replace(weight=float(self.weights.get(name, term.weight)))
            for name, term in self.terms().items()
            if name not in enforced and term.only in ("", self.role)
        }

    @property
    def inputs(self) -> int:
        """Number of inputs of the network, the columns of ``embed``."""
        return len(self.coords) + len(self.periods)

    def embed(self, p: Points) -> Tensor:
        """The input of the network, (N, inputs): the coordinates, periodic ones as cosine and sine."""
        columns = []
        for name in self.coords:
            if name in self.periods:
                phase = 2 * math.pi / self.periods[name] * getattr(p, name)
                columns += [torch.cos(phase), torch.sin(phase)]
            else:
                columns.append(getattr(p, name))  # says which columns there are, where this one is not
        return torch.cat(columns, dim=1)

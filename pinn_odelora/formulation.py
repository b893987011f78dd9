"""A problem: an equation with its conditions as named terms, its parameters, and a reference solution.

The loss of a problem is  L = Σ_k w_k · mean_i |r_k(x_i)|²,  the components of r_k summed, which is ½‖r‖² when the
rows are √(2 w_k / N_k) · r_k(x_i). There is no other definition of the loss in this package.

Conditions are enforced either softly, each a term of the loss, or hard, by the ansatz  u = g + m · N  around the
network N: g satisfies the conditions and m vanishes where they hold.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import unknown
from pinn_odelora.geometry import Region
from pinn_odelora.points import Points
from pinn_odelora.rules import Rule, number, one_of, whole

Residual = Callable[[Field], Tensor | tuple[Tensor, ...]]
"""What must vanish, from the field at N points: a column (N, 1), or one column for each component."""


class Term(NamedTuple):
    """One named term of the loss: where it holds, what must vanish there, and its weight w_k.

    Args:
        where: the region in which its points are drawn.
        residual: r_k, from the field at N points to a column (N, 1), or to a tuple of columns for a system.
        weight: w_k, positive.
        coupled: row i of the residual reads point i; declares that it may read others too, as a mean does.
        heldout: where the held-out loss is measured, if ``where`` has the same points at every draw.
    """

    where: Region
    residual: Residual
    weight: float = 1.0
    coupled: bool = False
    heldout: Region | None = None

    @property
    def unseen(self) -> Term:
        """The term where held-out points are drawn."""
        return self if self.heldout is None else self._replace(where=self.heldout)

    def rows(self, field: Field) -> Tensor:
        """The residual as one tensor (N, components)."""
        r = self.residual(field)
        return torch.cat(r, dim=1) if isinstance(r, tuple) else r


@dataclass(frozen=True)
class Parameter:
    """What a problem parameter may be, and its value in the problem that the pretrained network solved."""

    source: Any
    above: float = -math.inf
    integer: bool = False
    choices: tuple[str, ...] = ()

    @property
    def rule(self) -> Rule:
        """What a value must be."""
        if self.choices:
            return one_of(*self.choices)
        if self.integer:
            return whole(math.floor(self.above) + 1 if math.isfinite(self.above) else -math.inf)
        return number(above=self.above)

    def check(self, name: str, value: Any) -> None:
        """Raise ``InputError`` unless the value is allowed, or the present one of a value that is trained."""
        self.rule.check(name, value.item() if isinstance(value, Tensor) else value)


def parameter(
    source: Any,
    target: Any,
    *,
    above: float = -math.inf,
    integer: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field holding a problem parameter: ``nu: float = parameter(0.05, 0.02, above=0)``.

    Args:
        source: value that the pretrained network solved.
        target: value to adapt to, the field's default.
        above: exclusive lower bound.
        integer: whether only whole numbers make sense.
        choices: the allowed words, for a parameter that is not a number.
    """
    return dataclasses.field(default=target, metadata={"parameter": Parameter(source, above, integer, choices)})


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """Base of every problem; a subclass states coordinates, fields, region, terms, ansatz and reference.

    Args:
        conditions: ``hard`` or ``soft``; empty picks the first that the problem supports.
        weights: loss weights w_k by term name, 1 where not given.

    Raises:
        InputError: if a parameter, the kind of conditions or a weight is not allowed.
    """

    coords: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[str, ...]] = ("u",)
    supports: ClassVar[tuple[str, ...]] = ("hard", "soft")
    enforced: ClassVar[tuple[str, ...]] = ()
    """Names of the terms that the ansatz satisfies identically."""
    periods: ClassVar[Mapping[str, float]] = {}
    """Coordinates in which the network is exactly periodic, and their periods."""
    accuracy: ClassVar[float] = 1e-12
    """Relative accuracy of the reference solution."""
    regular: ClassVar[Region | None] = None
    """Where the reference is smooth enough to be put into the equation, if not everywhere."""
    has_source: ClassVar[bool] = True
    """Whether source file and values determine the problem, so that a pretrained network is kept for later runs."""

    conditions: str = ""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    @abstractmethod
    def region(self) -> Region:
        """The domain of the equation, all coordinates included."""

    @abstractmethod
    def terms(self) -> Mapping[str, Term]:
        """Every term by name, those that hard conditions would enforce included."""

    def reference(self, p: Points) -> Tensor | None:
        """The solution at p, (N, fields), differentiable with respect to the coordinates; None where none is known."""
        return None

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        """(g, m), each (N, 1) or (N, fields), with u = g + m · N; only asked under hard conditions."""
        raise NotImplementedError(f"{type(self).__name__} supports hard conditions but defines no ansatz")

    def __post_init__(self) -> None:
        if not self.conditions:
            object.__setattr__(self, "conditions", self.supports[0])
        if self.conditions not in self.supports:
            raise unknown(f"conditions of {type(self).__name__}:", self.conditions, self.supports)
        for name, declared in self.parameters().items():
            declared.check(name, getattr(self, name))
        for name, weight in self.weights.items():
            number(above=0).check(f"weights.{name}", weight)
        for name in self.weights.keys() - self.loss_terms().keys() - {"data"}:
            raise unknown(f"loss term in problem.weights of {type(self).__name__}:", name, self.loss_terms())

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """The declared parameters by name."""
        return {f.name: f.metadata["parameter"] for f in dataclasses.fields(cls) if "parameter" in f.metadata}

    @property
    def unknown(self) -> tuple[str, ...]:
        """Parameters that are being found, which ``Solution`` holds as tensors."""
        return tuple(name for name in self.parameters() if isinstance(getattr(self, name), Tensor))

    def known_reference(self, p: Points) -> Tensor | None:
        """The reference, or None while a parameter is unknown: at an estimate it would be that of another problem."""
        return None if self.unknown else self.reference(p)

    def at_source(self, **values: Any) -> Problem:
        """The problem that the pretrained network solved; ``values`` replace the declared source parameters."""
        for name in values.keys() - self.parameters().keys():
            raise unknown(f"source parameter of {type(self).__name__}:", name, self.parameters())
        source = {name: declared.source for name, declared in self.parameters().items()} | values
        bare = dataclasses.replace(self, **source, weights={})
        return dataclasses.replace(bare, weights={k: w for k, w in self.weights.items() if k in bare.loss_terms()})

    def loss_terms(self) -> dict[str, Term]:
        """The terms that training sees: all of them, or those that hard conditions leave, with their weights."""
        enforced = self.enforced if self.conditions == "hard" else ()
        return {
            name: term._replace(weight=float(self.weights.get(name, term.weight)))
            for name, term in self.terms().items()
            if name not in enforced
        }

    @property
    def inputs(self) -> int:
        """Columns of ``embed``: how many inputs the network needs."""
        return len(self.coords) + len(self.periods)

    def embed(self, p: Points) -> Tensor:
        """What the network sees, (N, inputs): coordinates as they are, periodic ones as cosine and sine."""
        columns = []
        for name in self.coords:
            if name in self.periods:
                phase = 2 * math.pi / self.periods[name] * p[name]
                columns += [torch.cos(phase), torch.sin(phase)]
            else:
                columns.append(p[name])
        return torch.cat(columns, dim=1)

"""What a residual asks of its field, found by one dry run, and how jets will answer it.

The dry run evaluates the residual at a few points by nested reverse mode, which works for any network, and writes
down every request. The plan closes the words downwards, since the chain rule of u_xx reads u_x, and lets a linear
operator travel as one channel wherever that makes fewer channels than its derivatives would.

Cost is counted in products of the points with a hidden weight. Jets need one for each channel. Nested reverse mode
needs one for the value, and to differentiate a column of order k once more as many as that column cost, 2^k: four for
u_t, u_x, u_xx of a scalar, where jets need three or four; twelve for steady Navier-Stokes, where jets need four; but
two for the gradient of a scalar in any number of dimensions, where jets need one more than those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.jet import Coefficient
from pinn_odelora.derivatives.multiindex import Word, closed, parts, word
from pinn_odelora.points import Points


class Operator(NamedTuple):
    """A request ``f.op(field, coefficients)``, its words sorted."""

    field: str
    coefficients: dict[Word, Coefficient]

    @property
    def numeric(self) -> bool:
        """Whether all coefficients are numbers, and so the same at every evaluation."""
        return all(isinstance(c, float | int) for c in self.coefficients.values())

    @property
    def differential(self) -> dict[Word, Coefficient]:
        """The part of order one or more."""
        return {alpha: c for alpha, c in self.coefficients.items() if alpha}

    def like(self, other: Operator) -> bool:
        """Whether the two ask the same, apart from the values of coefficients that are tensors."""
        if self.field != other.field or self.coefficients.keys() != other.coefficients.keys():
            return False
        return all(
            isinstance(c, Tensor) or isinstance(other.coefficients[alpha], Tensor) or c == other.coefficients[alpha]
            for alpha, c in self.coefficients.items()
        )


def operator(field: str, coefficients: Mapping[str, Coefficient]) -> Operator:
    """A request in its normal form: words sorted, equal ones added."""
    found: dict[Word, Coefficient] = {}
    for along, c in coefficients.items():
        alpha = word(along)
        found[alpha] = found[alpha] + c if alpha in found else c
    return Operator(field, found)


class Recorder(Field):
    """A field that answers from another one and writes down what is asked."""

    def __init__(self, inner: Field) -> None:
        super().__init__(inner.points, inner.fields, inner.coords)
        self.inner = inner
        self.words: dict[tuple[str, Word], None] = {}
        self.operators: list[Operator] = []
        self.moved: list[Recorder] = []

    def derivative(self, field: str, along: str) -> Tensor:
        self.words[field, word(along)] = None
        return self.inner.derivative(field, along)

    def op(self, field: str, coefficients: Mapping[str, Coefficient]) -> Tensor:
        self.operators.append(operator(field, coefficients))
        return self.inner.op(field, coefficients)

    def at(self, **columns: Tensor) -> Recorder:
        self.moved.append(Recorder(self.inner.at(**columns)))
        return self.moved[-1]


class Blank(Field):
    """A field that answers every request with ones: enough to learn coefficients that do not depend on the solution."""

    def derivative(self, field: str, along: str) -> Tensor:
        return torch.ones_like(self.points[self.coords[0]])

    def at(self, **columns: Tensor) -> Blank:
        return Blank(Points({**self.points, **columns}), self.fields, self.coords)


class Unknown(Tensor):
    """What is not known yet: whatever torch computes from it, a comparison included, is unknown too."""


class Unsolved(Blank):
    """A blank field whose answers are marked, so that coefficients show whether they depend on the solution."""

    def derivative(self, field: str, along: str) -> Tensor:
        return super().derivative(field, along).as_subclass(Unknown)

    def at(self, **columns: Tensor) -> Unsolved:
        return Unsolved(Points({**self.points, **columns}), self.fields, self.coords)


@dataclass(frozen=True)
class Plan:
    """How jets answer one evaluation of a residual.

    Args:
        words: the derivatives that were asked by name.
        derivatives: all that are carried, lowest order first.
        operators: every operator request in the order asked.
        channel: for each of them the number of the operator channel that answers it, None where its derivatives do.
        moved: the plans of the fields at moved points, in the order asked.
        reverse: cost of the same by nested reverse mode.
    """

    words: frozenset[Word]
    derivatives: tuple[Word, ...]
    operators: tuple[Operator, ...]
    channel: tuple[int | None, ...]
    moved: tuple[Plan, ...] = ()
    reverse: int = field(default=0, compare=False)

    @property
    def carried(self) -> int:
        """Channels of this evaluation and the moved ones: the cost by jets."""
        own = {number for number in self.channel if number is not None}
        return 1 + len(self.derivatives) + len(own) + sum(plan.carried for plan in self.moved)

    @property
    def blind(self) -> bool:
        """Whether every operator's coefficients are numbers, here and at the moved points."""
        return all(o.numeric for o in self.operators) and all(plan.blind for plan in self.moved)

    @property
    def leaders(self) -> dict[int, int]:
        """For each operator channel the first request that it answers."""
        first: dict[int, int] = {}
        for request, number in enumerate(self.channel):
            if number is not None:
                first.setdefault(number, request)
        return first


def plan(recorder: Recorder, collapsible: Sequence[bool]) -> Plan:
    """The plan for what a recorder has seen.

    Args:
        collapsible: for each operator request whether its coefficients do not depend on the solution.
    """
    words = frozenset(alpha for _, alpha in recorder.words)
    carried = set(closed(words))
    channel: list[int | None] = []
    channels: list[Operator] = []
    for request, allowed in zip(recorder.operators, collapsible, strict=True):
        asked = request.differential
        known = next((n for n, o in enumerate(channels) if _same_numbers(o, request)), None)
        below = set().union(*(parts(alpha) - {alpha} for alpha in asked))
        apart, together = set(closed(asked)) - carried, set(closed(below)) - carried
        if known is None and allowed and len(together) + 1 < len(apart):
            known = len(channels)
            channels.append(request)
            carried |= together
        elif known is None:
            carried |= apart
        channel.append(known)
    return Plan(
        words,
        closed(carried),
        tuple(recorder.operators),
        tuple(channel),
        tuple(plan(moved, [moved_op.numeric for moved_op in moved.operators]) for moved in recorder.moved),
        _reverse_cost(recorder),
    )


def _same_numbers(a: Operator, b: Operator) -> bool:
    """Whether one channel answers both; a tensor may have the number's value, but it has its own gradient."""
    return a.numeric and b.numeric and a.differential == b.differential


def _reverse_cost(recorder: Recorder) -> int:
    asked = set(recorder.words)
    asked |= {(request.field, alpha) for request in recorder.operators for alpha in request.coefficients}
    differentiated = {(name, alpha[:k]) for name, alpha in asked for k in range(len(alpha))}
    return 1 + sum(2 ** len(alpha) for _, alpha in differentiated) + sum(map(_reverse_cost, recorder.moved))

"""The derivatives that a residual requests, found in a dry run, and the jet channels that provide them.

The dry run evaluates the residual at a few points by nested reverse mode, which works for any network, and records
every request. The plan closes the multi-indices under the chain rule (u_xx needs u_x), and gives a linear operator a
channel of its own wherever that takes fewer channels than its derivatives.

Cost is counted in products of the points with a hidden weight. Jets need one per channel. Nested reverse mode needs
one for the value, and differentiating a column of order k once more costs as much as that column, 2^k: four for
u_t, u_x, u_xx of a scalar, where jets need three or four; twelve for steady Navier–Stokes, where jets need four; but
two for the gradient of a scalar in d dimensions, where jets need d + 1.
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
    """A request ``f.op(field, coefficients)``, with sorted multi-indices."""

    field: str
    coefficients: dict[Word, Coefficient]

    @property
    def numeric(self) -> bool:
        """Whether all coefficients are numbers, hence the same at every evaluation."""
        return all(isinstance(c, float | int) for c in self.coefficients.values())

    @property
    def differential(self) -> dict[Word, Coefficient]:
        """The part of order one or higher."""
        return {alpha: c for alpha, c in self.coefficients.items() if alpha}

    def like(self, other: Operator) -> bool:
        """Whether the two are the same request, up to the values of tensor coefficients."""
        if self.field != other.field or self.coefficients.keys() != other.coefficients.keys():
            return False
        return all(
            isinstance(c, Tensor) or isinstance(other.coefficients[alpha], Tensor) or c == other.coefficients[alpha]
            for alpha, c in self.coefficients.items()
        )


def operator(field: str, coefficients: Mapping[str, Coefficient]) -> Operator:
    """A request in normal form: multi-indices sorted, coefficients of equal ones added."""
    found: dict[Word, Coefficient] = {}
    for along, c in coefficients.items():
        alpha = word(along)
        found[alpha] = found[alpha] + c if alpha in found else c
    return Operator(field, found)


class Recorder(Field):
    """A field that records every request and passes it on to ``inner``.

    Attributes:
        transformed: whether it was evaluated elsewhere, inside transforms of torch.func.
    """

    def __init__(self, inner: Field) -> None:
        super().__init__(inner.points, inner.fields, inner.coords)
        self.inner = inner
        self.words: dict[tuple[str, Word], None] = {}
        self.operators: list[Operator] = []
        self.moved: list[Recorder] = []
        self.transformed = False

    def values(self, rows: Tensor) -> Tensor:
        self.transformed = True
        return self.inner.values(rows)

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
    """A field equal to one everywhere, to evaluate coefficients that do not depend on the solution."""

    def derivative(self, field: str, along: str) -> Tensor:
        return torch.ones_like(self.points[self.coords[0]])

    def values(self, rows: Tensor) -> Tensor:
        return self.derivative(self.fields[0], "")[:1].expand(len(rows), len(self.fields))

    def at(self, **columns: Tensor) -> Blank:
        return Blank(Points({**self.points, **columns}), self.fields, self.coords)


class Unknown(Tensor):
    """A marked tensor: every result that torch computes from it, comparisons included, carries the same mark."""


class Unsolved(Blank):
    """A blank field with marked values, which reveal the coefficients that depend on the solution."""

    def derivative(self, field: str, along: str) -> Tensor:
        return super().derivative(field, along).as_subclass(Unknown)

    def at(self, **columns: Tensor) -> Unsolved:
        return Unsolved(Points({**self.points, **columns}), self.fields, self.coords)


@dataclass(frozen=True)
class Plan:
    """The jet channels for one evaluation of a residual.

    Args:
        words: the derivatives requested by name.
        derivatives: all derivatives carried, by increasing order.
        operators: all operator requests, in order.
        channel: for each of them the number of its operator channel; None if it is assembled from derivatives.
        moved: the plans of the fields at moved points, in order.
        reverse: cost by nested reverse mode, see the module's docstring.
    """

    words: frozenset[Word]
    derivatives: tuple[Word, ...]
    operators: tuple[Operator, ...]
    channel: tuple[int | None, ...]
    moved: tuple[Plan, ...] = ()
    reverse: int = field(default=0, compare=False)

    @property
    def carried(self) -> int:
        """Number of channels, those at moved points included: the cost by jets."""
        own = {number for number in self.channel if number is not None}
        return 1 + len(self.derivatives) + len(own) + sum(plan.carried for plan in self.moved)

    @property
    def blind(self) -> bool:
        """Whether all operators have numerical coefficients, at moved points as well."""
        return all(o.numeric for o in self.operators) and all(plan.blind for plan in self.moved)

    @property
    def leaders(self) -> dict[int, int]:
        """The first request of each operator channel."""
        first: dict[int, int] = {}
        for request, number in enumerate(self.channel):
            if number is not None:
                first.setdefault(number, request)
        return first


def plan(recorder: Recorder, collapsible: Sequence[bool]) -> Plan:
    """The plan for the recorded requests.

    Args:
        recorder: the field of the dry run.
        collapsible: for each operator request whether its coefficients are independent of the solution.
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
        reverse_cost(recorder),
    )


def _same_numbers(a: Operator, b: Operator) -> bool:
    """Whether both can share a channel; tensors cannot, since equal values may have different gradients."""
    return a.numeric and b.numeric and a.differential == b.differential


def order(recorder: Recorder) -> int:
    """The highest order of a derivative that is asked for."""
    asked = [alpha for _, alpha in recorder.words]
    asked += [alpha for request in recorder.operators for alpha in request.coefficients]
    return max([0, *map(len, asked), *map(order, recorder.moved)])


def reverse_cost(recorder: Recorder) -> int:
    """Products of the points with a hidden weight by nested reverse mode, see the module's docstring."""
    asked = set(recorder.words)
    asked |= {(request.field, alpha) for request in recorder.operators for alpha in request.coefficients}
    differentiated = {(name, alpha[:k]) for name, alpha in asked for k in range(len(alpha))}
    return 1 + sum(2 ** len(alpha) for _, alpha in differentiated) + sum(map(reverse_cost, recorder.moved))

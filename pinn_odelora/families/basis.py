"""The stations' solutions as a basis, with their derivatives at fixed points.

With u_j the solution of station j at μ_j, of the ansatz u_j = g(·; μ_j) + m N_j,

    u(·; μ) = g(·; μ) + Σ_j c_j φ_j ,      φ_j = u_j - g(·; μ_j) = m N_j ,

so that enforced conditions hold for any c. The derivatives ∂_α φ_j that a residual asks for are taken once, into tables
T_α (N, K) of K stations. A residual is then r(∂_α u) with ∂_α u = ∂_α g + T_α c, and since row i reads point i alone,

    ∂r/∂c = Σ_α (∂r/∂(∂_α u)) ∘ T_α ,

by one reverse sweep through the equation, without any network. Every operation has a leading axis for the members that
are evaluated together, at parameters of their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pinn_odelora.derivatives import AutogradField, Field
from pinn_odelora.derivatives.multiindex import word
from pinn_odelora.derivatives.plan import Recorder
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.nets.scaled import terms_in_own_units
from pinn_odelora.points import Points

Terms = Callable[[Problem], Mapping[str, Term]]
At = Callable[[int], Problem]
"""The equation at the parameters of some members, for so many points of each."""


class Derivative(NamedTuple):
    """∂_α of a field, at the points or at those of ``f.at(...)``.

    Attributes:
        moved: which of the fields at moved points, in the order of the requests; empty for the field itself.
        field: name of the component.
        along: α as a sorted word.
    """

    moved: tuple[int, ...]
    field: str
    along: str


Table = dict[Derivative, Tensor]


def derivatives(function: Callable[[Points], Tensor], term: Term, p: Points, problem: Problem) -> Table:
    """What the residual of a term asks of a function, Points -> (N, fields): columns (N, 1), float64."""
    recorder = Recorder(AutogradField(function, p, problem.fields, problem.coords))
    term.rows(recorder)
    return {key: column.detach() for key, column in _columns(recorder)}


def _columns(recorder: Recorder, moved: tuple[int, ...] = ()) -> Iterator[tuple[Derivative, Tensor]]:
    asked = dict.fromkeys(recorder.words)
    asked |= {(request.field, along): None for request in recorder.operators for along in request.coefficients}
    for name, along in asked:
        yield Derivative(moved, name, along), recorder.inner.derivative(name, along).double()
    for k, there in enumerate(recorder.moved):
        yield from _columns(there, (*moved, k))


class Known(Field):
    """A field whose derivatives are given."""

    def __init__(self, p: Points, problem: Problem, columns: Table, moved: tuple[int, ...] = ()) -> None:
        super().__init__(p, problem.fields, problem.coords)
        self._problem, self._columns, self._moved, self._fields_at = problem, columns, moved, 0

    def derivative(self, field: str, along: str) -> Tensor:
        return self._columns[Derivative(self._moved, field, word(along))]

    def at(self, **columns: Tensor) -> Known:
        self._fields_at += 1
        there = Points({**self.points, **columns})
        return Known(there, self._problem, self._columns, (*self._moved, self._fields_at - 1))


class Basis:
    """Residuals of combinations of the φ_j at given points.

    Args:
        parametric: the residual system of the family.
        points: by term.
        terms: of the equation; those of its loss unless given. They are in the units of the network.
        device: where combinations are evaluated.
    """

    def __init__(
        self,
        parametric: Parametric,
        points: Mapping[str, Points],
        terms: Terms = lambda problem: problem.loss_terms(),
        device: torch.device | str = "cpu",
    ) -> None:
        self.parametric, self.device = parametric, torch.device(device)
        self.terms: Terms = lambda problem: terms_in_own_units(terms(problem), parametric.net)
        self._given = points
        self.points = {name: p.to(self.device) for name, p in points.items()}
        self._parts: dict[str, dict[Derivative, list[Tensor]]] = {name: {} for name in points}
        self._tables: dict[str, Table] = {}

    @property
    def number(self) -> int:
        """Points of all terms."""
        return sum(p.number for p in self.points.values())

    def put(self, k: int) -> None:
        """Take the member in the network for φ_k, in the place of another one or behind the last."""
        parametric = self.parametric
        for name, term in self.terms(parametric.problem).items():
            for key, column in derivatives(parametric.free, term, self._given[name], parametric.problem).items():
                self._parts[name].setdefault(key, [])[k : k + 1] = [column.to(self.device)]
        self._tables = {}

    def table(self, name: str) -> Table:
        """T_α of a term, (N, K)."""
        if name not in self._tables:
            self._tables[name] = {key: torch.cat(parts, dim=1) for key, parts in self._parts[name].items()}
        return self._tables[name]

    def residuals(self, at: At, c: Tensor) -> Tensor:
        """r of all members, (members, R), in the order of ``System.residual_vector``, for c (members, K)."""
        return torch.cat([part for r, _, _ in self._by_term(at, c) for part in self._each(r, len(c))], dim=1).detach()

    def linearised(self, at: At, c: Tensor) -> tuple[Tensor, Tensor]:
        """r, and ∂r/∂c (members, R, K)."""
        rows, slopes = [], []
        with torch.enable_grad():
            for r, u, T in self._by_term(at, c):
                rows += self._each(r, len(c))
                slopes += [_slope(column, u, T, len(c)) for column in r.unbind(dim=1)]
        return torch.cat(rows, dim=1).detach(), torch.cat(slopes, dim=1)

    @staticmethod
    def _each(r: Tensor, members: int) -> list[Tensor]:
        return [column.view(members, -1) for column in r.unbind(dim=1)]

    def _by_term(self, at: At, c: Tensor) -> Iterator[tuple[Tensor, Table, Table]]:
        """Of every term the weighted residual (members · N, components), ∂_α u and T_α."""
        for name, p in self.points.items():
            problem, T = at(p.number), self.table(name)
            term = self.terms(problem)[name]
            many = p if len(c) == 1 else Points({key: x.repeat(len(c), 1) for key, x in p.items()})
            u = {key: (c @ table.mT).reshape(-1, 1) for key, table in T.items()}
            for key, column in _given(problem, term, many).items():
                u[key] = u[key] + column
            u = {key: column.requires_grad_(torch.is_grad_enabled()) for key, column in u.items()}
            yield math.sqrt(2 * term.weight / p.number) * term.rows(Known(many, problem, u)), u, T


def _given(problem: Problem, term: Term, p: Points) -> Table:
    """∂_α g; empty where conditions are soft."""
    if problem.conditions == "soft":
        return {}
    return derivatives(lambda q: problem.ansatz(q)[0].expand(-1, len(problem.fields)), term, p, problem)


def _slope(r: Tensor, u: Table, T: Table, members: int) -> Tensor:
    """∂r/∂c of one component, (members, N, K)."""
    first = next(iter(T.values()))
    total = first.new_zeros(members, *first.shape)
    if r.requires_grad:
        found = torch.autograd.grad(r.sum(), [*u.values()], retain_graph=True, allow_unused=True)
        for g, table in zip(found, T.values(), strict=True):
            if g is not None:
                total.addcmul_(g.view(members, -1, 1), table)
    return total


def spread(problem: Problem, values: Mapping[str, Tensor]) -> At:
    """The equation with a column for each parameter: member after member, the same value at all points of one."""

    def at(number: int) -> Problem:
        found = copy.copy(problem)
        for name, x in values.items():
            object.__setattr__(found, name, x.repeat_interleave(number)[:, None])
        return found

    return at

"""The reference put into the equation, with every quantity that a residual asks for as a variable of its own.

A summand of a residual r is q · ∂r/∂q for a quantity q that r asks of the field; for the terms of an equation that is
what stands between the plus signs. A residual vanishes if it is small against its largest summand, and a quantity
matters if the residual no longer vanishes when its sign is flipped.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.derivatives.field import Field
from pinn_odelora.geometry import sobol
from pinn_odelora.points import Points
from pinn_odelora.system import draw_points
from pinn_odelora.unknown_fields import extended

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem

SEEN = 1e-3
"""What a term leaves at least, of its largest summand, where a flipped sign shows."""
Quantity = tuple[str, str, str]
"""Field, derivative along, and place: here, or at the n-th points that ``at`` was asked for."""


class Multiplied(NamedTuple):
    """A quantity q of the reference, and the c = 1 at every point that a residual sees it multiplied by.

    ∂r/∂c = q ∂r/∂q is then the summand of a residual r that q is in, and ∂(c q)/∂x that of q itself.
    """

    q: Tensor
    c: Tensor


class Quantities(Field):
    """The reference, with unknown fields at their guess, as a field whose every quantity is multiplied by a leaf of its
    own; those in ``flipped`` have the wrong sign.

    Args:
        problem: it has the reference.
        points: where.
        flipped: quantities with the wrong sign.
        asked: collects the quantities, those at moved points among them.
        place: of these points.
    """

    def __init__(
        self,
        problem: Problem,
        points: Points,
        flipped: Collection[Quantity] = (),
        asked: dict[Quantity, Multiplied] | None = None,
        place: str = "here",
    ) -> None:
        known = extended(problem.reference, problem.unknown_fields())
        self.exact = AutogradField(known, points, problem.readable, problem.coords)
        super().__init__(self.exact.points, problem.readable, problem.coords)
        self.problem = problem
        self.flipped = flipped
        self.asked = {} if asked is None else asked
        self.place = place
        self.moved = 0

    def derivative(self, field: str, along: str) -> Tensor:
        along = "".join(sorted(along))
        key = (field, along, self.place)
        if key not in self.asked:
            q = self.exact.derivative(field, along)
            self.asked[key] = Multiplied(-q if key in self.flipped else q, torch.ones_like(q).requires_grad_())
        q, c = self.asked[key]
        return c * q

    def values(self, rows: Tensor) -> Tensor:
        return self.exact.values(rows)

    def at(self, **columns: Tensor) -> Quantities:
        place = f"{self.place}.{self.moved}"
        self.moved += 1
        return Quantities(self.problem, Points({**self.points, **columns}), self.flipped, self.asked, place)

    def largest_summand(self, component: Tensor) -> float:
        """Of one component of a residual that was evaluated with this field; 0 where it asked for none."""
        if not component.requires_grad:
            return 0.0
        factors = [c for _, c in self.asked.values()]
        summands = torch.autograd.grad(component.sum(), factors, retain_graph=True, materialize_grads=True)
        return max((float(x.detach().abs().max()) for x in summands), default=0.0)


def generic_points(problem: Problem) -> dict[str, Points]:
    """Points of every term at which it may be tested: those of full dimension where the reference is smooth."""
    points = draw_points(problem.terms(), 400, 100, seed=3)
    if problem.regular is not None:
        regular = problem.regular.sample(400, lambda n, d: sobol(n, d, seed=3))
        points |= {k: regular for k, term in problem.terms().items() if term.where.interior}
    return points


def size(problem: Problem) -> float:
    """Largest value of the reference."""
    return float(problem.reference(problem.region.sample(400, lambda n, d: sobol(n, d, seed=4))).abs().max())


def sought_by(problem: Problem, name: str, points: Points) -> list[str]:
    """The unknown fields that a term reads."""
    if not (declared := problem.unknown_fields()):
        return []
    field = Quantities(problem, points)
    problem.terms()[name].rows(field)
    return [q for q in declared if any(q == asked for asked, _, _ in field.asked)]


def left_at_reference(problem: Problem, name: str, points: Points) -> float:
    """What a term leaves of its largest summand at the reference, the worst of its components.

    A condition u = 0 has no summand that is not zero; it is measured against the solution elsewhere.
    """
    term = problem.terms()[name]
    field = Quantities(problem, points)
    left = []
    for component in term.rows(field).unbind(dim=1):
        scale = field.largest_summand(component) if term.where.interior else size(problem)
        rest = float(component.detach().abs().max())
        left.append(rest / scale if scale else rest)
    return max(left)


def indifferent(problem: Problem, name: str, points: Points, enough: float = SEEN) -> list[Quantity]:
    """The quantities, zero ones aside, whose sign a term does not notice: what it leaves stays below ``enough``."""
    term = problem.terms()[name]
    field = Quantities(problem, points)
    term.rows(field)
    found = []
    for quantity in [q for q, (values, _) in field.asked.items() if values.any()]:
        wrong = Quantities(problem, points, flipped=[quantity])
        rows = term.rows(wrong).unbind(dim=1)
        if not any(float(r.detach().abs().max()) > enough * wrong.largest_summand(r) for r in rows):
            found.append(quantity)
    return found

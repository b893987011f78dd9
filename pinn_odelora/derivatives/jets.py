"""Derivatives of a solution by jets: one forward pass with all channels of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.jet import Channels, Coefficient, Jet, NoJetRule, Tape
from pinn_odelora.derivatives.multiindex import Word, word
from pinn_odelora.derivatives.plan import Operator, Plan, Recorder, operator
from pinn_odelora.errors import InputError
from pinn_odelora.points import Points

Solved = Callable[[Points], Tensor]


class JetField(Field):
    """A field whose derivatives are those of a plan, from one forward pass.

    Args:
        solution: the map Points -> (N, fields), composed of functions with jet rules.
        points: evaluation points.
        fields: names of the solution's components, in order.
        coords: names of the coordinates, one letter each.
        plan: the requests of the residual.
        asked: the operator requests of this evaluation with their coefficients; None if these are all numbers, and so
            those of the plan.
        tape: receives what is evaluated of trained layers and tensors, if given, see ``Channels``.

    Raises:
        InputError: at a request that is not in the plan.
    """

    def __init__(
        self,
        solution: Solved,
        points: Points,
        fields: Sequence[str],
        coords: Sequence[str],
        plan: Plan,
        asked: Recorder | None = None,
        tape: Tape | None = None,
    ) -> None:
        super().__init__(points, fields, coords)
        self.solution = solution
        self.plan = plan
        self.asked = asked
        self.tape = tape
        self.jet = self._propagate()
        self._operators = 0
        self._moved = 0

    def _propagate(self) -> Jet:
        if self.asked is not None or self.tape is not None:
            return self.solution(self._seeded())
        # Keeping the plan alive keeps its id unique.
        _, jets = self.points.kept(("jets", id(self.plan)), lambda: (self.plan, LastingJets(self._seeded())))
        return self.solution(jets)

    def _seeded(self) -> Points:
        requests = self.plan.operators if self.asked is None else self.asked.operators
        leaders = (requests[request].differential for request in self.plan.leaders.values())
        return seeded(self.points, self.coords, Channels(self.plan.derivatives, tuple(leaders), self.tape))

    def derivative(self, field: str, along: str) -> Tensor:
        alpha = word(along)
        if alpha and alpha not in self.plan.derivatives:
            raise InputError(
                f"The residual requests {field}_{along}, which it did not request in the dry run "
                f"({', '.join(self.plan.derivatives) or 'no derivative'}); its requests must not depend on values."
            )
        return self._column(field, alpha)

    def _column(self, field: str, channel: Word | int) -> Tensor:
        i = self.fields.index(field)
        return self.jet.part(channel)[:, i : i + 1]

    def op(self, field: str, coefficients: Mapping[str, Coefficient]) -> Tensor:
        request = operator(field, coefficients)
        number = self._answer(request)
        if number is None:
            return super().op(field, coefficients)
        image = self._column(field, number)
        return image + request.coefficients[""] * self._column(field, "") if "" in request.coefficients else image

    def _answer(self, request: Operator) -> int | None:
        """The channel of the next operator request, which must be the planned one; None if it has none of its own."""
        place = self._operators
        self._operators += 1
        if place >= len(self.plan.operators) or not self.plan.operators[place].like(request):
            raise InputError(
                f"The residual applies {_shown(request)}, which it did not apply in the dry run; its operators, their "
                "order and their constant coefficients must not depend on values."
            )
        return self.plan.channel[place]

    def values(self, rows: Tensor) -> Tensor:
        raise NoJetRule("the residual is written with transforms of torch.func")

    def at(self, **columns: Tensor) -> JetField:
        place = self._moved
        self._moved += 1
        if place >= len(self.plan.moved):
            raise InputError(
                "The residual evaluates the solution at moved points, f.at(...), more often than in the dry run; its "
                "requests must not depend on values."
            )
        asked = None if self.asked is None else self.asked.moved[place]
        points = Points({**self.points, **columns})
        return JetField(self.solution, points, self.fields, self.coords, self.plan.moved[place], asked, self.tape)


def _shown(request: Operator) -> str:
    terms = ", ".join(
        f"{alpha or 'the field'!r}: {c if isinstance(c, float | int) else 'a tensor'}"
        for alpha, c in request.coefficients.items()
    )
    return f"op({request.field!r}, {{{terms}}})"


class LastingJets(Points):
    """Coordinates as jets, reused at every evaluation at the same points: they depend on no trained tensor."""


def seeded(points: Points, coords: Sequence[str], channels: Channels) -> Points:
    """The points with each coordinate x_c as a jet: value x_c, derivative ∂x_c/∂x_c = 1.

    A channel that is the same at all points has a single row, which the first layer then propagates at the cost of one
    point. A tape needs all rows, so there it is expanded.

    Args:
        points: columns (N, 1).
        coords: names of the coordinates.
        channels: the channels to carry.
    """
    columns: dict[str, Any] = dict(points)
    for c in coords:
        x = points[c].detach()
        one = torch.ones_like(x) if channels.tape is not None else x.new_ones(1, *x.shape[1:])
        parts: dict[Any, Tensor] = {"": x}
        if c in channels.derivatives:
            parts[c] = one
        for number, coefficients in enumerate(channels.operators):
            if c in coefficients:
                parts[number] = coefficients[c] * one
        columns[c] = Jet(parts, channels)
    return Points(columns)


def alike(q: Points, p: Points) -> Points:
    """Points q with all columns as jets if some of p are: those of constants have a value alone.

    A network evaluated at them has its linear layers on the tape, like one at p.
    """
    if q is p:
        return p
    channels = next((x.channels for x in p.values() if isinstance(x, Jet)), None)
    if channels is None:
        return q
    return Points({name: x if isinstance(x, Jet) else Jet({"": x}, channels) for name, x in q.items()})


def lifted(function: Callable[[Points], Any], p: Points) -> Any:
    """``function(p)`` for jets in p; if the function has no jet rule, its channels come from nested reverse mode.

    Meant for functions of the coordinates alone, such as an ansatz.

    Args:
        function: Points -> (N, k), or a tuple of such tensors.
        p: points whose coordinates may be jets.
    """
    try:
        return function(p)
    except Exception:  # Code written for tensors can fail on jets in any way.
        coords = {name: x for name, x in p.items() if isinstance(x, Jet)}
        if not coords:
            raise
        channels = next(iter(coords.values())).channels
        plain = Points({name: x.value if isinstance(x, Jet) else x for name, x in p.items()})
        several = not isinstance(function(plain), Tensor)
        found = [_by_reverse(part, plain, tuple(coords), channels) for part in _each(function, plain)]
        return tuple(found) if several else found[0]


def _each(function: Callable[[Points], Any], p: Points) -> list[Solved]:
    image = function(p)
    if isinstance(image, Tensor):
        return [function]
    return [lambda q, i=i: function(q)[i] for i in range(len(image))]


def _by_reverse(function: Solved, p: Points, coords: Sequence[str], channels: Channels) -> Jet:
    columns = [str(i) for i in range(function(p).shape[1])]
    f = AutogradField(function, p, columns, coords)
    parts: dict[Any, Tensor] = {}
    for alpha in ("", *channels.derivatives):
        parts[alpha] = torch.cat([f.derivative(name, alpha) for name in columns], dim=1)
    for number, coefficients in enumerate(channels.operators):
        parts[number] = torch.cat([f.op(name, coefficients) for name in columns], dim=1)
    return Jet(parts, channels)

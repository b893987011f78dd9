"""The size of each field: of the values that conditions prescribe or that were measured, or what the equation asks for.

Values that vary little about one far from zero, as P = 10⁵ ± 1 or temperatures in kelvin, have a shift: what varies is
computed with, at least as large as the values vary and as large as the equation makes it vary.

The equation tells a size as follows. Let N_j = a_j + s_j φ_j with random smooth φ_j of mean square one. In a component
r_k of a residual field j must balance what is there without it,

    s_j ‖∂r_k/∂s_j‖ = ‖r_k(s_j = 0)‖.

Where no other field acts this one has to, so that of these s_j the largest counts; where others act, which are known,
they may balance each other, so that of these the smallest counts. What is found tells of the others in turn.

With hard conditions u = g + m · N the unknown is N. Its size is what balances the residual of g, or that of u divided
by the root mean square of m, whichever is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pinn_odelora.formulation import Problem, Term
from pinn_odelora.scaling.trial import Trial, points_of, prescribed
from pinn_odelora.units import NATURAL, TOLERATED, TOLERATED_ESTIMATE, Unit, of_order_one, rounded

OFFSET = 3.0
"""A value is taken off if it is more than so many times as large as the variation about it."""
ROUNDING = 1e-9


@dataclass(frozen=True)
class Found:
    """What is known of one field.

    Attributes:
        output: the unit of the network's output.
        field: the unit of the field.
        typical: a value of the output, and its variation about it.
        origin: what told it.
    """

    output: Unit
    field: Unit
    typical: Unit
    origin: str


class Fields:
    """The fields of a problem.

    Args:
        problem: the equation.
        trial: its residuals under fields of given sizes.
        declared: units by name.
        data: the term of measured values.
    """

    def __init__(self, problem: Problem, trial: Trial, declared: Mapping[str, Unit], data: Term | None) -> None:
        self.problem = problem
        self.trial = trial
        self.declared = declared
        self.hard = problem.conditions == "hard"
        self.multiplier = self._multiplier()
        values = dict(prescribed(problem, trial))
        self.origin = dict.fromkeys(problem.fields, "conditions")
        measured = {} if data is None else points_of(data.where)
        for name in problem.fields:
            if (x := measured.get(f"measured_{name}")) is not None:
                values[name] = [*values[name], x[x.isfinite()]]
                self.origin[name] = "data"
        self.ranges = {name: _range(x) for name, x in values.items()}

    def _multiplier(self) -> list[float]:
        """The root mean square of m for each field; one with soft conditions and where the ansatz takes the network."""
        if not self.hard or self.problem.reads_network:
            return [1.0] * len(self.problem.fields)
        m = self.problem.ansatz(points_of(self.problem.region))[1].detach()
        rms = m.square().mean(dim=0).sqrt().expand(len(self.problem.fields))
        return [x if x > 0 else 1.0 for x in rms.tolist()]

    def found(self) -> dict[str, Found]:
        """What is known of each field, by name."""
        names = self.problem.fields
        known = {name: self._without_equation(name) for name in names}
        base = [0.0 if self.hard else (known[name] or self.ranges[name] or Unit()).shift for name in names]
        sizes = self._balanced(base, [known[name] and known[name].size for name in names])
        return {name: self._found(name, size, m) for name, size, m in zip(names, sizes, self.multiplier, strict=True)}

    def _without_equation(self, name: str) -> Unit | None:
        """A typical value and variation that need no equation."""
        values = self.ranges[name]
        if name in self.declared:
            return self.declared[name]
        if self.hard:
            largest = _largest(values) / self.multiplier[self.problem.fields.index(name)] if values else math.nan
            return Unit(0.0, largest) if values and of_order_one(largest) else None
        return None if values is None or _is_offset(values) else values

    def _balanced(self, base: list[float], sizes: list[float | None]) -> list[float | None]:
        """The sizes with those that balance the equation in the place of unknown ones."""
        sizes = [*sizes]
        for alone in (True, False):
            while None in sizes and (new := self._candidates(base, sizes, alone)):
                for j, size in new.items():
                    sizes[j] = size
        return sizes

    def _candidates(self, base: list[float], sizes: list[float | None], alone: bool) -> dict[int, float]:
        """Sizes of fields without one; ``alone``: by rows in which no other field without one acts."""
        own: dict[int, list[float]] = {}
        shared: dict[int, list[float]] = {}
        unknown = {j for j, size in enumerate(sizes) if size is None}
        start = torch.tensor(base, dtype=torch.float64)
        amplitudes = torch.tensor([size or 0.0 for size in sizes], dtype=torch.float64)
        for name in self.problem.loss_terms():
            if (response := self.trial.response(name, start, amplitudes)) is None:
                continue
            for rest, slopes in zip(response[0].tolist(), response[1].tolist(), strict=True):
                acting = {j for j, c in enumerate(slopes) if c > 0}
                for j in acting & unknown:
                    size = rest / slopes[j]
                    if not ROUNDING * max(1.0, abs(base[j])) < size < math.inf or (alone and acting & unknown != {j}):
                        continue
                    (own if acting == {j} else shared).setdefault(j, []).append(size)
        return {j: max(own[j]) if j in own else min(shared[j]) for j in own.keys() | shared.keys()}

    def _found(self, name: str, size: float | None, m: float) -> Found:
        """The unit of a field from what is known of it and the size that balances the equation."""
        values, origin = self.ranges[name], self.origin[name]
        if name in self.declared:
            unit = self.declared[name]
            return Found(unit, unit, unit, "declared")
        if values is None:
            unit = Unit(0.0, m * (size or 1.0))
            typical, origin = Unit(0.0, size or 1.0), "equation"
        else:
            unit, typical = _unit(values, m * size if size else None)
        if self.hard:
            bound = (unit.size if values else math.inf) / m
            typical = Unit(0.0, min(size or math.inf, bound))
        estimated = values is None or (self.hard and typical.size == size)
        tolerated = TOLERATED_ESTIMATE if estimated else TOLERATED
        output = _plain(typical if self.hard else unit, tolerated)
        return Found(output, _plain(unit, tolerated if values is None else TOLERATED), typical, origin)


def _range(values: list[Tensor]) -> Unit | None:
    """Middle and half-width of values; None where there are none, or all are zero."""
    x = torch.cat([v.flatten() for v in values]) if values else torch.zeros(0)
    if not len(x) or not bool((x != 0).any()):
        return None
    low, high = float(x.min()), float(x.max())
    return Unit((low + high) / 2, (high - low) / 2)


def _largest(values: Unit) -> float:
    return abs(values.shift) + values.size


def _is_offset(values: Unit) -> bool:
    return abs(values.shift) > OFFSET * values.size


def _unit(values: Unit, size: float | None) -> tuple[Unit, Unit]:
    """The unit of a field with these values, and its typical value and variation.

    Args:
        values: middle and half-width.
        size: the variation that the equation asks for, if it tells.
    """
    largest = _largest(values)
    if not _is_offset(values):
        return Unit(0.0, largest), values
    varies = max(values.size, size or 0.0)
    if of_order_one(largest) or varies == 0 or varies >= largest / OFFSET:
        return Unit(0.0, largest), Unit(values.shift, min(varies or math.inf, largest / OFFSET))
    return Unit(values.shift, varies), Unit(values.shift, varies)


def _plain(unit: Unit, tolerated: float) -> Unit:
    """Rounded, and natural where it is of order one."""
    shift, size = rounded(unit.shift), 1.0 if of_order_one(unit.size, tolerated) else rounded(unit.size)
    return NATURAL if not shift and size == 1 else Unit(shift, size)

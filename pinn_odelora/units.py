"""Units: a quantity q is computed with as (q - shift) / size, which is of the order of one.

What is smaller than ten and larger than a tenth is of the order of one already, and stays as it is. What is
only estimated, from an equation, may be off by the square of a wave number: there it is a hundred and a hundredth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

TOLERATED = 10.0
"""A size between 1/TOLERATED and TOLERATED counts as one."""
TOLERATED_ESTIMATE = 100.0
"""The same for a size that is only estimated."""


class Unit(NamedTuple):
    """The origin and the size of a quantity, both in the user's units."""

    shift: float = 0.0
    size: float = 1.0

    def __str__(self) -> str:
        return f"{self.shift:.3g} ± {self.size:.3g}" if self.shift else f"{self.size:.3g}"

    def of(self, q: Tensor) -> Tensor:
        """Values of the quantity in this unit."""
        return q if self == NATURAL else (q - self.shift) / self.size


NATURAL = Unit()
"""The user's own units."""


def of_order_one(size: float, tolerated: float = TOLERATED) -> bool:
    """Whether a size counts as one; one that is no positive number does, since it tells nothing."""
    return not (0 < size < math.inf) or 1 / tolerated <= size <= tolerated


def rounded(x: float) -> float:
    """Three significant digits: sizes are for the order of magnitude, and are read by people."""
    return float(f"{x:.3g}") if math.isfinite(x) else x


@dataclass(frozen=True)
class Scales:
    """The units of a problem.

    Attributes:
        inputs: of each input of the network, by its name: the coordinate, or a function of it.
        outputs: of each output of the network, by field; with hard conditions these are N, not u = g + m · N.
        fields: of each field.
        rows: the size of each component of the residual of a term, by term; terms left out are not scaled.
        origins: where units were found: ``declared``, ``region``, ``conditions``, ``data``, ``equation``.
    """

    inputs: Mapping[str, Unit]
    outputs: Mapping[str, Unit]
    fields: Mapping[str, Unit]
    rows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    origins: tuple[str, ...] = ()

    @property
    def natural(self) -> bool:
        """Whether nothing is scaled."""
        units = [*self.inputs.values(), *self.outputs.values()]
        return not self.rows and all(unit == NATURAL for unit in units)

    def __str__(self) -> str:
        parts = [f"{name} {unit}" for name, unit in (*self.inputs.items(), *_told(self)) if unit != NATURAL]
        parts += [f"residual {name} {_sizes(sizes)}" for name, sizes in self.rows.items()]
        found = [f"the {x}" for x in self.origins if x != "declared"]
        origins = ["declared"] if "declared" in self.origins else []
        origins += [f"found from {', '.join(found)}"] if found else []
        told = f" ({'; '.join(origins)})" if origins else ""
        return f"Scales: {', '.join(parts)}{told}"

    def as_dict(self) -> dict[str, object]:
        """Plain values, for ``summary.json``: [shift, size] by coordinate and field, sizes by term."""
        units = {**self.inputs, **dict(_told(self))}
        return {
            "units": {name: [*unit] for name, unit in units.items()},
            "residuals": {name: [*sizes] for name, sizes in self.rows.items()},
        }


def _told(scales: Scales) -> Iterable[tuple[str, Unit]]:
    """The unit of each field; of the output of the network where the field itself is not scaled."""
    for name, unit in scales.fields.items():
        output = scales.outputs[name]
        yield (name, unit) if unit != NATURAL or output == NATURAL else (f"network for {name}", output)


def _sizes(sizes: Iterable[float]) -> str:
    return ", ".join(f"{x:.2g}" for x in sizes)

"""From rows to exponents beside the predicted ones, and from these to a verdict on every claim.

The claims are those of the abstract of arXiv 2602.07479 by our reading; a verdict is computed, by the rules of
``slopes``, and says under which conditions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from features.contenders import BASE, CONTENDERS, SWEPT
from features.network import PARAMETRISATIONS
from features.plan import TIMES, Row, best_steps
from features.predictions import predicted, size_exponent
from features.slopes import FLAT, VERDICT, Slope, State, slope, state

OURS, OUR_START = "odelora", "orthonormal"
Range = tuple[float, float]


class Cell(NamedTuple):
    """One kind of run of one method: exponents of both quantities, the part of runs whose loss rose above its first
    value, and what was predicted, a range that is a point where counting gives one.
    """

    kind: str
    method: str
    start: str
    parametrisation: str
    mark: float
    features: Slope
    outputs: Slope
    lost: float
    expected: tuple[Range, Range]
    may_fail: bool

    @property
    def state(self) -> State:
        return state(self.features, self.outputs, self.lost)

    @property
    def agrees(self) -> bool:
        """Whether the slopes are as predicted; where the step is too large for wide layers, whether runs failed."""
        if self.may_fail and self.state == "unstable":
            return True
        return self.features.agrees(*self.expected[0]) and self.outputs.agrees(*self.expected[1])


class Transfer(NamedTuple):
    """The exponent of the best step size, these at the smallest and the largest width, and what the one for the width
    ``BASE`` costs at the largest: the loss over that of its own best one, infinite where runs failed.
    """

    method: str
    start: str
    parametrisation: str
    exponent: Slope
    expected: float
    first: float
    last: float
    penalty: float

    @property
    def state(self) -> State:
        return "stable" if self.exponent.flat else "depends" if self.exponent.steep else "open"

    @property
    def agrees(self) -> bool:
        return self.exponent.agrees(self.expected, self.expected)


class Claim(NamedTuple):
    """A claim, the conditions under which it was looked at, what was found there, and the verdict."""

    claim: str
    conditions: str
    found: str
    verdict: str


def cells(rows: Iterable[Row]) -> list[Cell]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["kind"] in ("small", "working", "flow"):
            mark = row["k"] if row["time"] is None else row["time"]
            key = (row["kind"], row["method"], row["start"], row["parametrisation"], mark)
            groups.setdefault(key, []).append(row)
    return [_cell(*key, members) for key, members in groups.items()]


def _cell(kind: str, method: str, start: str, parametrisation: str, mark: float, rows: list[Row]) -> Cell:
    widths = [row["width"] for row in rows]
    found = [slope(widths, [row[quantity] for row in rows]) for quantity in ("features", "outputs")]
    lost = sum(not row["worst"] <= 1 for row in rows) / len(rows)
    guess = predicted(method, start, parametrisation)
    point = None
    if kind == "small" or (kind == "working" and mark == 1):
        point = guess.first
    elif kind == "flow" and mark == TIMES[parametrisation][-1]:
        point = guess.fitted
    names = ("features", "outputs")
    expected = tuple((getattr(point, q),) * 2 if point else guess.between(q) for q in names)
    may_fail = kind == "working" and guess.step < -FLAT
    return Cell(kind, method, start, parametrisation, mark, *found, lost, expected, may_fail)


def transfers(rows: Sequence[Row]) -> list[Transfer]:
    return [_transfer(rows, method, start, p) for method, start in SWEPT for p in PARAMETRISATIONS]


def _transfer(rows: Sequence[Row], method: str, start: str, parametrisation: str) -> Transfer:
    def of(kind: str) -> list[Row]:
        key = (kind, method, start, parametrisation)
        return [row for row in rows if (row["kind"], row["method"], row["start"], row["parametrisation"]) == key]

    swept, own = of("sweep"), of("own")
    last = max(row["width"] for row in swept)
    k = max(row["k"] for row in swept)
    kept = [row for row in of("working") if (row["width"], row["k"]) == (last, k)]
    best = best_steps(swept)
    return Transfer(
        method,
        start,
        parametrisation,
        slope([row["width"] for row in swept], [row["eta"] for row in swept]),
        predicted(method, start, parametrisation).step,
        best[method, start, parametrisation, BASE],
        best[method, start, parametrisation, last],
        _median_loss(kept) / _median_loss(own),
    )


def _median_loss(rows: list[Row]) -> float:
    """Infinite where numbers failed in half of the runs."""
    return statistics.median(row["loss"] if math.isfinite(row["loss"]) else math.inf for row in rows)


def sizes(rows: Iterable[Row]) -> dict[str, tuple[Slope, Slope, float]]:
    """By method: exponents of features and outputs in the size of the start, and the predicted one of both."""
    rows = [row for row in rows if row["kind"] == "size"]
    found = {}
    for method in CONTENDERS:
        of = [row for row in rows if row["method"] == method]
        both = (slope([row["size"] for row in of], [row[q] for row in of]) for q in ("features", "outputs"))
        found[method] = (*both, size_exponent(method))
    return found


# Claims.


def claims(found: Sequence[Cell], moved: Sequence[Transfer], by_size: dict[str, tuple]) -> list[Claim]:
    """All of them, a line for each verdict that differs under different conditions."""
    last = max(cell.mark for cell in found if cell.kind == "working")
    looks = [
        ("one small step", "small", (1,)),
        ("ten small steps", "small", (10,)),
        ("one step of the size that is best at width 64", "working", (1,)),
        ("ten such steps", "working", (10,)),
        (f"{last:g} such steps", "working", (last,)),
        ("the flow at an early time", "flow", tuple(times[0] for times in TIMES.values())),
        ("the flow at a time when it has fitted", "flow", tuple(times[-1] for times in TIMES.values())),
    ]
    made = []
    for claim, kind, marks in looks:
        ours = [c for c in found if c.method == OURS and c.kind == kind and c.mark in marks]
        said = f"ODELoRA: the changes by {claim} do not depend on the width"
        made += _by_verdict(said, [(_where(c), _exponents(c), VERDICT[c.state]) for c in ours])
    ours = [t for t in moved if t.method == OURS]
    said = "ODELoRA: the best step size is the same at all widths"
    made += _by_verdict(said, [(_where(t), _interval(t.exponent), VERDICT[t.state]) for t in ours])
    return [*made, _size_claim(by_size), *_alone(found, moved), UNTESTED]


UNTESTED = Claim(
    "the source's own statement: its parametrisation, start, step sizes and constants",
    "none: they are not known to us",
    "–",
    "not testable",
)


def _by_verdict(claim: str, looked: list[tuple[str, str, str]]) -> list[Claim]:
    kinds = [v for v in dict.fromkeys(VERDICT.values()) if any(x[2] == v for x in looked)]
    joined = lambda i, v: "; ".join(x[i] for x in looked if x[2] == v)
    return [Claim(claim, joined(0, v), joined(1, v), v) for v in kinds]


def _where(x: Cell | Transfer) -> str:
    return f"{x.parametrisation}, {x.start}"


def _exponents(cell: Cell) -> str:
    failed = f", {cell.lost:.0%} failed" if cell.lost else ""
    return f"{_interval(cell.features)}, {_interval(cell.outputs)}{failed}"


def _interval(found: Slope) -> str:
    return "–" if math.isnan(found.value) else f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _size_claim(by_size: dict[str, tuple]) -> Claim:
    features, outputs, _ = by_size[OURS]
    verdict = VERDICT[state(features, outputs, 0.0)]
    found = f"{_interval(features)}, {_interval(outputs)}"
    return Claim(
        "ODELoRA: a small step does not depend on the size of the start", "mean-field, orthonormal", found, verdict
    )


def _alone(found: Sequence[Cell], moved: Sequence[Transfer]) -> list[Claim]:
    """Where ODELoRA from its start has no dependence on the width: whether any rival from its own has none there."""
    made = []
    for parametrisation in PARAMETRISATIONS:
        looks = {(c.kind, c.mark) for c in found if c.parametrisation == parametrisation}
        for look in sorted(looks, key=lambda x: (("small", "working", "flow").index(x[0]), x[1])):
            there = {
                (c.method, c.start): c.state
                for c in found
                if (c.kind, c.mark) == look and c.parametrisation == parametrisation
            }
            made.append((parametrisation, f"{look[0]} {look[1]:g}", there))
        there = {(t.method, t.start): t.state for t in moved if t.parametrisation == parametrisation}
        made.append((parametrisation, "best step", there))
    said = "ODELoRA (orthonormal) has this where no rival from its published start has"
    looked = []
    for parametrisation, look, there in made:
        if there.get((OURS, OUR_START)) == "stable":
            published = {name: there.get((name, c.starts[0])) for name, c in CONTENDERS.items() if name != OURS}
            too = [CONTENDERS[name].label for name, state in published.items() if state == "stable"]
            asked = [name for name, state in published.items() if state is not None]
            verdict = "not testable" if not asked else "not confirmed" if too else "confirmed"
            looked.append((f"{parametrisation}, {look}", ", ".join(too) or "none", verdict))
    return _by_verdict(said, looked)

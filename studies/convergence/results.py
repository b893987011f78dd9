"""Records, and the numbers that tables and verdicts ask of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from convergence.rates import Interval, exponent, interval

Record = dict[str, Any]


class Results:
    """Records of runs, to be asked for those with given facts."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)

    def where(self, **facts: Any) -> Results:
        """Those with these values; a tuple allows several."""
        fits = lambda r: all(r[k] in v if isinstance(v, tuple) else r[k] == v for k, v in facts.items())
        return Results(r for r in self.records if fits(r))

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Any:
        return iter(self.records)

    def values(self, name: str) -> list[Any]:
        """All values of a fact that occur, in their order of appearance."""
        return list(dict.fromkeys(r[name] for r in self.records))

    @property
    def going(self) -> Results:
        """Those whose error fell and that have a rate."""
        return Results(r for r in self.records if not diverged(r) and r["rate"] is not None)

    @property
    def rate(self) -> Interval:
        """Per step, over seeds."""
        return interval([r["rate"] for r in self.going])

    def ratios(self) -> list[float]:
        """Measured rates over those of theory."""
        return [r["rate"] / r["predicted"] for r in self.going]

    def exponent(self, x: str, y: Callable[[Record], float] = lambda r: r["rate"]) -> Interval:
        """Of y ∝ xᵖ over the seeds, from runs whose error fell."""
        table: dict[int, dict[float, float]] = {}
        for r in self.records:
            value = y(r)
            if value is not None and value > 0:
                table.setdefault(r["seed"], {})[r[x]] = value
        return exponent(table)

    def reached(self) -> tuple[int | None, int]:
        """The median number of evaluations to the target error where more than half got there, and how many did."""
        found = [r["to_target"] if r["to_target"] is not None else math.inf for r in self.records]
        middle = statistics.median(found) if found else math.inf
        return (int(middle) if math.isfinite(middle) else None), sum(math.isfinite(n) for n in found)


def diverged(r: Record) -> bool:
    return r["failure"] is not None or not r["last"] < r["first"]


def largest_deviation(ratios: Sequence[float]) -> float:
    """From 1."""
    return max((abs(x - 1) for x in ratios), default=math.inf)


# On disk, as columns and rows: a record a line.

CURVE = "curve"


def rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value


def save(file: Path, facts: dict[str, Any], records: Sequence[Record]) -> None:
    """Facts and records as JSON."""
    columns = [*dict.fromkeys(key for r in records for key in r)]
    rows = [[rounded(r.get(key)) for key in columns] for r in records]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    head = json.dumps({**facts, "columns": columns}, ensure_ascii=False, indent=1).removesuffix("\n}")
    file.write_text(f'{head},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def load(file: Path) -> tuple[dict[str, Any], list[Record]]:
    """What ``save`` wrote; what a record does not have is not in it."""
    facts = json.loads(file.read_text(encoding="utf-8"))
    columns, rows = facts.pop("columns"), facts.pop("rows")
    optional = (CURVE, "predicted", "slowest", "power")
    kept = lambda key, value: value is not None or key not in optional
    return facts, [{k: v for k, v in zip(columns, row, strict=True) if kept(k, v)} for row in rows]

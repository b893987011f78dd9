"""The files of a race, read: errors by case, contender and seconds, and how steady the runs were."""

from __future__ import annotations

import gzip
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from racing.plan import FLOOR, finished, swept_error

Run = Mapping[str, Any]


class Spread(NamedTuple):
    """Median, smallest and largest of a figure over seeds."""

    median: float
    low: float
    high: float


class Results:
    """The runs of one race.

    Args:
        runs: all of them, in any order.
        seconds: the time of the race; runs of other lengths are left out.
    """

    def __init__(self, runs: list[Run], seconds: float = 30.0) -> None:
        self.seconds = seconds
        self.runs = [run for run in runs if run["seconds"] in (seconds / 3, seconds, FLOOR * seconds)]

    @classmethod
    def read(cls, folder: Path, seconds: float = 30.0) -> Results:
        found = (finished(file) for file in sorted(folder.glob("*.json")))
        return cls([run for run in found if run is not None], seconds)

    def of(self, case: str, contender: str) -> list[Run]:
        """The runs that count, of both lengths: those with the best learning rate of the sweep, where there is one."""
        own = [run for run in self.runs if (run["case"], run["contender"]) == (case, contender)]
        best = min((run for run in own if run["swept"]), key=swept_error, default={"rate": None})["rate"]
        return [
            run for run in own if not run["swept"] and run["seconds"] <= self.seconds and best in (None, run["rate"])
        ]

    def at(self, case: str, contender: str, seconds: float) -> dict[int, Run]:
        """By seed, the run that was to end soonest after so many seconds."""
        runs = [run for run in self.of(case, contender) if run["seconds"] >= seconds]
        return {run["seed"]: run for run in sorted(runs, key=lambda run: -run["seconds"])}

    def errors(self, case: str, contender: str, seconds: float) -> dict[int, float]:
        """By seed, the error after so many seconds."""
        runs = self.at(case, contender, seconds)
        return {seed: mark["rel_l2"] for seed, run in sorted(runs.items()) if (mark := mark_at(run, seconds))}

    def error(self, case: str, contender: str, seconds: float) -> Spread | None:
        """Over the seeds; None without a run."""
        return spread(list(self.errors(case, contender, seconds).values()))

    def floor(self, case: str, contender: str) -> float | None:
        """The error of the long run, if there is one."""
        long = [
            run
            for run in self.runs
            if (run["case"], run["contender"], run["seconds"]) == (case, contender, FLOOR * self.seconds)
        ]
        return finite(long[0]["marks"][-1]["rel_l2"]) if long else None

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(run["case"] for run in self.runs))


def pack(folder: Path, file: Path) -> None:
    """All runs of a folder as lines of one compressed file, by the names of theirs; it keeps what the folder lacks."""
    runs = {run["file"]: run for run in packed(file)}
    found = {path.name: finished(path) for path in folder.glob("*.json")}
    runs |= {name: {"file": name, **run} for name, run in found.items() if run is not None}
    written = file.with_suffix(".part")
    lines = "".join(json.dumps(runs[name]) + "\n" for name in sorted(runs))
    written.write_bytes(gzip.compress(lines.encode(), mtime=0))  # the same runs give the same bytes
    written.replace(file)


def packed(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()] if file.is_file() else []


def unpack(file: Path, folder: Path) -> int:
    """Put the runs of such a file into a folder, where it has them not; how many."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [run for run in packed(file) if finished(folder / run["file"]) is None]
    for run in missing:
        (folder / run.pop("file")).write_text(json.dumps(run))
    return len(missing)


def mark_at(run: Run, seconds: float) -> Mapping[str, float] | None:
    """What a run had reached after so many seconds; None for a time that was not marked. A NaN is an infinite error."""
    mark = next((mark for mark in run["marks"] if mark["seconds"] == seconds), None)
    return None if mark is None else {**mark, "rel_l2": finite(mark["rel_l2"])}


def finite(x: float | None) -> float:
    return x if x is not None and math.isfinite(x) else math.inf


def spread(values: list[float]) -> Spread | None:
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def dump(results: Results, file: Path, marks: tuple[float, ...]) -> None:
    """One line of CSV a run."""
    columns = ("case", "contender", "seed", "seconds", "rate", "swept", "trained")
    ends = ("spent", "cores", "largest_rise", "heldout_first", "heldout_last", "diverged", "stalled")
    lines = [",".join([*columns, *(f"rel_l2_{t:g}s" for t in marks), "evaluations", "steps", *ends])]
    for run in sorted(results.runs, key=lambda run: [str(run[key]) for key in columns]):
        errors = [mark["rel_l2"] if (mark := mark_at(run, t)) else None for t in marks]
        last = run["marks"][-1]
        row = [*(run[c] for c in columns), *errors, last["evaluations"], last["steps"], *(run[key] for key in ends)]
        lines.append(",".join(_cell(x) for x in row))
    file.write_text("\n".join(lines) + "\n")


def _cell(x: Any) -> str:
    if isinstance(x, bool) or not isinstance(x, float):
        return "" if x is None else json.dumps(x).strip('"')
    return f"{x:.4g}"

"""Finished trials as lines of a file, and the table of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Verdict(NamedTuple):
    """What a trial showed.

    Attributes:
        outcome: in a word or two, as they are counted.
        held: whether it is as it must be.
        what: was tried.
        said: the last line that the program said, or what differed.
    """

    outcome: str
    held: bool
    what: str
    said: str = ""


class Record(NamedTuple):
    """A finished trial: of which kind, which one, of which state of the code, and its verdict."""

    kind: str
    number: int
    seed: int
    code: str
    seconds: float
    outcome: str
    held: bool
    what: str
    said: str


def read(path: Path) -> list[Record]:
    """The trials in a file; a line that was cut short is of a campaign that was killed."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(Record(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def append(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        begun = file.tell() and path.read_bytes()[-1:] != b"\n"
        file.write(("\n" if begun else "") + json.dumps(record._asdict(), ensure_ascii=False) + "\n")


def latest(records: Iterable[Record], seed: int) -> dict[tuple[str, int], Record]:
    """The last line on each trial of a seed."""
    return {(r.kind, r.number): r for r in records if r.seed == seed}


def to_do(records: Iterable[Record], seed: int, code: str, wanted: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """The trials that have not been made yet, or did not hold with another state of the code."""
    done = latest(records, seed)
    again = lambda key: key not in done or not (done[key].held or done[key].code == code)
    return [key for key in wanted if again(key)]


def table(
    records: Iterable[Record], seed: int, counts: Mapping[str, int], must: Mapping[str, str]
) -> tuple[list[Sequence[str]], bool]:
    """Rows of the table, a line for each kind, and whether all trials were made and held."""
    done, rows, whole = latest(records, seed), [], True
    for kind, count in counts.items():
        made = [r for (name, _), r in done.items() if name == kind]
        outcomes = Counter(r.outcome for r in made)
        held = sum(r.held for r in made)
        whole &= held == count
        said = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
        rows.append((kind, must[kind], str(count), str(len(made)), str(held), said))
    return rows, whole


HEADER = ("kind", "what must hold", "trials", "made", "held", "how they ended")


def page(rows: Sequence[Sequence[str]], short: Iterable[Record], about: Mapping[str, Any]) -> str:
    """The table as a page of ``docs/results/``."""
    lines = [
        "# A campaign of faults",
        "",
        "Written by `python -m tests.robustness --full --page docs/results/robustness.md`; what is tried, and how a "
        "single trial is repeated, stands in [CONTRIBUTING](../../CONTRIBUTING.md#the-campaign-of-faults). "
        + "; ".join(f"{name} {value}" for name, value in about.items())
        + ". A trial that held is not made again when the package changes.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---|---|---:|---:|---:|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    if short := [*short]:
        lines += ["What did not hold:", "", "| trial | what | how it ended | last line |", "|---|---|---|---|"]
        clean = lambda text: text.replace("|", "\\|").replace("\n", " ")[:200]
        lines += [f"| {r.kind} {r.number} | {clean(r.what)} | {r.outcome} | {clean(r.said)} |" for r in short]
        lines.append("")
    return "\n".join(lines)

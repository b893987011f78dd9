"""What the experiments on the linearised regime share: their command, their records on disk, their page and verdicts.

    python studies/ntk/<experiment>.py [--quick] [--report] [--results docs/results/ntk]

``--quick`` is the short form, under three minutes on one thread, and writes nothing unless ``--results`` is given;
``--report`` runs nothing and judges and shows the records that are there. Exits with 1 when a statement does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from pinn_odelora.runs.style import STYLE

RESULTS = Path(__file__).parents[2] / "docs/results/ntk"
Record = dict[str, Any]


class Statement(NamedTuple):
    """Something that was expected: of which claim it is part, what was said, what was found, and whether it holds."""

    claim: str
    said: str
    found: str
    holds: bool


class Shown(NamedTuple):
    """A table of the page."""

    heading: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Experiment(NamedTuple):
    """One experiment.

    Attributes:
        name: of its files.
        title: of its page.
        about: the set-up, for the page.
        claims: what is tested, by key.
        measure: a plan -> records, plain dicts.
        statements: records -> what was expected of them.
        tables: records -> tables of the page.
        figure: records -> one figure.
        plans: the full plan and the quick one.
        otherwise: what came out otherwise than predicted, in the full form.
    """

    name: str
    title: str
    about: str
    claims: dict[str, str]
    measure: Callable[[Any], list[Record]]
    statements: Callable[[list[Record]], list[Statement]]
    tables: Callable[[list[Record]], list[Shown]]
    figure: Callable[[list[Record]], Figure]
    plans: tuple[Any, Any]
    otherwise: tuple[str, ...] = ()


def where(records: Iterable[Record], **facts: Any) -> list[Record]:
    """Those with these values."""
    return [r for r in records if all(r.get(key) == value for key, value in facts.items())]


def values(records: Iterable[Record], name: str) -> list[Any]:
    """All values of a fact, in their order of appearance."""
    return [*dict.fromkeys(r[name] for r in records if name in r)]


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """p of y ∝ xᵖ, by least squares in logarithms."""
    x, y = (torch.tensor(z, dtype=torch.float64).log() for z in (xs, ys))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def verdict(claim: str, found: Sequence[Statement]) -> str:
    about = [s for s in found if s.claim == claim]
    return "not tested" if not about else "confirmed" if all(s.holds for s in about) else "not confirmed"


def rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Run, judge and show an experiment; 1 if a statement does not hold."""
    parser = argparse.ArgumentParser(description=experiment.title)
    parser.add_argument("--quick", action="store_true", help="the short form")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--results", type=Path, help=f"folder of {experiment.name}.json, .md and .png")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folder = args.results or (None if args.quick else RESULTS)
    facts: dict[str, Any]
    if args.report:
        facts, records = load((folder or RESULTS) / f"{experiment.name}.json")
    else:
        began = time.process_time()
        records = [{k: rounded(v) for k, v in r.items()} for r in experiment.measure(experiment.plans[args.quick])]
        facts = {"quick": args.quick, "seconds": round(time.process_time() - began, 1), "torch": torch.__version__}
    found = experiment.statements(records)
    if folder is not None:
        write(experiment, records, found, facts, folder)
    console(found)
    short = [s for s in found if not s.holds]
    print("\n".join(f"{s.said}: {s.found}" for s in short) if short else "every statement holds")
    print(f"{facts['seconds']:.0f} s of CPU time", file=sys.stderr)
    return 1 if short else 0


def console(found: Sequence[Statement]) -> None:
    made = Table(box=box.SIMPLE_HEAD)
    for column in ("claim", "expected", "found", ""):
        made.add_column(column)
    for s in found:
        made.add_row(s.claim, s.said, s.found, "holds" if s.holds else "SHORT")
    Console().print(made)


def write(
    experiment: Experiment,
    records: list[Record],
    found: Sequence[Statement],
    facts: dict[str, Any],
    folder: Path,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = [*dict.fromkeys(key for r in records for key in r)]
    rows = [[r.get(key) for key in columns] for r in records]
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    said = json.dumps([s._asdict() for s in found], ensure_ascii=False, indent=1)
    head = f'{{"facts": {json.dumps(facts)},\n"statements": {said},\n"columns": {json.dumps(columns)},\n'
    (folder / f"{experiment.name}.json").write_text(f'{head}"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    (folder / f"{experiment.name}.md").write_text(page(experiment, records, found, facts), encoding="utf-8")
    with mpl.rc_context(STYLE):
        experiment.figure(records).savefig(folder / f"{experiment.name}.png", dpi=110)


def load(file: Path) -> tuple[dict[str, Any], list[Record]]:
    """Facts and records as ``write`` has left them; what a record does not have is not in it."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    pairs = (zip(kept["columns"], row, strict=True) for row in kept["rows"])
    return kept["facts"], [{key: value for key, value in row if value is not None} for row in pairs]


def page(experiment: Experiment, records: list[Record], found: Sequence[Statement], facts: dict[str, Any]) -> str:
    quick = " --quick" if facts["quick"] else ""
    parts = [
        f"# {experiment.title}",
        f"```bash\npython studies/ntk/{experiment.name}.py{quick}\n```",
        f"{experiment.about} CPU time {facts['seconds'] / 60:.1f} minutes; [all records]({experiment.name}.json).",
        f"![{experiment.title}]({experiment.name}.png)",
        markdown(["claim", "verdict"], [[said, verdict(key, found)] for key, said in experiment.claims.items()]),
    ]
    if experiment.otherwise and not facts["quick"]:
        parts += ["## What came out otherwise", "\n".join(f"* {x}" for x in experiment.otherwise)]
    rows = [[s.said, s.found, "yes" if s.holds else "**no**"] for s in found]
    parts += ["## Expected and found", markdown(["expected", "found", "holds"], rows)]
    for shown in experiment.tables(records):
        parts += [f"## {shown.heading}", markdown(shown.header, shown.rows)]
    return "\n\n".join(parts) + "\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)

"""Breaks made on purpose over the core, by a script: how many of them do the tests catch?

    python -m tests.robustness.breaks --count 50 --seed 0 --json outputs/breaks.json

Signs, bounds, indices, operations and orders of arguments are exchanged (``mutants``), one at a time, in a copy of the
tree; files and kinds are drawn by the seed, so that each file of the core has as many as the others, or one more. What
a break is shown to are the tests that enter the function that it is in (``reach``), the files first that have most of
their tests there, the quickest tests first in each, until one fails or ``--limit`` seconds of tests are over. One that
takes many times as long as it should is caught, too; a test that fails without any break as well has caught nothing.

The table tells by which test each break is caught; a second call with ``--again`` tries the survivors again, and counts
them as caught after. A break that changes nothing is no break: ``equivalent.json`` names such ones with the reason, and
they are not counted. What is done stands in the JSON file, and a call that was interrupted goes on from it. The exit
code is 1 where less than 90 % are caught.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from tests.robustness import reach
from tests.robustness.mutants import Mutant, is_python, mutants
from tests.robustness.shown import Shown, failing, show, warm

ROOT = Path(__file__).parent.parent.parent
CORE = (
    *("lowrank/layer.py", "lowrank/magnitude.py", "lowrank/pairs.py", "lowrank/start.py", "lowrank/targets.py"),
    *("lowrank/wiring.py", "flows", "integrators", "manifolds", "linalg", "linearisation", "derivatives"),
    *("geometry/meshes.py", "geometry/regions.py", "geometry/sobol.py", "geometry/solids.py", "geometry/spatial.py"),
    *("geometry/surfaces.py", "conditions.py", "system.py", "objective.py", "gradient.py", "optim"),
    *("families/answer.py", "families/adapted.py", "families/basis.py", "families/combination.py"),
    *("families/estimate.py", "families/interpolation.py", "families/parametric.py", "families/ranges.py"),
    *("families/sensitivity.py", "families/span.py", "families/stations.py"),
)
"""Low rank, flows, integrators, manifolds, linear algebra, derivatives, geometry, residuals, optimisers, answers."""
TESTS = (
    *("integrators", "tableau", "control", "rkc", "ros2", "space", "linearisation", "coordinates", "plan", "gradient"),
    *("jets", "geometry", "surfaces", "pairs", "targets", "wiring", "starts", "optim", "closed_form", "variables"),
    *("kernel", "conditions", "points", "equation", "implicit", "optimizer_contract", "torch_residuals", "flows"),
    *("adaptive_rank", "combinations", "families", "dora", "batch_size", "weighting", "adaptation"),
)
"""Files that assert something of the core; others enter it, too, and would take an hour more."""
COPIED = ("pinn_odelora", "problems", "hydra_plugins", "configs", "docs", "tests", "benchmarks", "studies")
TARGET = 0.9
EQUIVALENT = Path(__file__).parent / "equivalent.json"
CAUGHT = ("caught", "hang")


def core() -> list[str]:
    """The source files that are broken."""
    places = [ROOT / "pinn_odelora" / name for name in CORE]
    files = [file for place in places for file in ([place] if place.suffix else place.rglob("*.py"))]
    return sorted(file.relative_to(ROOT).as_posix() for file in files)


@cache
def possible() -> dict[str, tuple[Mutant, ...]]:
    """All breaks by file."""
    return {file: tuple(found) for file in core() if (found := mutants(ROOT, file))}


def drawn(count: int, seed: int) -> list[Mutant]:
    """As many breaks of one file as of another, or one more; kinds of change as even as a file has them."""
    rng = random.Random(seed)
    left = {file: [*found] for file, found in possible().items()}
    order, chosen = sorted(left), []
    rng.shuffle(order)
    while len(chosen) < count and left:
        for file in order:
            if file not in left or len(chosen) == count:
                continue
            kind = rng.choice(sorted({mutant.kind for mutant in left[file]}))
            mutant = rng.choice([x for x in left[file] if x.kind == kind])
            if is_python(mutant, ROOT):
                chosen.append(mutant)
            left[file] = [x for x in left[file] if x.line != mutant.line]
            if not left[file]:
                del left[file]
    return chosen


def selected(mutant: Mutant, records: Iterable[reach.Record], limit: float) -> dict[str, list[str]]:
    """Tests by file that enter the function of a mutant, or any function of its file where it is in none; the files
    first that have most of their tests there, so many that all together take the limit.
    """
    place = f"{mutant.file}:{mutant.function}"
    names = lambda record: {x for x in record.entered if not x.endswith(("<module>", ">:__init__"))}
    inside = lambda record: place in record.entered
    if not mutant.function or not any(inside(record) for record in records):
        modules = {f"{mutant.file}:{word}" for word in ("<module>",)}
        inside = lambda record: any(x.startswith(f"{mutant.file}:") and x not in modules for x in names(record))
    files = defaultdict[str, list[reach.Record]](list)
    for record in records:
        if inside(record):
            files[record.test.partition("::")[0]].append(record)
    chosen, left = {}, limit
    all_of = Counter(record.test.partition("::")[0] for record in records)
    about = lambda file: (-round(len(files[file]) / all_of[file], 1), sum(r.seconds for r in files[file]))
    for file in sorted(files, key=about):
        tests = []
        for record in sorted(files[file], key=lambda r: r.seconds):
            if left <= 0:
                break
            left -= record.seconds
            tests.append(record.test)
        if tests:
            chosen[file] = tests
    return chosen


def copied(folder: Path) -> Path:
    """A copy of the tree in a folder, which alone is ever broken."""
    root = Path(tempfile.mkdtemp(dir=folder))
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in COPIED:
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for file in ROOT.glob("*.*"):
        if file.is_file():
            shutil.copy2(file, root / file.name)
    return root


def tried(mutant: Mutant, root: Path, records: Iterable[reach.Record], limit: float) -> Shown:
    """What becomes of a mutant in the copy, which is whole again afterwards."""
    tests = selected(mutant, records, limit)
    if not tests:
        return Shown("survived", "no test enters it", 0.0)
    source = (root / mutant.file).read_text(encoding="utf-8")
    kept = (root / mutant.file).parent / "__pycache__"  # of a time stamp in whole seconds
    try:
        (root / mutant.file).write_text(mutant.broken(source), encoding="utf-8")
        _forget(kept, mutant.file)
        return show(root, tests, limit)
    finally:
        (root / mutant.file).write_text(source, encoding="utf-8")
        _forget(kept, mutant.file)


def _forget(folder: Path, file: str) -> None:
    for compiled in folder.glob(f"{Path(file).stem}.*.pyc"):
        compiled.unlink()


def equivalents() -> dict[str, str]:
    """The reasons why some mutants are none, by their names."""
    return json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else {}


# Results.


def shares(rows: Iterable[Mapping[str, Any]]) -> tuple[int, int, int]:
    """Caught before, caught after, and how many there are; those that change nothing are left out."""
    reasons = equivalents()
    counted = [row for row in rows if _name(row) not in reasons]
    return (*(sum(row[when] in CAUGHT for row in counted) for when in ("before", "after")), len(counted))


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['file']} | {row['line_before']} | {row['line_after']}"


def table(rows: list[Mapping[str, Any]]) -> list[str]:
    """A line of Markdown for each mutant."""
    reasons, lines = equivalents(), ["| file | kind | break | caught by |", "|---|---|---|---|"]
    code = lambda text: f"`{text}`".replace("|", "\\|")
    for row in rows:
        caught = row["by"] if row["after"] in CAUGHT else "**survived**"
        if row["after"] == "hang":
            caught = "taking too long"
        if row["before"] not in CAUGHT and row["after"] in CAUGHT:
            caught = f"{caught} (since)"
        caught = f"changes nothing: {reasons[_name(row)]}" if _name(row) in reasons else caught
        change = f"{code(row['line_before'])} → {code(row['line_after'])}"
        lines.append(f"| {row['file'].removeprefix('pinn_odelora/')} | {row['kind']} | {change} | {caught} |")
    return lines


def summary(rows: list[Mapping[str, Any]], seed: int, count: int) -> str:
    """Shares and kinds in a sentence; count is that of the draw."""
    before, after, counted = shares(rows)
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(row["kind"] for row in rows).most_common())
    none = len(rows) - counted
    tried = "" if len(rows) == count else f"{len(rows)} of {count} tried, "
    return (
        f"Seed {seed}: {tried}{before} of {counted} caught before ({before / max(counted, 1):.0%}), {after} after "
        f"({after / max(counted, 1):.0%}); {none} more {'changes' if none == 1 else 'change'} nothing. Kinds: {kinds}."
    )


def page(results: list[tuple[int, list[Mapping[str, Any]], int]]) -> str:
    """The page of results for one or more seeds."""
    lines = [
        "# Breaks made on purpose",
        "",
        "Written by `python -m tests.robustness.breaks --json FILE … --page docs/results/breaks.md`, whose docstring "
        "says how breaks are drawn and tried. *Before*: with the tests as they were when the breaks were drawn; "
        "*since*: with those written for the survivors. Where no test fails within the limit of seconds a break has "
        "survived, so that shares are lower bounds. Seed 1 was drawn after the tests for the survivors of seed 0 were "
        "written, and checks that these are not tailored.",
        "",
    ]
    for seed, rows, count in results:
        lines += [f"## Seed {seed}", "", summary(rows, seed, count), "", *table(rows), ""]
    return "\n".join(lines)


# The command.


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.breaks", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=50, help="breaks")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--json", type=Path, nargs="+", default=[Path("outputs/breaks.json")], help="results; several "
                        "of them for --page only")  # fmt: skip
    parser.add_argument("--reach", type=Path, help="folder of what tests enter; recorded beside the results")
    parser.add_argument(
        "--tests", nargs="+", default=TESTS, metavar="NAME", help="files of tests that breaks are shown"
    )
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of tests for a break")
    parser.add_argument("--jobs", type=int, default=1, help="breaks tried at once")
    parser.add_argument("--again", action="store_true", help="try the survivors again, with the tests of now")
    parser.add_argument("--record", action="store_true", help="record what tests enter, and no more")
    parser.add_argument("--page", type=Path, help="write the page of results, and no more")
    asked = parser.parse_args(arguments)
    if asked.page:
        kept = [json.loads(file.read_text(encoding="utf-8")) for file in asked.json]
        asked.page.write_text(page([(x["seed"], x["rows"], x["count"]) for x in kept]), encoding="utf-8")
        return 0
    (file,) = asked.json
    folder = asked.reach or file.with_suffix(".reach")
    records = reach.records(ROOT, folder, [f"tests/test_{name}.py" for name in asked.tests])
    if asked.record:
        return 0
    rows = run(file, asked.count, asked.seed, records, asked.limit, asked.again, asked.jobs)
    print("\n".join(table(rows)))
    print(summary(rows, asked.seed, asked.count))
    _, after, counted = shares(rows)
    return int(after < TARGET * counted)


def run(
    file: Path, count: int, seed: int, records: list[reach.Record], limit: float, again: bool, jobs: int
) -> list[dict[str, Any]]:
    """The rows of all breaks, those that stand in the file already and have been caught as they are."""
    known = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    rows = {_name(row): row for row in known}
    chosen = drawn(count, seed)
    open_ = [m for m in chosen if m.name not in rows or (again and rows[m.name]["after"] not in CAUGHT)]
    open_ = [m for m in open_ if m.name not in equivalents() or m.name not in rows]
    if open_:
        warm()
        with tempfile.TemporaryDirectory(prefix="breaks-") as folder, _pool(jobs, Path(folder), records, limit) as pool:
            for n, (mutant, shown) in enumerate(pool.imap_unordered(_tried, open_), start=1):
                before = rows[mutant.name]["before"] if mutant.name in rows else shown.outcome
                rows[mutant.name] = _row(mutant, shown, before)
                _keep(file, seed, count, [rows[m.name] for m in chosen if m.name in rows])
                print(f"{n}/{len(open_)} {shown.outcome} {mutant.file}:{mutant.line} {mutant.kind}: {shown.by}",
                      file=sys.stderr, flush=True)  # fmt: skip
            doubtful = _doubtful(rows.values(), copied(Path(folder)), limit)
            for name in [m.name for m in chosen if m.name in rows and rows[m.name]["by"] in doubtful]:
                print(f"{rows.pop(name)['by']} fails without any break, too", file=sys.stderr)
        _keep(file, seed, count, [rows[m.name] for m in chosen if m.name in rows])
    return [rows[m.name] for m in chosen if m.name in rows]


def _doubtful(rows: Iterable[Mapping[str, Any]], whole: Path, limit: float) -> set[str]:
    """The tests that have caught something, and fail on the whole tree as well."""
    files = defaultdict[str, list[str]](list)
    for by in sorted({row["by"] for row in rows if row["after"] == "caught" and "::" in row["by"]}):
        files[f"tests/{by.partition('::')[0]}"].append(f"tests/{by}")
    return {test.removeprefix("tests/") for test in failing(whole, files, len(files) * limit)}


def _pool(jobs: int, folder: Path, records: list[reach.Record], limit: float) -> Pool:
    """Processes with a copy each, forks of this one."""
    return multiprocessing.get_context("fork").Pool(jobs, _begin, (folder, records, limit))


def _begin(folder: Path, records: list[reach.Record], limit: float) -> None:
    global _given
    _given = copied(folder), records, limit


def _tried(mutant: Mutant) -> tuple[Mutant, Shown]:
    return mutant, tried(mutant, *_given)


def _row(mutant: Mutant, shown: Shown, before: str) -> dict[str, Any]:
    return {
        "file": mutant.file,
        "line": mutant.line,
        "kind": mutant.kind,
        "function": mutant.function,
        "line_before": mutant.before,
        "line_after": mutant.after,
        "before": before,
        "after": shown.outcome,
        "by": shown.by,
        "seconds": shown.seconds,
    }


def _keep(file: Path, seed: int, count: int, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    part.write_text(
        json.dumps({"seed": seed, "count": count, "rows": rows}, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    part.replace(file)


if __name__ == "__main__":
    sys.exit(main())

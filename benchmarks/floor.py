"""How far errors fall: this code beside a former one and all weights, up to five minutes, and where they come to rest.

    python benchmarks/floor.py --former CHECKOUT [--cases burgers heat] [--seeds 20 21 22] [--seconds 300]
                               [--contenders former last now weights] [--cache networks] [--runs floor]
                               [--record docs/results/floor.jsonl] [--page docs/results/floor.md] [--report]

The fifteen cases of the race and five jumps that are not in it, from the networks of the race, with its clock: the CPU
time of one thread. Contenders:

* ``former``: the default of the code in ``CHECKOUT``, a folder of this project at an earlier commit;
* ``last``: the default of this code, but with the first layer as it is;
* ``now``: the default of this code;
* ``weights``: natural gradient on all weights of this code, with the same points, batches and best iterate.

Every run is a process and a file under ``--runs``. ``--record`` has the errors of all runs so far, a line for each:
those are not repeated, and new ones are added. After a change of the code take the lines of all but ``former``
out. The error is that of the iterate that the run would have returned.

Targets: after 10 s no case above 1.15 times the former; in the median over cases at most half of it after 60 s, and a
tenth after 300 s; after 300 s at most 1e-7 on five cases and 1e-6 on sharp Burgers; all weights at least twice as far;
and in no run a stretch of 60 s without a better point. Errors of a case are medians over the seeds that were run for so
long, and of two contenders over those that both have. Exits with 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
MARKS = (10, 20, 30, 40, 60, 80, 100, 120, 140, 160, 180, 200, 220, 240, 260, 280, 300)
SHOWN = (10, 30, 60, 120, 300)
CONTENDERS: dict[str, tuple[str, ...]] = {
    "former": (),
    "last": ("lora.also=[last]",),
    "now": (),
    "weights": ("method=full_implicit",),
}
"""What is set beside the defaults."""
OUTSIDE = {
    "burgers_0.008": ("problem=burgers", "problem.nu=0.008"),
    "convection_13": ("problem=convection", "problem.beta=13"),
    "kovasznay_100": ("problem=kovasznay", "problem.re=100"),
    "poisson_4": ("problem=poisson", "problem.a=4"),
    "helmholtz_5": ("problem=helmholtz", "problem.k=5"),
}
"""Jumps on which nothing was chosen."""
AT_MOST, HALF, TENTH, TWICE = 1.15, 0.5, 0.1, 2.0
FLOORS = {"heat": 1e-7, "poisson": 1e-7, "burgers": 1e-7, "convection": 1e-7, "kovasznay": 1e-7, "burgers_sharp": 1e-6}
STRETCH = 60

Job = tuple[str, str, int]
"""Case, contender and seed."""
Errors = Mapping[float, float]
Table = Mapping[tuple[str, str], Mapping[int, Errors]]
"""By case and contender, and by seed."""


def one(case: str, contender: str, seed: int, seconds: float, cache: Path) -> dict[str, Any]:
    """A run by the code and the race that are on the path."""
    import racing.running as running
    import torch
    from racing.cases import CASES, Case
    from racing.contenders import Contender

    from pinn_odelora.runs.allocator import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    running.MARKS = MARKS
    raced = CASES.get(case) or Case(case, OUTSIDE[case])
    entry = running.enter(raced, Contender(contender, CONTENDERS[contender]), seed, cache)
    return running.race(entry, seconds)


class Run(NamedTuple):
    """A run for so many seconds, and its errors by seconds."""

    until: float
    errors: Errors


def measured(job: Job, args: argparse.Namespace) -> None:
    """One run in a process of its own, by the code of its contender, kept in its file."""
    case, contender, seed = job
    file = args.runs / f"{case}-{contender}-{seed}.json"
    code = args.former if contender == "former" else ROOT
    # Without the folder of this file on the path: the race, and its configurations, are those of the code.
    command = [sys.executable, "-P", __file__, "--one", case, contender, str(seed), "--seconds", str(args.seconds)]
    path = os.pathsep.join([str(code), str(code / "benchmarks")])
    settings = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command += ["--cache", str(args.cache.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=code)
    said = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if not said:
        print(f"{file.stem} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr, flush=True)
        return
    found = json.loads(said[0][6:])
    file.write_text(json.dumps({"until": args.seconds, **found}))
    print(file.stem, " ".join(f"{m['rel_l2']:.1e}" for m in found["marks"]), flush=True)


def known(runs: Path, record: Path | None) -> dict[Job, Run]:
    """The runs of a record and of a folder; the longer one where both have it."""
    found: dict[Job, Run] = {}
    lines = record.read_text().splitlines() if record and record.exists() else []
    for line in map(json.loads, lines):
        errors = {float(t): e for t, e in line["errors"].items()}
        found[line["case"], line["contender"], line["seed"]] = Run(line["until"], errors)
    for file in sorted(runs.glob("*.json")):
        case, contender, seed = file.stem.rsplit("-", 2)
        run, job = json.loads(file.read_text()), (case, contender, int(seed))
        if job not in found or run["until"] >= found[job].until:
            found[job] = Run(run["until"], {mark["seconds"]: mark["rel_l2"] for mark in run["marks"]})
    return found


def keep(record: Path, runs: Mapping[Job, Run]) -> None:
    """Write a record."""
    lines = [
        json.dumps({"case": case, "contender": who, "seed": seed, "until": run.until, "errors": dict(run.errors)})
        for (case, who, seed), run in sorted(runs.items())
    ]
    record.write_text("".join(f"{line}\n" for line in lines))


def by_seed(runs: Mapping[Job, Run]) -> dict[tuple[str, str], dict[int, Errors]]:
    """The errors of all runs."""
    found: dict[tuple[str, str], dict[int, Errors]] = {}
    for (case, contender, seed), run in sorted(runs.items()):
        found.setdefault((case, contender), {})[seed] = run.errors
    return found


def seeds_at(table: Table, case: str, contender: str, seconds: float) -> set[int]:
    """Seeds that were run for so long."""
    return {seed for seed, errors in table.get((case, contender), {}).items() if seconds in errors}


def median_error(table: Table, case: str, contender: str, seconds: float, seeds: set[int] | None = None) -> float:
    """The median over seeds, over all that were run for so long where none are given; NaN where there is none."""
    seeds = seeds_at(table, case, contender, seconds) if seeds is None else seeds
    return statistics.median(table[case, contender][seed][seconds] for seed in seeds) if seeds else math.nan


def ratios(table: Table, first: str, second: str, seconds: float) -> dict[str, float]:
    """Errors of one contender by those of another, on the cases and over the seeds that have both."""
    both = {c: seeds_at(table, c, first, seconds) & seeds_at(table, c, second, seconds) for c, _ in table}
    at = lambda case, who: median_error(table, case, who, seconds, both[case])
    return {case: at(case, first) / at(case, second) for case in both if both[case]}


def stretch(errors: Errors) -> float:
    """The longest time without a smaller error, between marks from 10 s on."""
    best, since, longest = math.inf, 0.0, 0.0
    for seconds, error in sorted(errors.items()):
        if error < best:
            best, since = error, seconds
        elif seconds >= MARKS[0]:
            longest = max(longest, seconds - since)
    return longest


def short(table: Table) -> list[str]:
    """A sentence for each target that is missed; marks that no run has yet tell nothing."""
    said = [
        f"{case}: {ratio:.2f} times the former error after 10 s"
        for case, ratio in ratios(table, "now", "former", 10).items()
        if ratio > AT_MOST
    ]
    for seconds, most in ((60, HALF), (300, TENTH)):
        found = ratios(table, "now", "former", seconds)
        if found and (middle := statistics.median(found.values())) > most:
            said.append(f"{middle:.2f} times the former error after {seconds} s in the median, not {most}")
    for case, most in FLOORS.items():
        found = median_error(table, case, "now", 300)
        said += [f"{case}: {found:.1e} after 300 s, not {most:.0e}"] if found > most else []
    found = ratios(table, "weights", "now", 300)
    if found and (middle := statistics.median(found.values())) < TWICE:
        said.append(f"all weights have {middle:.2f} times the error after 300 s in the median, not {TWICE}")
    for (case, who), runs in table.items():
        longest = max(map(stretch, runs.values()))
        if who == "now" and longest >= STRETCH:
            said.append(f"{case}: no better point for {longest:.0f} s")
    return said


def markdown(table: Table) -> str:
    """A row for each case and contender."""
    head = ["case", "code", *(f"{t} s" for t in SHOWN), "by the former: 10 s", "60 s", "300 s", "seeds"]
    rows = [head, ["---"] * len(head)]
    known = lambda case: [who for who in CONTENDERS if (case, who) in table]
    for case in dict.fromkeys(case for case, _ in table):
        for who in known(case):
            errors = [median_error(table, case, who, t) for t in SHOWN]
            cells = ["" if math.isnan(e) else f"{e:.1e}" for e in errors]
            quotients = [ratios(table, who, "former", t).get(case) for t in (10, 60, 300)] if who != "former" else []
            shown = ["" if q is None else f"{q:.2g}" for q in quotients or [None] * 3]
            rows.append([case, who, *cells, *shown, _seeds(table, case, who)])
    middles = {t: ratios(table, "now", "former", t) for t in SHOWN}
    said = [f"{statistics.median(q.values()):.2g} after {t} s ({len(q)} cases)" for t, q in middles.items() if q]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{lines}\n\nNow by former, medians over cases: {', '.join(said)}." if said else lines


def _seeds(table: Table, case: str, who: str) -> str:
    """How many there are at the first and the last time shown."""
    first, last = (len(seeds_at(table, case, who, t)) for t in (SHOWN[0], SHOWN[-1]))
    return f"{first}" if first == last else f"{first}, {last}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--former", type=Path, help="a checkout of this project at an earlier commit")
    parser.add_argument("--cases", nargs="+", help="all by default")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[20, 21, 22])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--cache", type=Path, default=Path("networks"), help="folder of pretrained networks")
    parser.add_argument("--runs", type=Path, default=Path("floor"), help="folder of what is measured")
    parser.add_argument("--record", type=Path, help="file of all runs so far, to be continued")
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--one", nargs=3, metavar=("CASE", "CONTENDER", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        case, contender, seed = args.one
        print("FOUND " + json.dumps(one(case, contender, int(seed), args.seconds, args.cache)))
        return 0
    if "former" in args.contenders and not args.report and args.former is None:
        parser.error("--former is needed, or --contenders without it")
    args.former = args.former and args.former.resolve()
    args.runs.mkdir(parents=True, exist_ok=True)
    cases = args.cases or [*_raced(), *OUTSIDE]
    done = known(args.runs, args.record)
    for job in [] if args.report else [(c, who, seed) for seed in args.seeds for c in cases for who in args.contenders]:
        if job not in done or done[job].until < args.seconds:
            measured(job, args)
    runs = known(args.runs, args.record)
    if args.record:
        keep(args.record, runs)
    table = by_seed(runs)
    print(markdown(table))
    missing = short(table)
    print("\n".join(missing))
    if args.page:
        from networks import put

        put(args.page, markdown(table))
    return int(bool(missing))


def _raced() -> list[str]:
    from racing.cases import CASES

    return [*CASES]


if __name__ == "__main__":
    sys.exit(main())

"""The race: this package's default against what a user could pick instead, by the error after so many seconds.

Eight jumps of a PDE parameter, four harder ones and three wider networks (``racing/cases.py``); Adam, SOAP, L-BFGS and
self-scaled Broyden on factors or all weights, and the full-weight natural gradient (``racing/contenders.py``). All
start from the same networks, pretrained by Adam and L-BFGS, on the same engine and points as ``python train.py``, on
one thread, and time is the CPU time of that thread (``racing/running.py``).

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/race.py [--cases burgers heat] [--contenders odelora full_lbfgs] [--seeds 0] [--floor] [--report]

Runs what is missing and then reports to ``docs/results/race``. Every finished run is a file under ``--runs``, so the
command can be interrupted and repeated, and several may share the work by ``--cases`` or ``--contenders``. ``--resume``
takes up the runs of the last report first, which is of use on the machine, and for the code, that they were made with.
``--floor`` runs the best rival of every case ten times as long, to see where it ends; it needs the rest of the race.
Other discretisations of the flow race on three cases, to show what their stability costs.

Exits with 1 when a target is short, with 2 when none is but runs are missing.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from racing.cases import CASES
from racing.contenders import CONTENDERS
from racing.plan import best_rate, finished, floor, jobs
from racing.report import console, write
from racing.results import Results, pack, unpack
from racing.running import enter, race
from racing.verdict import best_rival, verdicts
from rich.console import Console

from pinn_odelora.files import write_json
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.threads import set_threads

ROOT = Path(__file__).parent.parent
RUNS = "runs.jsonl.gz"


def run(job, folder, seconds, cache):
    """Make a run and keep it, unless it is there, with the learning rate that is the best now; None then."""
    file = folder / job.file
    rate = best_rate(folder, job.case, job.contender, seconds) if job.rate is None else job.rate
    if (there := finished(file)) is not None and there["rate"] == rate:
        return None
    entry = enter(job.case, job.contender, job.seed, cache)
    named = {"case": job.case.name, "contender": job.contender.name, "seed": job.seed, "seconds": job.seconds}
    versions = {"torch": torch.__version__, "python": platform.python_version(), "commit": commit()}
    made = race(entry, job.seconds, rate)
    found = {**named, "rate": rate, "swept": job.rate is not None, **made, "versions": versions}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    return found


@cache
def commit():
    """That of the code, with a plus where code differs from it; None outside of a repository or without git.

    Asked once, before the first run: a process goes on with the code that it has loaded.
    """
    if shutil.which("git") is None:
        return None
    ask = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()
    changed = ask("status", "--porcelain", "--", "pinn_odelora", "problems", "configs", "benchmarks")
    return (ask("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)) or None


def line(job, found):
    last, rate = found["marks"][-1], "" if found["rate"] is None else f", lr {found['rate']:g}"
    end = ", diverged" if found["diverged"] else ", stalled" if found["stalled"] else ""
    return f"{job.file[:-5]}: {last['rel_l2']:.2e} after {last['evaluations']} evaluations{rate}{end}"


def long_runs(results, cases, seconds):
    """One of the best rival of every case."""
    best = {name: best_rival(results, name, seconds / 3) for name in cases}
    return [floor(CASES[name], CONTENDERS[rival[0]], seconds) for name, rival in best.items() if rival]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS, metavar="CONTENDER")
    parser.add_argument("--seeds", nargs="+", type=int, help="of those of each case; all if not given")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a run; targets are judged at 30 only")
    parser.add_argument("--sweep", action="store_true", help="only find the learning rates")
    parser.add_argument("--floor", action="store_true", help="only the long runs of the best rivals")
    parser.add_argument("--resume", action="store_true", help="take up the runs of the last report")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/race", help="folder of the finished runs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/race", help="folder of the report")
    parser.add_argument("--cache", type=Path, help="folder of the pretrained networks; the user's cache if not given")
    args = parser.parse_args(arguments)
    if args.resume:
        print(f"{unpack(args.results / RUNS, args.runs)} runs taken up.")
    set_threads(1)
    keep_freed_memory()
    present = [CONTENDERS[name] for name in args.contenders]
    for contender in present:
        if contender.missing:
            print(f"{contender.name} does not race: {contender.missing} is missing.", file=sys.stderr)
    present = [contender for contender in present if not contender.missing]
    planned = list(jobs([CASES[name] for name in args.cases], present, args.seconds, args.seeds))
    if args.sweep:
        planned = [job for job in planned if job.rate is not None]
    if args.floor:
        planned = long_runs(Results.read(args.runs, args.seconds), args.cases, args.seconds)
    for job in [] if args.report else planned:
        if found := run(job, args.runs, args.seconds, args.cache):
            print(line(job, found), flush=True)
    results = Results.read(args.runs, args.seconds)
    judged = verdicts(results)
    write(results, judged, args.results)
    pack(args.runs, args.results / RUNS)
    Console().print(console(judged))
    states = {verdict.state for verdict in judged}
    return 1 if "short" in states else 2 if "incomplete" in states else 0


if __name__ == "__main__":
    sys.exit(main())

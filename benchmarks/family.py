"""Families: how good and how quick answers at any parameter are, against whoever else could give them.

Fourteen families (``answering/cases.py``), 64 random parameters each; from scratch and by one adaptation for every
target, one conditional network, one-shot transfer and combinations of solutions for all of them
(``answering/rivals``). One thread, and seconds are the CPU time of the process.

    python benchmarks/family.py [--cases burgers heat] [--rivals natural_gradient conditional] [--seeds 0] [--report]
    python benchmarks/family.py --quick

Runs what is missing and then reports to ``docs/results/family.md``. Every finished run is a file under ``--runs``, so
the command can be interrupted and repeated, and several may share the work by ``--cases``. ``--resume`` takes up the
runs of the last report first. ``--rivals none`` runs the families alone. ``--quick`` is a short form, in less than
three minutes: two families, one seed, eight parameters, 15 s of stations, and reports to the screen alone.

Exits with 1 when a target is short or a run failed, and says which; with 2 when none is but runs are missing.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from answering.cases import CASES, QUICK
from answering.plan import FAMILY, Job, Plan, Run, family_run, jobs, up_to_date
from answering.report import page
from answering.results import Results
from answering.roster import RIVALS
from answering.running import cpu_clock, run
from answering.verdict import short, verdicts
from race import commit
from racing.report import console
from racing.results import pack, unpack
from rich.console import Console

from pinn_odelora.errors import InputError
from pinn_odelora.files import write_json, write_text
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.threads import set_threads

ROOT = Path(__file__).parent.parent
NONE = "none"
QUICKLY = Plan(
    cases=QUICK,
    rivals=("natural_gradient", "adaptation", "combination", "one_head"),
    seeds=(0,),
    parameters=8,
    kept=8,
    targets=1,
    offline=15.0,
    cap=15.0,
)


def finish(job: Job, folder: Path, plan: Plan) -> Run | None:
    """Make a run and keep it, unless it is there and up to date; None then."""
    if up_to_date(job, folder, plan):
        return None
    versions = {"torch": torch.__version__, "python": platform.python_version(), "commit": commit()}
    named = {"case": job.case.name, "what": job.what, "seed": job.seed, "target": job.target}
    found = {**named, **run(job, folder, plan), "versions": versions}
    write_json(folder / job.file, found)
    return found


def work(plan: Plan, folder: Path) -> list[str]:
    """Make what is missing; the runs that failed, and why. Nothing is measured against a family that failed."""
    failed = []
    for job in jobs(plan):
        if job.what != FAMILY and family_run(job, folder) is None:
            continue
        try:
            found = finish(job, folder, plan)
        except (FloatingPointError, InputError, RuntimeError) as error:
            failed.append(f"{job.file[:-5]} failed: {error}")
            print(failed[-1], flush=True)
            continue
        if found:
            print(line(job, found), flush=True)
    return failed


def line(job: Job, found: Run) -> str:
    """What a run has shown."""
    if "marks" in found:
        return f"{job.file[:-5]}: {found['reached']:.1e} after {found['spent']:.1f} s"
    errors = sorted(answer["error"] for answer in found["answers"])
    seconds = sorted(answer["seconds"] for answer in found["answers"])
    middle = len(errors) // 2
    return f"{job.file[:-5]}: median {errors[middle]:.1e}, worst {errors[-1]:.1e}, {seconds[middle]:.3f} s an answer"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = Plan()
    parser.add_argument("--cases", nargs="+", default=usual.cases, choices=CASES, metavar="CASE")
    parser.add_argument("--rivals", nargs="+", default=usual.rivals, choices=[*RIVALS, NONE], metavar="RIVAL")
    parser.add_argument("--seeds", nargs="+", type=int, default=usual.seeds)
    parser.add_argument("--rival-seeds", nargs="+", type=int, default=usual.rival_seeds, help="seeds of the rivals")
    parser.add_argument("--parameters", type=int, default=usual.parameters, help="that each family answers")
    parser.add_argument("--kept", type=int, default=usual.kept, help="of them that are answered with a tolerance, too")
    parser.add_argument("--targets", type=int, default=usual.targets, help="of them that solvers are given")
    parser.add_argument("--offline", type=float, default=usual.offline, help="seconds of stations at most")
    parser.add_argument("--cap", type=float, default=usual.cap, help="seconds of a solver at most")
    parser.add_argument("--quick", action="store_true", help="the short form; no other choice counts")
    parser.add_argument("--resume", action="store_true", help="take up the runs of the last report")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--runs", type=Path, help="folder of the finished runs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/family.md", help="the report")
    args = parser.parse_args(arguments)
    plan = QUICKLY if args.quick else chosen(args)
    folder = args.runs or ROOT / ("runs/family_quick" if args.quick else "runs/family")
    packed = args.results.with_suffix(".jsonl.gz")
    if args.resume:
        print(f"{unpack(packed, folder)} runs taken up.")
    set_threads(1)
    keep_freed_memory()
    with cpu_clock():
        failed = [] if args.report else work(plan, folder)
    results = Results.read(folder)
    judged = verdicts(results, plan)
    if not args.quick:
        pack(folder, packed)
        write_text(args.results, page(results, judged, plan))
    Console().print(console(judged))
    missed = failed + short(judged)
    if missed:
        print("Short:", *missed, sep="\n  ")
    return 1 if missed else 2 if any(verdict.state == "incomplete" for verdict in judged) else 0


def chosen(args: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    rivals = () if NONE in args.rivals else tuple(args.rivals)
    named = {"cases": tuple(args.cases), "rivals": rivals, "seeds": tuple(args.seeds)}
    counted = {name: getattr(args, name) for name in ("parameters", "kept", "targets", "offline", "cap")}
    return Plan(**named, rival_seeds=tuple(args.rival_seeds), **counted)


if __name__ == "__main__":
    sys.exit(main())

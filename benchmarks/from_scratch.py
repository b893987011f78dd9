"""A single target: adapting a pretrained network against training one from random weights, by our own natural gradient.

    python benchmarks/from_scratch.py [--cases burgers heat] [--seeds 20 21 22] [--cap 120] [--json from_scratch.json]
                                      [--page README.md] [--report]

CPU seconds of one thread until the relative L2 error of the iterate at 4,096 points, whose measurement is not timed, is
1e-4, 1e-5, 1e-6 and, at the last case, 1e-7; medians over seeds of the initial weights and points. The network has four
layers of 40 units. Both ways start from the same random weights:

* ``adapting``: the default of ``po.pretrain`` at the problem's source, to 1e-4, whose seconds have a column of their
  own, and then the default of ``po.adapt`` to the target;
* ``from scratch``: ``po.pretrain`` at the target, with its default of 1,000 residuals at most, or 12,000 for 1e-7.

Every run is kept in the file of ``--json`` and not repeated. Exits with 1 where training from scratch at the last case
takes more than 120 s to 1e-6 or 400 s to 1e-7.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from answering.rivals.scratch import followed
from answering.trace import Trace, error_at
from networks import put

import pinn_odelora as po
from pinn_odelora.pretraining import stages
from pinn_odelora.pretraining.pretrain import ADAM_POINTS
from pinn_odelora.registry import problem_class
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.system import Solution, System
from pinn_odelora.threads import set_threads

LEVELS = (1e-4, 1e-5, 1e-6, 1e-7)
LAST = "burgers, ν = 0.01"
CASES = {
    **{name: (name, {}, 1e-6) for name in ("burgers", "heat", "convection", "reaction", "allen_cahn")},
    **{name: (name, {}, 1e-6) for name in ("helmholtz", "poisson", "kovasznay")},
    LAST: ("burgers", {"nu": 0.01}, 1e-7),
}
"""Problem, parameters of the target beside its default ones, and the smallest error asked for."""
MOST = {1e-6: 120.0, 1e-7: 400.0}
"""Seconds from scratch at the last case."""
MANY = 12_000
"""Residuals for the smallest error, more than twice the number of weights."""
BEFORE, ADAPTING, SCRATCH = "pretraining", "adapting", "from scratch"


def network(problem, seed):
    return po.MLP(problem.inputs, len(problem.fields), generator=torch.Generator().manual_seed(seed))


def adapting(problem, least, seed, cap):
    """Marks of a run from the pretrained network, and the seconds of its pretraining."""
    source = problem.at_source()
    clock = Trace(lambda: 1.0, 0.0, cap)
    net = po.pretrain(source, network(source, seed), settings=po.Pretraining(seed=seed), say=lambda line: None)
    before, error = clock.clock(), error_at(problem)
    trace = Trace(lambda: error(run.solution), least, cap)
    # The trace ends it: seconds of a budget are not CPU seconds.
    run = po.steps(net, problem, seed=seed, budget=po.Budget(steps=10**6), log=po.Log(every=10**6, estimate=False))
    for _ in run:
        if trace.look():
            break
    return {"before": before, **trace.record()}


def scratch(problem, least, seed, cap):
    """Marks of a run from random weights, with the stages of ``po.pretrain``."""
    settings = po.Pretraining(seed=seed, **({"interior": MANY} if least < 1e-6 else {}))
    problem = problem.as_source()
    solution, error = Solution(problem, network(problem, seed).double()), error_at(problem)
    trace = Trace(lambda: error(solution), least, cap)
    system = System(problem, solution)
    stages.adam(system, ADAM_POINTS, settings.boundary, seed, settings.adam_steps, settings.adam_lr, lambda line: None)
    stage = stages.natural_gradient(system, settings.interior, settings.boundary, seed)
    return followed(stage, trace).record()


def first(marks, level):
    """Seconds at which the error was at most ``level`` for the first time; None where it never was."""
    return next((seconds for seconds, error in marks if error <= level), None)


def middle(seconds):
    """The median, where at least half of the runs came there."""
    known = [s if s is not None else float("inf") for s in seconds]
    found = statistics.median(known)
    return None if found == float("inf") else found


def medians(runs):
    """Seconds by case, way and level."""
    found = {}
    for case, (_, _, least) in CASES.items():
        for way in (ADAPTING, SCRATCH):
            mine = [run for name, run in runs.items() if name.rsplit("/", 1)[0] == f"{case}/{way}"]
            if mine:
                levels = [level for level in LEVELS if level >= least]
                found[case, way] = {level: middle([first(run["marks"], level) for run in mine]) for level in levels}
                if way == ADAPTING:
                    found[case, BEFORE] = statistics.median(run["before"] for run in mine)
    return found


def lines(found, cap):
    """The table, and what is short of the targets."""
    head = ["seconds", BEFORE, *(f"to {level:.0e}: {ADAPTING} / {SCRATCH}" for level in LEVELS)]
    rows = [head, ["---"] * len(head)]
    for case in CASES:
        ways = [found.get((case, way), {}) for way in (ADAPTING, SCRATCH)]
        if any(ways):
            cells = [" / ".join(shown(way[level], cap) for way in ways if level in way) for level in LEVELS]
            rows.append([case, shown(found[case, BEFORE], cap) if (case, BEFORE) in found else "", *cells])
    said = []
    for level, most in MOST.items():
        seconds = found.get((LAST, SCRATCH), {}).get(level, 0.0)
        if seconds is None or seconds > most:
            said.append(f"{LAST}: {level:.0e} not within {most:.0f} s from scratch")
    return "\n".join(f"| {' | '.join(row)} |" for row in rows), said


def shown(seconds, cap):
    return f"over {cap:.0f}" if seconds is None else f"{seconds:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES, metavar="CASE")
    parser.add_argument("--seeds", nargs="+", type=int, default=[20, 21, 22])
    parser.add_argument("--cap", type=float, default=120.0, help="CPU seconds after which a run ends")
    parser.add_argument("--json", type=Path, default=Path("from_scratch.json"), help="the runs")
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    parser.add_argument("--report", action="store_true", help="run nothing")
    args = parser.parse_args()
    set_threads(1)
    keep_freed_memory()
    runs = json.loads(args.json.read_text()) if args.json.exists() else {}
    for seed in () if args.report else args.seeds:
        for case in args.cases:
            name, parameters, least = CASES[case]
            problem = problem_class(name)(**parameters)
            for way, run in {ADAPTING: adapting, SCRATCH: scratch}.items():
                key = f"{case}/{way}/{seed}"
                if key not in runs:
                    runs[key] = run(problem, least, seed, args.cap)
                    args.json.write_text(json.dumps(runs, indent=1))
                    print(key, *(f"{level:.0e} {first(runs[key]['marks'], level)}" for level in LEVELS), flush=True)
    table, said = lines(medians(runs), args.cap)
    print("\n".join([table, *said]))
    if args.page:
        put(args.page, table)
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())

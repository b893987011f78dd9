"""Pretraining by natural gradient against Adam and L-BFGS: CPU seconds until a network solves the source problem.

Each trains the default network of a problem from the same initial weights to the same error on unseen points, or until
it gets no further: natural gradient as ``python train.py`` does (100 steps of Adam before it), L-BFGS after 500 steps
of Adam, with at most 10,000 evaluations.

    python benchmarks/pretraining.py [--problems burgers heat] [--width 128] [--target 1e-4] [--json pretraining.json]

Exits with 1 where natural gradient is not at least twice as fast to an error that is not larger.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import pinn_odelora as po
from pinn_odelora.files import write_json
from pinn_odelora.pretraining.pretrain import unseen_error
from pinn_odelora.registry import problem_class
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.system import System
from pinn_odelora.threads import set_threads

CONFIGS = Path(__file__).parent.parent / "configs"
# The network of a matrix problem is built at its source, not trained.
PROBLEMS = sorted(p.stem for p in (CONFIGS / "problem").glob("*.yaml") if not p.stem.startswith("matrix_"))
STAGES = {
    "natural gradient": {"second_stage": "natural_gradient"},
    "L-BFGS": {"second_stage": "lbfgs", "adam_steps": 500},
}
FASTER = 2


def trained(name, width, target, settings):
    """CPU seconds, and the error that was reached."""
    source = problem_class(name)().at_source()
    net = po.MLP(source.inputs, len(source.fields), width=width, generator=torch.Generator().manual_seed(0))
    start = time.thread_time()
    net = po.pretrain(source, net, settings=po.Pretraining(target=target, **settings))
    seconds = time.thread_time() - start
    return {"seconds": seconds, "error": unseen_error(System(source, po.Solution(source, net)), 0)()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, choices=PROBLEMS, metavar="PROBLEM")
    parser.add_argument("--width", type=int, default=40)
    parser.add_argument("--target", type=float, default=1e-4)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    set_threads(1)
    keep_freed_memory()
    table, found = Table("problem", *STAGES, "ratio"), {}
    for problem in args.problems:
        runs = {stage: trained(problem, args.width, args.target, settings) for stage, settings in STAGES.items()}
        natural, lbfgs = runs.values()
        ratio = lbfgs["seconds"] / natural["seconds"]
        met = ratio >= FASTER and natural["error"] <= max(args.target, lbfgs["error"])
        cells = (f"{run['seconds']:.1f} s, {run['error']:.1e}" for run in runs.values())
        table.add_row(problem, *cells, f"{ratio:.1f}" + ("" if met else " short"))
        found[problem] = {**runs, "met": met}
    Console().print(table)
    if args.json:
        write_json(args.json, found)
    return 0 if all(run["met"] for run in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A step too large for any matrix: width 256, rank 8, 10,000 points of Burgers' equation, by the default method.

In a process of its own, on one thread, from a network as it is drawn, always at the same points: the largest memory of
the process above what it had after its imports, and for each step its seconds, the iterations of conjugate gradients
and columns of the sketch, and the loss before and after.

    python benchmarks/large_step.py --json large_step.json

ends with 1 if the memory passes a GiB, another form than conjugate gradients is chosen, or the loss does not fall.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import pinn_odelora as po
from pinn_odelora.adaptation import Adaptation  # now: the memory of imports is not that of a step
from pinn_odelora.linalg import solvers
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.threads import set_threads
from problems.burgers import Burgers

WIDTH, RANK, POINTS = 256, 8, 10_000
LIMIT = 2**30


class Counted(solvers.ConjugateGradients):
    """Conjugate gradients that are found again after a step."""

    last = None

    def __init__(self, J):
        super().__init__(J)
        Counted.last = {"solver": self, "solutions": 0}

    def __call__(self, w, mu):
        Counted.last["solutions"] += 1
        return super().__call__(w, mu)


def peak():
    """The largest resident memory so far, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def adaptation(width, rank, points, steps):
    """Of a network as it is drawn, its factors alone, always at the same points."""
    net = po.MLP(2, 1, width=width, generator=torch.Generator().manual_seed(0))
    return Adaptation(
        net,
        Burgers(),
        lora=po.LoRA(rank=rank, also=()),
        points=po.Sampling.fixed(interior=points),
        budget=po.Budget(steps=steps),
        log=po.Log(every=steps),
    )


def measured(width, rank, points, steps):
    """The run, in this process."""
    set_threads(1)
    keep_freed_memory()
    solvers.ConjugateGradients = Counted
    base, spent, found = peak(), 0.0, []
    run = adaptation(width, rank, points, steps)
    for record in run:
        step = {"seconds": record.seconds - spent, "before": record.loss, "after": record.report.loss_after}
        spent = record.seconds
        if Counted.last is not None:
            solver = Counted.last.pop("solver")
            step |= {"iterations": solver.iterations, "sketch": solver.preconditioner.columns, **Counted.last}
            Counted.last = None
            del solver
        found.append(step | {"h": record.report.h})
    plan = run.plan()
    return {"plan": str(plan), "form": plan.form, "base": base, "above": peak() - base, "steps": found}


def apart(args):
    """The same in a fresh process."""
    sizes = [f"--{name}={getattr(args, name)}" for name in ("width", "rank", "points", "steps")]
    command = [sys.executable, __file__, "--inside", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the measured process failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def shortfalls(result):
    """What is short, a sentence each."""
    found = []
    if result["above"] > LIMIT:
        found.append(f"{result['above'] / 2**20:.0f} MiB above the base process, more than {LIMIT / 2**20:.0f}.")
    if result["form"] != "cg":
        found.append(f"the linear algebra is {result['form']}, not conjugate gradients.")
    for i, step in enumerate(result["steps"]):
        if not step["after"] < step["before"]:
            found.append(f"step {i}: the loss went from {step['before']:.3e} to {step['after']:.3e}.")
    return found


def table(result):
    title = f"{result['plan']}; measured {result['above'] / 2**20:.0f} MiB above {result['base'] / 2**20:.0f}"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("step", "seconds", "solutions", "iterations", "sketch", "loss before", "loss after"):
        made.add_column(column, justify="right", no_wrap=True)
    for i, step in enumerate(result["steps"]):
        counts = (str(step.get(name, "-")) for name in ("solutions", "iterations", "sketch"))
        made.add_row(str(i), f"{step['seconds']:.1f}", *counts, f"{step['before']:.3e}", f"{step['after']:.3e}")
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--points", type=int, default=POINTS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", action="store_true", help="measure in this process, and print the numbers only")
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measured(args.width, args.rank, args.points, args.steps)))
        return 0
    result = apart(args)
    Console().print(table(result))
    short = shortfalls(result)
    if args.json:
        args.json.write_text(json.dumps(result | {"torch": torch.__version__, "short": short}, indent=2))
    print("\n".join(short) if short else "every target reached")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())

"""What Lightning, counting, checking and logging cost: a training step of a run against a bare loop on the same loss.

Both take Adam steps on the same factors and points. The run logs every 10 steps, history and measurements included;
the bare loop evaluates the loss, calls ``torch.autograd.grad`` and steps. They take turns, a block of 50 steps each,
and a ratio is formed for every pair of neighbours.

    python benchmarks/overhead.py [--problems burgers heat] [--steps 1000] [--json overhead.json]

Exits with 1 when the median ratio of a problem is above 1.15.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from engines import bare_step
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from pinn_odelora import config
from pinn_odelora.config.build import experiment
from pinn_odelora.lightning import fit
from pinn_odelora.runs.allocator import keep_freed_memory
from pinn_odelora.threads import set_threads

ROOT = Path(__file__).parent.parent
PROBLEMS = sorted(path.stem for path in (ROOT / "configs/problem").glob("*.yaml"))
LIMIT = 1.15
BLOCK = 50


class Turns(L.Callback):
    """After every block of the run, the same number of bare steps: neighbours in time, so that a ratio is fair."""

    def __init__(self, step):
        self.step = step
        self.pairs = []

    def on_train_start(self, *_):
        self.mark = time.perf_counter()

    def on_train_batch_end(self, *_):
        ended = time.perf_counter()
        for _ in range(BLOCK):
            self.step()
        now = time.perf_counter()
        self.pairs.append(((ended - self.mark) / BLOCK, (now - ended) / BLOCK))
        self.mark = now


def adaptation(problem, steps):
    """As ``train.py`` builds it; its network is not trained before."""
    config.register()
    budget = [f"budget.steps={steps + BLOCK}", "budget.gradient_evals=null"]
    own = [f"problem={problem}", "method=lora_adam", "points=fixed", "logger=csv", "output_dir=unused", *budget]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return experiment(compose("train", own)).adaptation


def bare(problem, steps, device):
    """One step of the loop that one would write by hand."""
    training = adaptation(problem, steps).to(device).training
    points = training.sampler.draw(0).to(torch.device(device)).points
    lr = training.optimizer.param_groups[0]["lr"]
    return bare_step.adam(training.objective.system, training.objective.parameters, points, lr)


def measure(problem, steps, device):
    turns = Turns(bare(problem, steps, device))
    trainer = fit.trainer

    def with_turns(*args):
        made = trainer(*args)
        made.callbacks.insert(0, turns)
        return made

    fit.trainer = with_turns
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1}
            fit.fit(adaptation(problem, steps), Path(folder), [], settings, every=100)
    finally:
        fit.trainer = trainer
    pairs = turns.pairs[1:]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    return {
        "problem": problem,
        "run_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "bare_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": middle,
        "lower_quartile": low,
        "upper_quartile": high,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, choices=PROBLEMS)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    set_threads(1)
    keep_freed_memory()
    rows = [measure(problem, args.steps, args.device) for problem in args.problems]
    table = Table("problem", "run, ms a step", "bare loop, ms a step", "ratio", "quartile", "quartile")
    for row in rows:
        table.add_row(row["problem"], *(f"{row[key]:.2f}" for key in list(row)[1:]))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({"device": args.device, "torch": torch.__version__, "rows": rows}, indent=2))
    slow = [row["problem"] for row in rows if row["ratio"] > LIMIT]
    print(f"above {LIMIT}: {', '.join(slow)}" if slow else f"every problem within {LIMIT}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

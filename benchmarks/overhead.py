"""What Lightning, counting, checking and logging cost: a training step of a run against a bare loop on the same loss.

Both take Adam steps on the same factors and points. The run logs every 10 steps, history and measurements included;
the bare loop evaluates the loss, calls ``torch.autograd.grad`` and steps. They take turns, and the ratio of the medians
of each round is formed within the round.

    python benchmarks/overhead.py [--problems burgers heat] [--rounds 5] [--steps 100] [--json overhead.json]

Exits with 1 when the median ratio of a problem is above 1.15.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from pinn_odelora import commandline
from pinn_odelora.training import build, run

ROOT = Path(__file__).parent.parent
PROBLEMS = sorted(path.stem for path in (ROOT / "configs/problem").glob("*.yaml"))
LIMIT = 1.15
BLOCK = 10


class Clock(L.Callback):
    """The wall time of every block of steps, with all that happens between them."""

    def __init__(self):
        self.marks = []

    def on_train_batch_end(self, *_):
        self.marks.append(time.perf_counter())

    def per_step(self):
        return [(b - a) / BLOCK for a, b in itertools.pairwise(self.marks)]


def configuration(problem, steps, device):
    commandline.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(
            "train",
            [
                *(f"problem={problem}", "method=lora_adam", "logger=csv", "output_dir=unused"),
                *(f"budget.steps={steps + BLOCK}", "budget.gradient_evals=null", f"trainer.accelerator={device}"),
            ],
        )
    OmegaConf.set_struct(cfg, False)
    cfg.choices = {"problem": problem, "method": "lora_adam", "integrator": None}
    return cfg


def framework(cfg, built):
    """Seconds per step of a run, block by block."""
    clock = Clock()
    trainer = run._trainer

    def timed(*args):
        made = trainer(*args)
        made.callbacks.insert(0, clock)
        return made

    run._trainer = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            run.fit(cfg, built._replace(net=copy.deepcopy(built.net)), [], Path(folder))
    finally:
        run._trainer = trainer
    return clock.per_step()


def bare(cfg, built, steps, device):
    """Seconds per step of the loop that one would write by hand, block by block."""
    module = run.adaptation(cfg, built._replace(net=copy.deepcopy(built.net)), None)
    module.to(device)
    system, parameters = module.evaluator.system, module.evaluator.parameters
    points = {name: p.to(device) for name, p in run.stream(cfg, system.terms).draw(0).points.items()}
    adam = torch.optim.Adam(parameters, lr=3e-3)
    marks = []
    for step in range(steps + BLOCK):
        if step % BLOCK == 0:
            marks.append(time.perf_counter())
        loss = system.loss(points).total
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        adam.step()
    marks.append(time.perf_counter())
    return [(b - a) / BLOCK for a, b in itertools.pairwise(marks)][1:]


def measure(problem, rounds, steps, device):
    cfg = configuration(problem, steps, "gpu" if device == "cuda" else "cpu")
    built = build.experiment(cfg)
    pairs = []
    for _ in range(rounds):
        pairs.append((statistics.median(framework(cfg, built)), statistics.median(bare(cfg, built, steps, device))))
    ratios = sorted(a / b for a, b in pairs)
    return {
        "problem": problem,
        "framework_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "bare_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, choices=PROBLEMS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(problem, args.rounds, args.steps, args.device) for problem in args.problems]
    table = Table("problem", "run, ms a step", "bare loop, ms a step", "ratio", "min", "max")
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

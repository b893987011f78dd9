"""What Lightning, counting, checking and logging cost: a training step of a run against a bare loop on the same loss.

Both take Adam steps on the same factors and points. The run logs every 10 steps, history and measurements included;
the bare loop evaluates the loss, calls ``torch.autograd.grad`` and steps. They take turns, a block of 50 steps each,
and a ratio is formed for every pair of neighbours.

    python benchmarks/overhead.py [--problems burgers heat] [--steps 1000] [--json overhead.json]

Exits with 1 when the median ratio of a problem is above 1.15.
"""

from __future__ import annotations

import argparse
import copy
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

from pinn_odelora import config as commandline
from pinn_odelora.config import build, run
from pinn_odelora.runs.allocator import keep_freed_memory

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


def configuration(problem, steps, device):
    commandline.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(
            "train",
            [
                *(f"problem={problem}", "method=lora_adam", "logger=csv", "output_dir=unused"),
                *(
                    "points=fixed",
                    f"budget.steps={steps + BLOCK}",
                    "budget.gradient_evals=null",
                    f"trainer.accelerator={device}",
                ),
            ],
        )
    OmegaConf.set_struct(cfg, False)
    cfg.choices = {"problem": problem, "method": "lora_adam", "integrator": None}
    return cfg


def bare_step(cfg, built, device):
    """The loop that one would write by hand, one step of it."""
    module = run.adaptation(cfg, built._replace(net=copy.deepcopy(built.net)), None).to(device)
    system, parameters = module.evaluator.system, module.evaluator.parameters
    points = {name: p.to(device) for name, p in run.stream(cfg, system).draw(0).points.items()}
    adam = torch.optim.Adam(parameters, lr=3e-3)

    def step():
        loss = system.loss(points).total
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        adam.step()

    return step


def measure(problem, steps, device):
    cfg = configuration(problem, steps, "gpu" if device == "cuda" else "cpu")
    built = build.experiment(cfg)
    turns = Turns(bare_step(cfg, built, device))
    trainer = run._trainer

    def with_turns(*args):
        made = trainer(*args)
        made.callbacks.insert(0, turns)
        return made

    run._trainer = with_turns
    try:
        with tempfile.TemporaryDirectory() as folder:
            run.fit(cfg, built, [], Path(folder))
    finally:
        run._trainer = trainer
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
    torch.set_num_threads(1)
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

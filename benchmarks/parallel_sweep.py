"""The time of a sweep in processes side by side, against the same sweep one run after another.

Both run ``train.py -m`` on the same seeds, from the same pretrained network, with one thread a process; imports and the
start of the processes count. The numbers that the runs arrive at must be the same.

    python benchmarks/parallel_sweep.py [--runs 16] [--steps 60] [--workers 2] [--json parallel_sweep.json]

Exits with 1 when two processes on two idle cores take more than 0.6 of the time, and with 2 when a number differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
LIMIT = 0.6
"""Of the time of one after another, with two workers; ideal is 0.5, and each process imports torch for itself."""


def arguments(runs, steps):
    """Those of either sweep: Burgers with everything that a run leaves but the pictures of W&B."""
    short = ["problem=burgers", "logger=csv", "trainer.accelerator=cpu", "budget.gradient_evals=null"]
    return [*short, f"budget.steps={steps}", f"seed=range({runs})"]


def sweep(folder, launcher, words, cache):
    """Seconds of a sweep, and the errors that its runs arrive at, by seed."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = os.environ | one_thread | {"PINN_ODELORA_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), "-m", *launcher, *words, f"output_dir={folder}"]
    before = time.perf_counter()
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - before
    if ran.returncode:
        raise SystemExit(ran.stderr)
    summaries = {int(file.parent.name): json.loads(file.read_text()) for file in folder.glob("*/summary.json")}
    return seconds, {seed: summaries[seed]["rel_l2"] for seed in sorted(summaries)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=60, help="of each run")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    words = arguments(args.runs, args.steps)
    launcher = ["hydra/launcher=processes", f"hydra.launcher.workers={args.workers}"]
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        sweep(place / "first", [], arguments(1, 1), place / "cache")  # pretrains the network
        alone, expected = sweep(place / "alone", [], words, place / "cache")
        together, found = sweep(place / "together", launcher, words, place / "cache")
    ratio = together / alone
    table = Table("runs", "steps each", "one after another, s", f"{args.workers} processes, s", "ratio")
    table.add_row(str(args.runs), str(args.steps), f"{alone:.1f}", f"{together:.1f}", f"{ratio:.2f}")
    Console().print(table)
    if args.json:
        row = {"runs": args.runs, "steps": args.steps, "workers": args.workers, "cores": os.cpu_count()}
        args.json.write_text(json.dumps(row | {"alone": alone, "together": together, "ratio": ratio}, indent=2) + "\n")
    if found != expected:
        print(f"The runs arrive at other numbers: {found} instead of {expected}.", file=sys.stderr)
        return 2
    return int(ratio > LIMIT and args.workers == 2)


if __name__ == "__main__":
    sys.exit(main())

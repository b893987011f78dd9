"""The time of a sweep in processes side by side, against the same sweep one run after another.

Both run ``train.py -m`` on the same seeds, from the same pretrained network, with one thread a process; imports and the
start of the processes count. The numbers that the runs arrive at must be the same.

    python benchmarks/parallel_sweep.py [--runs 16] [--steps 80] [--workers 2] [--json parallel_sweep.json]

Exits with 1 when two processes on two idle cores take more than 0.6 of the time, and with 2 when a number differs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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

BUSY = 1.2
"""Seconds for each processor second of one process, above which the ratio says little."""


def arguments(runs, steps):
    """Those of either sweep: Burgers with everything that a run leaves but the pictures of W&B."""
    short = ["problem=burgers", "logger=csv", "trainer.accelerator=cpu", "budget.gradient_evals=null"]
    return [*short, f"budget.steps={steps}", f"seed=range({runs})"]


def sweep(folder, launcher, words, cache):
    """Seconds of a sweep, those of processors, and the errors that its runs arrive at, by seed."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = os.environ | one_thread | {"PINN_ODELORA_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), "-m", *launcher, *words, f"output_dir={folder}"]
    before, used = time.perf_counter(), processor_seconds()
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds, used = time.perf_counter() - before, processor_seconds() - used
    if ran.returncode:
        raise SystemExit(ran.stderr)
    summaries = {int(file.parent.name): json.loads(file.read_text()) for file in folder.glob("*/summary.json")}
    return seconds, used, {seed: summaries[seed]["rel_l2"] for seed in sorted(summaries)}


def processor_seconds():
    """Of all processes that this one has started and that have ended, and of those that they have started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=80, help="of each run")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    words = arguments(args.runs, args.steps)
    launcher = ["hydra/launcher=processes", f"hydra.launcher.workers={args.workers}"]
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        sweep(place / "first", [], arguments(1, 1), place / "cache")  # pretrains the network
        alone, used_alone, expected = sweep(place / "alone", [], words, place / "cache")
        together, used_together, found = sweep(place / "together", launcher, words, place / "cache")
    ratio = together / alone
    table = Table(title=f"{args.runs} runs of {args.steps} steps")
    for heading in ("", "seconds", "processor seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("one after another", f"{alone:.1f}", f"{used_alone:.1f}")
    table.add_row(f"{args.workers} processes", f"{together:.1f}", f"{used_together:.1f}")
    table.add_row("ratio", f"{ratio:.2f}", f"{used_together / used_alone:.2f}")
    Console().print(table)
    if alone > BUSY * used_alone:
        print("The machine was busy with something else: a single process waited for a processor.", file=sys.stderr)
    if args.json:
        row = {"runs": args.runs, "steps": args.steps, "workers": args.workers, "cores": os.cpu_count()}
        row |= {"alone": alone, "together": together, "ratio": ratio}
        row |= {"processor_seconds_alone": used_alone, "processor_seconds_together": used_together}
        args.json.write_text(json.dumps(row, indent=2) + "\n")
    if found != expected:
        print(f"The runs arrive at other numbers: {found} instead of {expected}.", file=sys.stderr)
        return 2
    return int(ratio > LIMIT and args.workers == 2)


if __name__ == "__main__":
    sys.exit(main())

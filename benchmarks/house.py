"""This checkout against another one, side by side: time of a step, start, import, error and memory.

    python benchmarks/house.py --against ../other_checkout [--json house.json] [--quick]

Everything is measured in processes of its own, started in either checkout with its own ``PYTHONPATH`` by the same
interpreter, on one thread, and the two take turns, so that a load on the machine meets both. Runs are those of
``python train.py`` with default settings from networks that the other checkout has pretrained.

    seconds a step   of runs whose clock is the CPU time of their thread: over ten steps, the step in which the best
                     iterate is found among them, at each batch size that both sides have, weighted by how often
    start            CPU seconds of ``python train.py --help``
    import           seconds of ``import pinn_odelora``
    error            relative L2 error of default runs of Burgers' equation over seeds
    memory           peak resident memory of these runs' processes

The table has medians and, in brackets, the smallest and the largest value. Exits with 1 when one of them is short of
its limit. The error is short where the median is above the largest one of the other checkout.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PROBLEMS = ("burgers", "heat", "kovasznay", "poisson")
SLOWER, LATER, SECONDS, LARGER = 1.03, 1.0, 0.3, 1.03
"""Limits: of the ratios of seconds a step, start and memory, and of the seconds of the import."""
CPU_CLOCK = (
    "import runpy, sys, time; time.perf_counter = time.thread_time; sys.argv[0] = 'train.py'; "
    "runpy.run_path('train.py', run_name='__main__')"
)
"""``train.py`` whose seconds are the CPU time of its thread."""
IMPORT = "import time; start = time.perf_counter(); import pinn_odelora; print(time.perf_counter() - start)"
BATCH_SIZE = ("cost/batch_size", "cost/rows")
"""The residuals of a step in a history, and the former name of that column."""

Paces = dict[int, list[float]]
"""Seconds a step by batch size, each the mean of the steps between two rows of a history."""


class Side(NamedTuple):
    """A checkout, and the folder that its runs leave."""

    root: Path
    folder: Path


class Ended(NamedTuple):
    """What a process wrote to standard output, and its CPU seconds and peak memory in bytes.

    Linux counts the memory of the process that started it, so nothing large is imported here.
    """

    said: str
    seconds: float
    peak: int


class Verdict(NamedTuple):
    """What was measured on both sides, the ratio, or the value itself where ``against`` is empty, and its limit."""

    what: str
    unit: str
    here: list[float]
    against: list[float]
    found: float
    limit: float

    @property
    def met(self) -> bool:
        return self.found <= self.limit


def process(side: Side, *words: str) -> Ended:
    """Run the interpreter in a checkout.

    Raises:
        SystemExit: if it fails.
    """
    environment = {**os.environ, "PYTHONPATH": str(side.root), "OMP_NUM_THREADS": "1"}
    side.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+", dir=side.folder) as out, tempfile.TemporaryFile("w+", dir=side.folder) as err:
        started = subprocess.Popen([sys.executable, *words], cwd=side.root, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if started.returncode:
            raise SystemExit(f"{' '.join(words)} failed in {side.root}:\n{err.read()}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Ended(out.read(), usage.ru_utime + usage.ru_stime, unit * usage.ru_maxrss)


def run(side: Side, name: str, *keys: str, clock: str | None = None) -> tuple[Path, Ended]:
    """The folder of a run that is no longer than its budget, and its process."""
    folder = side.folder / name
    program = ("train.py",) if clock is None else ("-c", clock)
    ended = process(side, *program, "logger=csv", "trainer.accelerator=cpu", f"output_dir={folder}", *keys)
    return folder, ended


def turns(sides: tuple[Side, Side], repetitions: int) -> Iterator[tuple[int, int, Side]]:
    """Repetition, number and side: one after the other, the first one first in every other repetition."""
    for repetition in range(repetitions):
        for i in (0, 1) if repetition % 2 == 0 else (1, 0):
            yield repetition, i, sides[i]


def pretrained(side: Side, problem: str) -> Path:
    """The network from which both sides start."""
    cache = f"pretrain.cache={side.folder / 'cache'}"
    folder, _ = run(side, f"pretraining-{problem}", f"problem={problem}", "budget.steps=1", cache)
    return folder / "pretrained.safetensors"


def paces(history: Path) -> Paces:
    """Of a history without its last row, which has the end of the run."""
    with history.open(newline="") as file:
        rows = [*csv.DictReader(file)][:-1]
    found: Paces = {}
    for row, after in pairwise(rows):
        column = next(name for name in BATCH_SIZE if name in row)
        if row[column] == after[column]:  # it never shrinks
            steps = float(after["step"]) - float(row["step"])
            seconds = float(after["cost/seconds"]) - float(row["cost/seconds"])
            found.setdefault(round(float(row[column])), []).append(seconds / steps)
    return found


def merged(parts: list[Paces]) -> Paces:
    """All of them together."""
    found: Paces = {}
    for part in parts:
        for size, values in part.items():
            found.setdefault(size, []).extend(values)
    return found


def compared(here: Paces, against: Paces) -> tuple[float, float]:
    """Seconds a step of both, over the batch sizes that both have; NaN without one."""
    weights = {size: min(len(here[size]), len(against[size])) for size in here.keys() & against.keys()}
    if not weights:
        return math.nan, math.nan
    mean = lambda side: sum(n * statistics.median(side[size]) for size, n in weights.items()) / sum(weights.values())
    return mean(here), mean(against)


def step_times(sides: tuple[Side, Side], problem: str, checkpoint: Path, steps: int, repetitions: int) -> Verdict:
    found: tuple[list[Paces], list[Paces]] = ([], [])
    keys = [f"problem={problem}", f"pretrain.checkpoint={checkpoint}", f"budget.steps={steps}"]
    for repetition, i, side in turns(sides, repetitions):
        own = [*keys, "budget.gradient_evals=null", f"seed={repetition}"]
        folder, _ = run(side, f"steps-{problem}-{repetition}", *own, clock=CPU_CLOCK)
        found[i].append(paces(folder / "history.csv"))
    here, against = compared(*(merged(parts) for parts in found))
    by_round = [compared(*pair) for pair in zip(*found, strict=True)]
    milliseconds = ([1e3 * x for x in side] for side in zip(*by_round, strict=True))
    return Verdict(f"a step, {problem}", "ms", *milliseconds, here / against, SLOWER)


def starts(sides: tuple[Side, Side], repetitions: int) -> Verdict:
    found: tuple[list[float], list[float]] = ([], [])
    for _, i, side in turns(sides, repetitions):
        found[i].append(process(side, "train.py", "--help").seconds)
    return Verdict("start of --help", "s", *found, ratio(*found), LATER)


def imports(side: Side, repetitions: int) -> Verdict:
    found = [float(process(side, "-c", IMPORT).said) for _ in range(repetitions)]
    return Verdict("import pinn_odelora", "s", found, [], statistics.median(found), SECONDS)


def defaults(sides: tuple[Side, Side], checkpoint: Path, seeds: int) -> list[Verdict]:
    """Error and memory of the default run."""
    errors: tuple[list[float], list[float]] = ([], [])
    peaks: tuple[list[float], list[float]] = ([], [])
    for seed, i, side in turns(sides, seeds):
        keys = ("problem=burgers", f"pretrain.checkpoint={checkpoint}", f"seed={seed}")
        folder, ended = run(side, f"defaults-{seed}", *keys)
        errors[i].append(json.loads((folder / "summary.json").read_text())["rel_l2"])
        peaks[i].append(ended.peak / 2**20)
    spread = max(errors[1]) / statistics.median(errors[1])
    return [
        Verdict("error, burgers", "", *errors, ratio(*errors), spread),
        Verdict("peak memory, burgers", "MiB", *peaks, ratio(*peaks), LARGER),
    ]


def ratio(here: list[float], against: list[float]) -> float:
    """Of the medians."""
    return statistics.median(here) / statistics.median(against)


def table(verdicts: list[Verdict]) -> Table:
    made = Table("", "", "here", "against", "ratio", "at most", "")
    for v in verdicts:
        shown = [spread(values) for values in (v.here, v.against)]
        made.add_row(v.what, v.unit, *shown, f"{v.found:.3f}", f"{v.limit:.3g}", "met" if v.met else "short")
    return made


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    if not values:
        return ""
    return rf"{statistics.median(values):.3g} \[{min(values):.3g}, {max(values):.3g}]"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, required=True, help="the other checkout")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS, metavar="PROBLEM")
    parser.add_argument("--steps", type=int, default=200, help="of a run that is timed")
    parser.add_argument("--repetitions", type=int, default=4, help="of every run that is timed, a seed each")
    parser.add_argument("--seeds", type=int, default=5, help="of the default runs")
    parser.add_argument("--quick", action="store_true", help="one problem, two repetitions, two seeds, fewer steps")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args(arguments)
    if args.quick:
        args.problems, args.steps, args.repetitions, args.seeds = args.problems[:1], 60, 2, 2
    with tempfile.TemporaryDirectory() as name:
        sides = (Side(ROOT.resolve(), Path(name) / "here"), Side(args.against.resolve(), Path(name) / "against"))
        verdicts = [starts(sides, 3 * args.repetitions), imports(sides[0], 3 * args.repetitions)]
        checkpoints = {p: pretrained(sides[1], p) for p in dict.fromkeys([*args.problems, "burgers"])}
        for problem in args.problems:
            verdicts.append(step_times(sides, problem, checkpoints[problem], args.steps, args.repetitions))
        verdicts += defaults(sides, checkpoints["burgers"], args.seeds)
    Console(width=120).print(table(verdicts))
    if args.json:
        args.json.write_text(json.dumps([{**v._asdict(), "met": v.met} for v in verdicts], indent=2) + "\n")
    short = [v.what for v in verdicts if not v.met]
    print(f"short: {', '.join(short)}" if short else "every limit kept")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())

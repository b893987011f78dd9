"""A rank that follows the gradient against fixed ones: the error on eight problems after ten seconds.

Everybody starts from the same networks and is run and timed as in the race (``racing/running.py``): default settings,
one thread, CPU seconds. Only ``lora.rank`` differs.

    python benchmarks/adaptive_rank.py [--cases burgers heat] [--seeds 0] [--report]

Runs what is missing and then reports to ``docs/results/adaptive_rank.md``. Every finished run is a file under
``--runs``, so the command can be interrupted and repeated. Exits with 1 where the adaptive rank ends more than 1.5
times above the best fixed one, in the median over seeds, and with 2 when it does nowhere but runs are missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from racing.cases import CASES
from racing.contenders import Contender
from racing.plan import Job, finished
from racing.running import enter, race

from pinn_odelora.training.allocator import keep_freed_memory
from pinn_odelora.training.files import write_json

ROOT = Path(__file__).parent.parent
PROBLEMS = ("burgers", "heat", "convection", "reaction", "allen_cahn", "helmholtz", "poisson", "kovasznay")
ADAPTIVE = "adaptive"
RANKS = (ADAPTIVE, "4", "8", "2", "16", "1")
SEEDS, SECONDS, ALLOWED = (0, 1, 2), 10.0, 1.5


def contender(rank: str) -> Contender:
    return Contender(f"rank_{rank}", (f"lora.rank={rank}",))


def run(job: Job, folder: Path, cache: Path | None) -> dict[str, Any]:
    """The run, made if it is not there; ``ranks`` are those of the layers at its end."""
    file = folder / job.file
    if (there := finished(file)) is not None:
        return there
    entry = enter(job.case, job.contender, job.seed, cache)
    made = race(entry, job.seconds)
    ranks = {name: layer.rank for name, layer in entry.module.layers.items()}
    found = {"case": job.case.name, "rank": job.contender.name, "seed": job.seed, "ranks": ranks, **made}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    print(f"{job.file[:-5]}: {made['marks'][-1]['rel_l2']:.2e}, ranks {[*ranks.values()]}", flush=True)
    return found


def errors(runs: list[dict[str, Any]]) -> list[float]:
    return [run["marks"][-1]["rel_l2"] for run in runs]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(PROBLEMS), choices=PROBLEMS, metavar="CASE")
    parser.add_argument("--ranks", nargs="+", default=list(RANKS), choices=RANKS, metavar="RANK")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/adaptive_rank", help="folder of the finished runs")
    parser.add_argument("--results", type=Path, help="file of the report")
    parser.add_argument("--cache", type=Path, help="folder of the pretrained networks; the user's cache if not given")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    jobs = [
        Job(CASES[case], contender(rank), seed, args.seconds)
        for seed in args.seeds
        for case in args.cases
        for rank in args.ranks
    ]
    for job in jobs:
        run(job, args.runs, args.cache)
    return 0


if __name__ == "__main__":
    sys.exit(main())

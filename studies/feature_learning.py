"""Stable feature learning: what a step changes in features and outputs, against the width of the network.

For ODELoRA, LoRA, LoRA+, Adam-LoRA and Muon in the standard and the mean-field parametrisation, with one step size for
all widths: exponents in the width with 95 % intervals beside those that counting predicts
(``features/predictions.py``), after 1, 10 and 100 steps and at equal flow time, and how the best step size moves.

    python studies/feature_learning.py [--quick] [--results FOLDER] [--report]

writes the raw figures, a page with verdicts and a figure to ``docs/results/theory``; with ``--quick``, four widths
and fewer steps in less than two minutes, to ``runs/feature_learning``. ``--report`` runs nothing and writes the page
again. What the verdicts are, the exit code does not say: either outcome is a result.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from features.plan import (
    FULL,
    QUICK,
    Form,
    Row,
    best_steps,
    flow_times,
    small_steps,
    start_sizes,
    sweeps,
    working_steps,
)
from features.report import RAW, Results, write
from rich.console import Console
from rich.table import Table

from pinn_odelora.runs.allocator import keep_freed_memory

ROOT = Path(__file__).parent.parent


def measured(form: Form) -> list[Row]:
    """All rows; says after each part how long it took."""
    rows: list[Row] = []
    parts = {
        "small steps": lambda: chain(small_steps(form), start_sizes(form)),
        "flow times": lambda: flow_times(form),
        "step sizes": lambda: sweeps(form),
        "steps of the best size": lambda: working_steps(form, best_steps(rows)),
    }
    for name, part in parts.items():
        before, start = len(rows), time.process_time()
        rows.extend(part())
        print(f"{name}: {len(rows) - before} rows in {time.process_time() - start:.0f} CPU seconds", flush=True)
    return rows


def save(rows: list[Row], seconds: float, file: Path) -> None:
    """Columns and rows, to four digits; what is not finite as null."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    short = lambda x: (float(f"{x:.4g}") if abs(x) < float("inf") else None) if isinstance(x, float) else x
    lines = ",\n".join(json.dumps([short(row.get(column)) for column in columns]) for row in rows)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    head = json.dumps({"seconds": round(seconds), "versions": versions, "columns": columns})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'{head[:-1]}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")


def load(file: Path) -> tuple[list[Row], float, str]:
    kept = json.loads(file.read_text(encoding="utf-8"))
    rows = [dict(zip(kept["columns"], row, strict=True)) for row in kept["rows"]]
    for row in rows:
        row |= {key: float("nan") for key in ("features", "outputs") if row[key] is None}
        row |= {key: float("inf") for key in ("loss", "worst") if row[key] is None}
    return rows, kept["seconds"], kept["versions"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four widths and fewer steps, under two minutes")
    parser.add_argument("--results", type=Path, help="folder of page, figure and raw figures")
    parser.add_argument("--report", action="store_true", help="run nothing, write the page again")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    form = QUICK if args.quick else FULL
    folder = args.results or ROOT / ("runs/feature_learning" if args.quick else "docs/results/theory")
    if not args.report:
        start = time.process_time()
        save(measured(form), time.process_time() - start, folder / RAW)
    rows, seconds, versions = load(folder / RAW)
    results = Results(rows)
    write(results, form, "python studies/feature_learning.py" + " --quick" * args.quick, seconds, versions, folder)
    table = Table("claim", "conditions", "found", "verdict")
    for claim in results.claims:
        table.add_row(*claim)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Finished runs side by side: the geometric mean over seeds and its spread, for each problem and method."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pinn_odelora.errors import InputError
from pinn_odelora.training.files import SUMMARY

COLUMNS = (
    "problem",
    "method",
    "integrator",
    "runs",
    "diverged",
    "rel_l2_before",
    "rel_l2",
    "spread",
    "loss_rises",
    "largest_rise",
    "gradient_evals",
    "seconds",
)


def summaries(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The summaries of all finished runs in or below the folders.

    Raises:
        InputError: for a folder without a finished run.
    """
    found = []
    for folder in map(Path, folders):
        files = sorted(folder.rglob(SUMMARY))
        if not files:
            raise InputError(f"{folder} holds no finished run: there is no {SUMMARY} in it or below it.")
        found += [json.loads(file.read_text()) for file in files]
    return found


def compare(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each (problem, method, integrator), in the order of ``COLUMNS``.

    ``rel_l2`` is the geometric mean over the runs that have one, ``spread`` the factor exp(standard deviation of its
    logarithm): an error is rel_l2 ×/÷ spread. A diverged run is counted and its error kept.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["problem"], result["method"], result["integrator"] or "-"), []).append(result)
    return [_row(key, runs) for key, runs in sorted(groups.items())]


def _row(key: tuple[str, str, str], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    logs = [math.log(r["rel_l2"]) for r in runs if r["rel_l2"]]
    average = lambda name: mean(values) if (values := [r[name] for r in runs if r[name] is not None]) else math.nan
    return {
        **dict(zip(COLUMNS[:3], key, strict=True)),
        "runs": len(runs),
        "diverged": sum(r["diverged"] for r in runs),
        "rel_l2_before": average("rel_l2_before"),
        "rel_l2": math.exp(mean(logs)) if logs else math.nan,
        "spread": math.exp(stdev(logs)) if len(logs) > 1 else 1.0,
        **{name: average(name) for name in COLUMNS[8:]},
    }


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)

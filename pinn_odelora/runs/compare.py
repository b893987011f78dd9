"""Finished runs side by side: the geometric mean over seeds and its spread, for runs that differ in nothing else."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pinn_odelora import manifest
from pinn_odelora.errors import InputError
from pinn_odelora.files import write_text
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.plain_files import read_mapping
from pinn_odelora.rules import boolean, null, number, text
from pinn_odelora.runs.configuration import read_config
from pinn_odelora.runs.folder import CONFIG, FAMILY, SUMMARY

COLUMNS = (
    "problem",
    "method",
    "integrator",
    "settings",
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

COMPUTED = ("settings", "runs", "spread")

RULES = {
    **dict.fromkeys(("problem", "method", "integrator"), text | null),
    **dict.fromkeys(("rel_l2_before", "rel_l2"), number(least=0) | null),
    "diverged": boolean,
}
"""What the columns of a run may be that are not just numbers."""

ASIDE = (
    "seed",
    "pretrain.seed",
    "pretrain.cache",
    "output_dir",
    "resume",
    "choices",
    "threads",
    "logger",
    "checkpoint",
    "budget.wall",
)
"""Keys in which runs may differ and still be averaged: seeds, places and names."""


def summaries(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The summaries of all finished runs in or below the folders, families apart, each with its ``settings`` in full.

    Raises:
        InputError: for a folder without a finished run, or a file that is not that of a run.
    """
    found = []
    for folder in map(Path, folders):
        files = sorted(file for file in folder.rglob(SUMMARY) if not file.with_name(FAMILY).exists())
        if not files:
            raise InputError(f"{folder} holds no finished run: there is no {SUMMARY} in it or below it.")
        found += [_summary(file) for file in files]
    return found


def _summary(file: Path) -> dict[str, Any]:
    manifest.check(file.with_name(MANIFEST), CONFIG, SUMMARY)
    try:
        result = read_mapping(file)
        found = {name: result[name] for name in COLUMNS if name not in COMPUTED}
        for name, value in found.items():
            RULES.get(name, number() | null).check(name, value)
        return found | {"settings": settings(file.with_name(CONFIG))}
    except (OSError, ValueError, KeyError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{file} and {CONFIG} beside it are not those of a run ({type(error).__name__}).") from error


def settings(file: Path) -> dict[str, str]:
    """The configuration of a run by full keys, without what is ``ASIDE``."""
    return {key: value for key, value in everything(file).items() if not is_aside(key)}


def everything(file: Path) -> dict[str, str]:
    """The configuration of a run by full keys."""
    return dict(leaves(OmegaConf.to_container(read_config(file))))


def is_aside(key: str) -> bool:
    """Whether runs may differ in a key and still be averaged."""
    return any(f"{key}.".startswith(f"{k}.") for k in ASIDE)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values of a nested dictionary as text, by full keys."""
    if not isinstance(node, dict):
        yield prefix, str(node)
        return
    for name, inner in node.items():
        yield from leaves(inner, f"{prefix}.{name}" if prefix else str(name))


def compare(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for runs that differ in their seeds only, in the order of ``COLUMNS``; ``settings`` are those that
    distinguish a row from the others of its problem, method and integrator.

    ``rel_l2`` is the geometric mean over the runs that have one, ``spread`` the factor exp(standard deviation of its
    logarithm): an error is rel_l2 ×/÷ spread. A diverged run is counted and its error kept. What no run of a row has is
    None.
    """
    families: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        families.setdefault((result["problem"], result["method"], result["integrator"] or "-"), []).append(result)
    return [
        _row((*key, settings), runs) for key, family in sorted(families.items()) for settings, runs in _alike(family)
    ]


def _alike(family: Sequence[dict[str, Any]]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """Runs of equal settings, and what distinguishes them from the rest of the family."""
    settings = [run.get("settings", {}) for run in family]
    keys = dict.fromkeys(key for chosen in settings for key in chosen)
    differing = [key for key in keys if len({chosen.get(key) for chosen in settings}) > 1]
    groups: dict[str, list[dict[str, Any]]] = {}
    for run, chosen in zip(family, settings, strict=True):
        groups.setdefault(", ".join(f"{key}={chosen.get(key)}" for key in differing) or "-", []).append(run)
    return groups.items()


def _row(key: tuple[str, ...], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    logs = [math.log(r["rel_l2"]) for r in runs if r["rel_l2"]]
    average = lambda name: mean(values) if (values := [r[name] for r in runs if r[name] is not None]) else None
    return {
        **dict(zip(COLUMNS[:4], key, strict=True)),
        "runs": len(runs),
        "diverged": sum(r["diverged"] for r in runs),
        "rel_l2_before": average("rel_l2_before"),
        "rel_l2": math.exp(mean(logs)) if logs else None,
        "spread": math.exp(stdev(logs)) if len(logs) > 1 else 1.0 if logs else None,
        **{name: average(name) for name in COLUMNS[9:]},
    }


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())

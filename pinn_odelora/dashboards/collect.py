"""What a page shows of a run, read from its folder or from the result of a call in Python.

A run is known by its settings, its summary and its history; its solution is only loaded when a map of it is drawn. Runs
that have not ended are shown as far as they are. What cannot be read is left out, with a sentence for each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from statistics import median
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

import pinn_odelora
from pinn_odelora import manifest
from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.errors import InputError
from pinn_odelora.loop import Row
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.plain_files import read_mapping
from pinn_odelora.result import Result
from pinn_odelora.runs.compare import everything, is_aside, leaves
from pinn_odelora.runs.folder import CONFIG, FAMILY, HISTORY, SUMMARY
from pinn_odelora.runs.history import read_history
from pinn_odelora.runs.save import described

SIZES = ("integrator.h", "method.lr")
"""The settings that are a step size; an integrator's comes first."""
LINEARISED = {"h": "integrator/h", "gradient_evals": "cost/gradient_evals", "seconds": "cost/seconds"}
"""The columns of a linearised model, and what they are called elsewhere."""


@dataclass(frozen=True)
class Shown:
    """A run as a page shows it.

    Attributes:
        name: by which it is told from the others.
        about: ``problem``, ``method``, ``integrator`` and ``seed``.
        settings: by full key, as text.
        summary: the names of ``summary.json``, as far as there are any.
        rows: its history.
        finished: whether it came to its end.
        solution: loads what it solved.
    """

    name: str
    about: Mapping[str, Any]
    settings: Mapping[str, str]
    summary: Mapping[str, Any]
    rows: Sequence[Row]
    finished: bool
    solution: Callable[[], AdaptedSolution]

    def value(self, name: str) -> float | None:
        """A number of the summary, else of the last row where it has another name there; None for none."""
        last = self.rows[-1] if self.rows else {}
        found = self.summary.get(name, last.get(IN_ROWS.get(name, name)))
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None

    @property
    def state(self) -> str:
        """``finished``, ``diverged`` or ``unfinished``."""
        if not self.finished:
            return "unfinished"
        return "diverged" if self.summary.get("diverged") or self.summary.get("failure") else "finished"

    def step_size(self) -> tuple[float | None, bool]:
        """The step size or learning rate that was set, else the median of those taken, and whether it was set."""
        own = SIZES if self.about["integrator"] else SIZES[1:]
        for key in own:
            if (size := _number(self.settings.get(key))) is not None:
                return size, True
        taken = [h for row in self.rows if 0 < (h := row.get("integrator/h", 0)) < math.inf]
        return (median(taken) if taken else None), False


IN_ROWS = {
    "rel_l2": "error/rel_l2",
    "heldout_loss": "stability/heldout_loss",
    "largest_rise": "stability/largest_rise",
    "gradient_evals": "cost/gradient_evals",
    "seconds": "cost/seconds",
}


def collected(
    what: Iterable[Result | str | os.PathLike[str]], trust: Sequence[str] = ()
) -> tuple[list[Shown], list[str]]:
    """All runs, and a sentence for each that had to be left out.

    Args:
        what: results, folders of runs, and folders above such.
        trust: modules that runs in folders may call, see ``load``.

    Raises:
        InputError: if there is no run at all, or something is neither a result nor a folder.
    """
    runs: list[Shown] = []
    said: list[str] = []
    for one in what:
        if isinstance(one, Result):
            runs.append(of_result(one, len(runs)))
        elif isinstance(one, str | os.PathLike):
            _below(Path(one), runs, said, trust)
        else:
            raise InputError(f"A page shows results and folders of runs, but {type(one).__name__} is neither.")
    if not runs:
        raise InputError(" ".join(["There is no run to show.", *said]))
    return _named(runs), said


def of_result(result: Result, number: int) -> Shown:
    """A run that was made in Python."""
    run = result.adaptation
    parts = {
        "problem": described(run.problem),
        "method": dict(run.method.settings),
        "integrator": described(run.method.integrator) if run.method.integrator else {},
        **{name: vars(getattr(run, name)) for name in ("lora", "points", "weighting", "budget")},
    }
    summary = result.summary
    about = {name: summary[name] for name in ("problem", "method", "integrator", "seed")}
    return Shown(
        f"{number + 1} {about['problem']} {about['method']}",
        about,
        dict(leaves(parts)),
        summary,
        result.history,
        True,
        lambda: result.solution,
    )


def of_folder(folder: Path, trust: Sequence[str] = ()) -> Shown:
    """A run of the command line, or one that ``result.save`` left.

    Raises:
        InputError: if a file in it is damaged.
    """
    manifest.check(folder / MANIFEST, CONFIG, SUMMARY, HISTORY)
    try:
        own = everything(folder / CONFIG)
        summary = read_mapping(folder / SUMMARY) if (folder / SUMMARY).exists() else {}
        names = ("problem", "method", "integrator")
        about = {name: summary.get(name, _plain(own.get(f"choices.{name}"))) for name in names}
        if not about["problem"] or not about["method"]:
            raise KeyError("choices")
        about["seed"] = int(own.get("seed", 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{folder} holds a damaged run ({type(error).__name__}).") from error
    rows = read_history(folder / HISTORY) if (folder / HISTORY).exists() else []
    return Shown(
        str(folder),
        about,
        {key: value for key, value in own.items() if not is_aside(key)},
        summary,
        [{LINEARISED.get(name, name): x for name, x in row.items()} for row in rows],
        bool(summary),
        lambda: pinn_odelora.load(folder, trust=trust),
    )


def _below(folder: Path, runs: list[Shown], said: list[str], trust: Sequence[str]) -> None:
    """Add the runs in and below a folder."""
    if not folder.is_dir():
        said.append(f"{folder} is no folder.")
        return
    found = False
    for place in _places(folder):
        found = True
        if (place / FAMILY).exists():
            said.append(
                f"{place} holds a family and is left out: python -m pinn_odelora family {quote(str(place))} --page."
            )
            continue
        try:
            runs.append(of_folder(place, trust))
        except InputError as refused:
            said.append(f"Left out: {refused}")
    if not found:
        said.append(f"{folder} holds no run: there is no {CONFIG} in it or below it.")


def _places(folder: Path) -> Iterator[Path]:
    return (file.parent for file in sorted(folder.rglob(CONFIG)) if "wandb" not in file.relative_to(folder).parts)


def _named(runs: Sequence[Shown]) -> list[Shown]:
    """Names of folders without what all of them are in."""
    folders = [run.name for run in runs if os.path.isdir(run.name)]
    try:
        shared = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in folders])
    except ValueError:  # no folder, or several drives
        return list(runs)
    return [_renamed(run, os.path.relpath(run.name, shared)) if run.name in folders else run for run in runs]


def _renamed(run: Shown, name: str) -> Shown:
    return Shown(**{**vars(run), "name": name})


def _number(text: str | None) -> float | None:
    try:
        found = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return found if math.isfinite(found) and found > 0 else None


def _plain(text: str | None) -> str | None:
    return None if text in (None, "None") else text

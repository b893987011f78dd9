"""Writing a run: settings, network before, history, and what came of it, as ``train.py`` leaves it in a folder."""

from __future__ import annotations

import dataclasses
import inspect
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import pinn_odelora
from pinn_odelora import manifest
from pinn_odelora.checkpoints import save_tensors
from pinn_odelora.errors import InputError
from pinn_odelora.families.settings import Stations
from pinn_odelora.files import write_by, write_json, write_text
from pinn_odelora.formulation import Term
from pinn_odelora.integrators import Tableau, tableau
from pinn_odelora.lowrank.adapter_files import merged_state_dict
from pinn_odelora.manifest import MANIFEST
from pinn_odelora.metrics import known
from pinn_odelora.naming import integrator_name, snake_case
from pinn_odelora.nets.scaled import inside
from pinn_odelora.ntk.settings import Regime
from pinn_odelora.runs import provenance
from pinn_odelora.runs.alone import alone
from pinn_odelora.runs.ended import EndedRun, Outcome
from pinn_odelora.runs.folder import (
    ADAPTER,
    BASE,
    COEFFICIENTS,
    CONFIG,
    HISTORY,
    OUTCOME,
    PROVENANCE,
    START,
    SUMMARY,
    UNKNOWN_FIELDS,
    WEIGHTS,
)
from pinn_odelora.runs.history import History
from pinn_odelora.runs.location import check_free, check_there
from pinn_odelora.runs.pointwise import equation_residual, measured_points

DATA = "data.npz"
"""Measured values that were given as arrays."""
OTHERS = {
    "threads": "auto",
    "output_dir": None,
    "resume": None,
    "trust": None,
    "checkpoint": {"every": 100},
    "family": {},
    "stations": dataclasses.asdict(Stations()),
    "trainer": {"accelerator": "auto", "devices": 1},
    "logger": {
        "kind": "csv",
        "project": "pinn_odelora",
        "group": None,
        "name": None,
        "job_type": "adapt",
        "tags": [],
    },
}
"""Keys of the command line that a run in Python does not have."""


def save(result: Outcome, folder: Path) -> None:
    """Write a run that was made in Python.

    Raises:
        InputError: if the folder holds a run, another process writes into it, or it cannot be written.
    """
    check_free(folder, typed=False)
    with alone(folder, new=True, typed=False):
        _save(result, folder)


def _save(result: Outcome, folder: Path) -> None:
    adaptation = result.adaptation
    write_text(folder / CONFIG, yaml.safe_dump(configuration(adaptation, folder), sort_keys=False, allow_unicode=True))
    data = adaptation.data if isinstance(adaptation.data, str | Path) else None
    provenance.record(folder, adaptation.problem, adaptation.net, [data])
    save_tensors(adaptation.before, folder / BASE, {"problem": repr(adaptation.problem)})
    unknown = dict.fromkeys(("pretrain_rel_l2", "pretrain_loss", "pretrain_seconds"))
    facts = {**unknown, "pretrain_origin": "given", "rel_l2_before": known(result.rel_l2_before)}
    write_json(folder / START, facts)
    manifest.write(folder / MANIFEST, (CONFIG, DATA, PROVENANCE, BASE, START))
    history = History(folder / HISTORY)
    for row in result.history:
        history.append(row)
    save_outcome(result, folder, facts)


def save_outcome(
    result: Outcome, folder: Path, facts: dict[str, Any], names: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Weights, coefficients, figures, and the summary, which is returned; and the digests of all of them, last.

    Args:
        facts: what was known before adaptation, for the summary.
        names: of problem, method and integrator, where they have others than those of their classes.
    """
    check_there(folder)
    if result.adaptation.method.has_adapter:
        result.adapter.save(folder / ADAPTER, base=BASE)
    else:
        save_tensors(merged_state_dict(result.net), folder / WEIGHTS)
    if result.coefficients:
        # Without them the solution could not be built again.
        write_json(folder / COEFFICIENTS, {name: x["estimate"] for name, x in result.coefficients.items()})
    if result.unknown_fields:
        save_tensors(result.adaptation.solution.unknown_fields.state_dict(), folder / UNKNOWN_FIELDS)
    save_figures(result, folder)
    start = {name: value for name, value in facts.items() if name != "tracking_id"}
    summary = {**result.summary, **(names or {}), **start, "versions": versions()}
    write_json(folder / SUMMARY, summary)
    manifest.add(folder / MANIFEST, OUTCOME)
    return summary


def save_figures(result: Outcome, folder: Path) -> None:
    """solution.png and history.png, and <field>.png of every unknown field of one or two coordinates."""
    # matplotlib is imported for them alone.
    from pinn_odelora.runs.field_figure import field_figure
    from pinn_odelora.runs.figures import solution_figure
    from pinn_odelora.runs.history_figure import history_figure

    run = result.adaptation
    beside = {"residual": equation_residual(run.system), "measured": measured_points(run.system)}
    solution_figure(run.problem, run.solution, folder / "solution.png", **beside)
    history_figure(result.history, folder / "history.png")
    for name, field in result.unknown_fields.items():
        if len(field.coords) <= 2:
            field_figure(name, field, folder / f"{name}.png")


def versions() -> dict[str, str | None]:
    """Of this package, Python and the libraries that take part; None for one that is not installed."""
    # torch's is of a class of its own, which YAML does not take.
    torchs = str(torch.__version__)
    own = {"pinn_odelora": pinn_odelora.__version__, "python": platform.python_version(), "torch": torchs}
    return own | {name: _version(name) for name in ("lightning", "numpy")}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def configuration(adaptation: EndedRun, folder: Path) -> dict[str, Any]:
    """The settings of a run as the command line's configuration, which repeats it.

    A network or problem whose class cannot be built from plain values has a ``_target_`` all the same; ``load`` then
    asks for the object.
    """
    run = adaptation
    lora = _plain(run.lora) | {"adaptive": _plain(run.adaptive or _adaptive_defaults())}
    unknown = dict.fromkeys(run.unknown, "unknown")
    integrator = run.method.integrator
    return {
        "problem": described(run.problem) | unknown,
        "net": described(inside(run.net)),
        "method": {"_target_": f"pinn_odelora.methods.{run.method.name}", **run.method.settings},
        "integrator": described(integrator)
        if integrator
        else {"_target_": "pinn_odelora.integrators.LinearlyImplicit"},
        "points": _plain(run.points),
        "weighting": _plain(run.weighting),
        "training": _plain(Regime()),
        "lora": lora,
        "budget": _plain(run.budget),
        "log": _plain(run.log),
        "seed": run.seed,
        "precision": run.precision,
        "derivatives": {"engine": run.system.derivatives},
        "data": {"file": _data(run.data, folder), "weight": run.data_weight},
        "pretrain": _pretraining(folder),
        **OTHERS,
        "choices": {
            "problem": snake_case(type(run.problem)),
            "net": snake_case(type(inside(run.net))),
            "method": run.method.name,
            "integrator": integrator_name(integrator) if integrator else None,
        },
    }


def described(thing: object) -> dict[str, Any]:
    """``_target_`` and the plain arguments that an object was made with, as far as its attributes tell them."""
    cls = type(thing)
    fields = [f.name for f in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else _arguments(cls)
    internal = getattr(cls, "internal", ())  # which no configuration sets
    values = {name: getattr(thing, name) for name in fields if hasattr(thing, name) and name not in internal}
    plain = {name: _value(value) for name, value in values.items() if _is_plain(value)}
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **plain}


def _arguments(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "inputs", "outputs")]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(x) for name, x in value.items())
    single = isinstance(value, Tensor) and value.numel() == 1
    return value is None or single or isinstance(value, bool | int | float | str | Tableau)


def _value(value: Any) -> Any:
    if isinstance(value, Tableau):
        name = next((name for name, known in vars(tableau).items() if known is value), None)
        if name is not None:
            return {"_target_": "hydra.utils.get_object", "path": f"pinn_odelora.integrators.tableau.{name}"}
        return {"_target_": "pinn_odelora.integrators.Tableau", **_plain(value)}
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, dict):
        return {name: _value(x) for name, x in value.items()}
    return [_value(x) for x in value] if isinstance(value, list | tuple) else value


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as a dictionary."""
    return {name: _value(value) for name, value in dataclasses.asdict(settings).items()}


def _adaptive_defaults() -> Any:
    from pinn_odelora.selection.rank import AdaptiveRank

    return AdaptiveRank()


def _pretraining(folder: Path) -> dict[str, Any]:
    from pinn_odelora.pretraining.pretrain import Pretraining

    return _plain(Pretraining()) | {
        "checkpoint": str((folder / BASE).absolute()),
        "part": None,
        "source": {},
        "cache": None,
    }


def _data(data: Any, folder: Path) -> str | None:
    """The path of the measurements; arrays are written into the folder."""
    if data is None or isinstance(data, str | Path):
        return None if data is None else str(Path(data).absolute())
    if isinstance(data, Term):
        raise InputError(
            "the measurements were given as a term, which no file can hold; give a file or columns by name."
        )
    columns = {name: np.asarray(values) for name, values in data.items()}
    write_by(folder / DATA, lambda archive: np.savez(archive, **columns))
    return str((folder / DATA).absolute())

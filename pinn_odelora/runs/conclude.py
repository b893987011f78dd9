"""What a run leaves behind when it ends: weights, summary, pictures, tracking, and a last line."""

from __future__ import annotations

import math
import platform
import sys
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

import pinn_odelora
from pinn_odelora import diagnostics as measure
from pinn_odelora.checkpoints import save_network
from pinn_odelora.confidence import Interval
from pinn_odelora.errors import NonFiniteError
from pinn_odelora.files import write_json
from pinn_odelora.lightning import tracking
from pinn_odelora.lightning.module import Adaptation
from pinn_odelora.lowrank.adapter_files import save_adapter
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.runs import figures as report
from pinn_odelora.runs.folder import ADAPTER, BASE, COEFFICIENTS, HISTORY, WEIGHTS
from pinn_odelora.runs.history import History


def save_weights(module: Adaptation, folder: Path) -> None:
    """The result as the user takes it away: an adapter for their network, or the network itself."""
    if module.method.trains == "factors":
        save_adapter(module.solution.net, folder / ADAPTER, base=BASE)
    else:
        save_network(module.solution.net, folder / WEIGHTS, {})


def save_coefficients(module: Adaptation, folder: Path) -> None:
    """What was found for unknown coefficients, without which the solution could not be built again."""
    if module.solution.coefficients:
        found = {name: x.item() for name, x in module.solution.coefficients.items()}
        write_json(folder / COEFFICIENTS, found)


def coefficients(module: Adaptation) -> dict[str, dict[str, float | bool | None]]:
    """Estimates with their 95 % intervals; null where a failed run has none."""
    missing = [math.nan] * 4
    return {
        name: {k: v if math.isfinite(v) else None for k, v in found._asdict().items()} | {"settled": found.settled}
        for name, x in module.solution.coefficients.items()
        for found in [module.intervals.get(name) or Interval(x.item(), *missing)]
    }


def summary(cfg: DictConfig, module: Adaptation, facts: dict[str, Any]) -> dict[str, Any]:
    """What a comparison reads of a run."""
    problem, p = module.yardstick.system.problem, module.progress
    errors = measure.errors(problem, module.solution, measure.FINER * cfg.log.test)
    diverged = module.failure is not None or not p.heldout_loss <= p.first_heldout_loss
    return {
        "problem": cfg.choices.problem,
        "method": cfg.choices.method,
        "integrator": cfg.choices.integrator,
        "linear_algebra": module.linear_algebra,
        "seed": cfg.seed,
        "ranks": {name: x.rank for name, x in module.layers.items() if isinstance(x, LowRankLinear)} or None,
        "rel_l2": errors["error/rel_l2"],
        "max_error": errors["error/max"],
        **({"rel_error": errors["error/rel_l2"]} if isinstance(problem.region, UnitMatrices) else {}),
        **({"coefficients": coefficients(module)} if module.solution.coefficients else {}),
        "loss": p.loss,
        "heldout_loss": p.heldout_loss,
        "loss_rises": p.rises / max(p.step, 1),
        "largest_rise": p.largest_rise,
        "diverged": diverged,
        "stalled": module.stalled,
        "failure": str(module.failure or ""),
        "gradient_evals": p.gradient_evals,
        "steps": p.step,
        "seconds": p.seconds,
        **{k: v for k, v in facts.items() if k != "tracking_id"},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    return {
        "pinn_odelora": pinn_odelora.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "numpy": np.__version__,
    }


def pictures(module: Adaptation, folder: Path) -> dict[str, Path]:
    """solution.png and history.png in the run folder."""
    paths = {name: folder / f"{name}.png" for name in ("solution", "history")}
    report.solution_figure(module.yardstick.system.problem, module.solution, paths["solution"])
    report.history_figure(History(folder / HISTORY).rows, paths["history"])
    return paths


def publish(loggers: list[Logger], module: Adaptation, result: dict[str, Any], images: dict[str, Path]) -> None:
    """Summary, pictures and the final table to every tracker; then end it and say where the run can be seen."""
    for logger in loggers:
        run = logger.experiment
        tracking.log_summary(run, result)
        tracking.log_images(run, images)
        tracking.log_final_table(run, *_points(module))
        line = tracking.sync_line(run)
        tracking.finish(run, failed=module.failure is not None)
        say(f"W&B: {line}")


@torch.no_grad()
def _points(module: Adaptation) -> tuple[list[str], list[list[float]]]:
    """Columns and rows: coordinates, fields, reference values and errors at the first 500 test points.

    Unit matrices are told by the place of their entry: they have as many coordinates as there are points.
    """
    yardstick, problem = module.yardstick, module.yardstick.system.problem
    u = module.solution(yardstick.test)
    ref = u * torch.nan if yardstick.reference is None else yardstick.reference
    places = ("k", "l") if isinstance(problem.region, UnitMatrices) else problem.coords
    names = [*places, *problem.fields]
    names += [f"{field}_{kind}" for kind in ("ref", "error") for field in problem.fields]
    return names, torch.cat([yardstick.test.rows(places), u, ref, u - ref], dim=1)[:500].tolist()


def interrupted(module: Adaptation, loggers: list[Logger], folder: Path) -> None:
    """End an interrupted run: its state is saved; say how to continue."""
    for logger in loggers:
        tracking.finish(logger.experiment)
        say(f"W&B: {tracking.sync_line(logger.experiment)}")
    leave(f"at step {module.progress.step}", folder)


def leave(where: str, folder: Path) -> NoReturn:
    """Say how an interrupted run is continued, and end the program."""
    say(f"Interrupted {where}; continue with: python train.py resume={_near(folder)}")
    raise SystemExit(130)


def last_words(module: Adaptation, result: dict[str, Any], folder: Path) -> None:
    """One line of result, and a failure raised where there was one."""
    say(
        f"{result['problem']}, {result['method']}: {_outcome(result)} in {result['steps']} steps, "
        f"{result['gradient_evals']} gradient evaluations, {result['seconds']:.1f} s; files in {_near(folder)}"
    )
    if module.failure is not None:
        raise NonFiniteError(f"{module.failure} The last good state is kept in {_near(folder)}.")


def _outcome(result: dict[str, Any]) -> str:
    """What was found for unknown coefficients, else how much nearer the reference is."""
    found = result.get("coefficients", {}).items()
    if not found:
        return f"relative L2 {result['rel_l2_before']:.2e} -> {result['rel_l2']:.2e}"
    return ", ".join(
        f"{name} = {x['estimate']:.6g}"
        + ("" if None in x.values() else f" (95 % interval {x['low']:.6g} to {x['high']:.6g}{_ahead(x)})")
        for name, x in found
    )


def _ahead(found: dict[str, Any]) -> str:
    return "" if found["settled"] else f"; not settled, the next step would add {found['ahead']:.1e}: raise the budget"


def _near(folder: Path) -> Path:
    """The folder as one would type it here."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

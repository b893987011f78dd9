"""A finished run as a function: u = load(run); u(x, t)."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from pinn_odelora.checkpoints import load_network, read_state_dict
from pinn_odelora.config.build import network, posed
from pinn_odelora.config.folders import saved
from pinn_odelora.errors import InputError
from pinn_odelora.evaluate import SolutionFunction
from pinn_odelora.formulation import Problem
from pinn_odelora.lowrank.adapter_files import load_adapter
from pinn_odelora.nets import check_network
from pinn_odelora.runs.folder import ADAPTER, BASE, COEFFICIENTS, CONFIG, WEIGHTS


def load(run: str | Path, net: nn.Module | None = None, problem: Problem | None = None) -> SolutionFunction:
    """The adapted solution of a run folder as a function of the coordinates, float64, on the CPU.

    Args:
        run: the folder that ``train.py`` or ``result.save`` left.
        net: a network of the architecture that was adapted, (N, inputs) -> (N, fields); it is not changed. It is built
            from the folder's configuration if absent, which asks for a class that can be imported, with arguments that
            are plain values.
        problem: the equation that was adapted to; it is built from the configuration if absent. Values that the run
            found for unknown parameters replace those that it has.

    Raises:
        InputError: if the folder holds no run, an unfinished one, or one of an earlier version; or network or problem
            cannot be built from its configuration, or do not fit its weights.
    """
    folder = Path(run)
    cfg = saved(folder)
    if not (folder / ADAPTER).exists() and not (folder / WEIGHTS).exists():
        raise InputError(f"{folder} holds no finished run; continue it with: python train.py resume={folder}")
    problem, net = base(folder, cfg, net, problem)
    if (folder / ADAPTER).exists():
        load_adapter(net, folder / ADAPTER)
    else:
        load_network(net, folder / WEIGHTS)
    return SolutionFunction(problem, net)


def base(folder: Path, cfg: DictConfig, net: nn.Module | None, problem: Problem | None) -> tuple[Problem, nn.Module]:
    """The problem of a run and the network as it was before adaptation; what is given is not built."""
    state = folder / BASE
    read_state_dict(state)  # so that a damaged file is not taken for a network that does not fit
    if problem is None:
        with _building("problem", folder):
            problem, source, _ = posed(cfg)
    else:
        source = problem.at_source()
    problem = with_coefficients(problem, folder)
    if net is not None:
        net = check_network(copy.deepcopy(net).cpu(), problem)
        load_network(net, state)
        return problem, net
    with _building("net", folder):
        net = network(cfg, problem, source)
        load_network(net, state)
    return problem, net


@contextmanager
def _building(what: str, folder: Path) -> Iterator[None]:
    """Ask for the object where the configuration does not describe one that can be built here."""
    try:
        yield
    except Exception as error:  # The constructor of somebody else can fail in any way.
        said = str(error).partition("\n")[0].rstrip(".:") or type(error).__name__
        raise InputError(
            f"{folder / CONFIG} does not describe a {what} that can be built here ({said}); give yours: "
            f"load({str(folder)!r}, {what}=...)."
        ) from error


def with_coefficients(problem: Problem, folder: Path) -> Problem:
    """The problem with what the run found for its unknown coefficients."""
    file = folder / COEFFICIENTS
    if not file.exists():
        return problem
    try:
        return dataclasses.replace(problem, **json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}).") from None

"""A finished run as a function:  u = load(run);  u(x, t)."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.checkpoints import load_network
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.lowrank.adapter_files import load_adapter
from pinn_odelora.runs.folder import ADAPTER, BASE, COEFFICIENTS, CONFIG, WEIGHTS

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")


def load(run: str | Path, net: nn.Module | None = None, problem: Problem | None = None) -> AdaptedSolution:
    """The adapted solution of a run folder, on the CPU in double precision.

    Args:
        run: the folder.
        net: a network of the structure that was adapted, where ``config.yaml`` in the folder cannot build it, as for
            one made in Python. Its weights do not matter; it is copied, not changed.
        problem: the problem, where ``config.yaml`` cannot build it. Coefficients that the run has found take the place
            of its values.

    Raises:
        InputError: if the folder holds no run, the run is not finished, network or problem must be given, or the
            network is not of the structure that was adapted.
    """
    folder = Path(run)
    problem, net = base(folder, net, problem)
    if (folder / ADAPTER).exists():
        load_adapter(net, folder / ADAPTER)
    elif (folder / WEIGHTS).exists():
        load_network(net, folder / WEIGHTS)
    else:
        raise InputError(f"{folder} holds no finished run; continue it with: python train.py resume={folder}")
    return AdaptedSolution(problem, net)


def base(folder: Path, net: nn.Module | None = None, problem: Problem | None = None) -> tuple[Problem, nn.Module]:
    """The problem of a run and the user's network as it was before adaptation; for the arguments see ``load``."""
    if not any((folder / name).is_file() for name in (CONFIG, BASE)):
        raise InputError(f"{folder} holds no run: there is no {CONFIG} in it.")
    problem = with_coefficients(problem or _described(folder, "problem", _posed), folder)
    net = copy.deepcopy(net) if net is not None else _described(folder, "net", lambda cfg: _network(cfg, problem))
    net = net.cpu().double()
    load_network(net, folder / BASE)
    return problem, net


def with_coefficients(problem: Problem, folder: Path) -> Problem:
    """The problem with the values that the run found for its unknown coefficients."""
    file = folder / COEFFICIENTS
    if not file.exists():
        return problem
    try:
        return dataclasses.replace(problem, **json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged, or belongs to another problem ({error}).") from None


def _described(folder: Path, part: str, build: Callable[[DictConfig], T]) -> T:
    """What ``config.yaml`` describes under the key ``part``."""
    from hydra.errors import InstantiationException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file = folder / CONFIG
    try:
        cfg = OmegaConf.load(file)
        if OmegaConf.select(cfg, f"{part}._target_") is None:
            raise ImportError("it was made in Python")
        return build(cfg)
    except OSError as error:
        reason = f"{file} cannot be read ({error.strerror})"
    except (YAMLError, OmegaConfBaseException) as error:
        reason = f"{file} is damaged or not that of a run ({type(error).__name__})"
    except (ImportError, InstantiationException) as error:
        said = str(error.__cause__ or error).partition("\n")[0].rstrip(".:")
        reason = f"{file} cannot build the {'network' if part == 'net' else part} here ({said})"
    raise InputError(f"{reason}; give it: load(run, {part}=...).")


# What reads the configuration is imported when it is needed: a caller who gives network and problem needs no Hydra.


def _posed(cfg: DictConfig) -> Problem:
    from pinn_odelora.config.build import posed

    return posed(cfg)[0]


def _network(cfg: DictConfig, problem: Problem) -> nn.Module:
    from pinn_odelora.config.build import network, posed

    return network(cfg, problem, posed(cfg)[1])

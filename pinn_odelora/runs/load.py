"""A finished run as a function: u = load(run); u(x, t)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from hydra.errors import InstantiationException
from numpy.typing import ArrayLike
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from pinn_odelora.checkpoints import load_network
from pinn_odelora.config.build import network, posed
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.lowrank.adapter_files import load_adapter
from pinn_odelora.points import Points
from pinn_odelora.runs.folder import ADAPTER, BASE, COEFFICIENTS, CONFIG, WEIGHTS
from pinn_odelora.system import Solution


class AdaptedSolution:
    """The solution of a run as a function of its coordinates, in the order of ``problem.coords``.

    Tensors give a tensor, through which gradients flow; numbers and arrays give an array. Coordinates are broadcast
    against each other; the result has their common shape, with a last axis of fields when there are several.
    """

    def __init__(self, problem: Problem, net: nn.Module) -> None:
        self.problem = problem
        self.solution = Solution(problem, net)

    def __call__(self, *coordinates: ArrayLike | Tensor) -> np.ndarray | Tensor:
        if len(coordinates) != len(self.problem.coords):
            raise InputError(
                f"the solution is a function of {', '.join(self.problem.coords)}, but {len(coordinates)} were given."
            )
        tensors = any(isinstance(c, Tensor) for c in coordinates)
        weight = next(self.solution.parameters())
        as_tensor = lambda c: c if isinstance(c, Tensor) else torch.as_tensor(c, dtype=weight.dtype)
        columns = torch.broadcast_tensors(*map(as_tensor, coordinates))
        points = Points(
            {name: c.reshape(-1, 1).to(weight) for name, c in zip(self.problem.coords, columns, strict=True)}
        )
        values = self.solution(points)
        shape = columns[0].shape if len(self.problem.fields) == 1 else (*columns[0].shape, len(self.problem.fields))
        values = values.reshape(shape)
        return values if tensors else values.detach().numpy()


def load(run: str | Path) -> AdaptedSolution:
    """The adapted solution of a run folder, on the CPU.

    Raises:
        InputError: if the folder holds no run, or the run is not finished.
    """
    folder = Path(run)
    problem, net = base(folder)
    if (folder / ADAPTER).exists():
        load_adapter(net, folder / ADAPTER)
    elif (folder / WEIGHTS).exists():
        load_network(net, folder / WEIGHTS)
    else:
        raise InputError(f"{folder} holds no finished run; continue it with: python train.py resume={folder}")
    return AdaptedSolution(problem, net)


def base(folder: Path) -> tuple[Problem, nn.Module]:
    """The problem of a run and the user's network as it was before adaptation."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds no run: there is no {CONFIG} in it.")
    try:
        cfg = OmegaConf.load(folder / CONFIG)
        problem = with_coefficients(posed(cfg)[0], folder)
        net = network(cfg, problem)
    except (YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{folder / CONFIG} is damaged or not that of a run ({type(error).__name__}).") from error
    except (ImportError, InstantiationException) as error:
        said = str(error.__cause__ or error).partition("\n")[0].rstrip(".:")
        raise InputError(f"{folder / CONFIG} names a problem or network that cannot be built here: {said}.") from error
    load_network(net, folder / BASE)
    return problem, net


def with_coefficients(problem: Problem, folder: Path) -> Problem:
    """The problem with what the run found for its unknown coefficients."""
    file = folder / COEFFICIENTS
    if not file.exists():
        return problem
    try:
        return dataclasses.replace(problem, **json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}).") from None

"""From a composed configuration to objects: the only place besides the command line that reads one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.geometry import sobol
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.start import named
from pinn_odelora.lowrank.targets import adapt, linear_targets
from pinn_odelora.measurements import read_measurements
from pinn_odelora.optim.methods import Method
from pinn_odelora.problem import Problem, Term
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.training.budget import Budget
from pinn_odelora.training.data import PointStream
from pinn_odelora.training.measure import test_points
from pinn_odelora.training.module import Adaptation, Row, Yardstick
from pinn_odelora.training.pretrain import Pretraining

DTYPES = {32: torch.float32, 64: torch.float64}


class Experiment(NamedTuple):
    """What a run is about, before anything is trained."""

    problem: Problem
    source: Problem
    net: nn.Module
    method: Method
    measurements: Mapping[str, Term]


def experiment(cfg: DictConfig) -> Experiment:
    """Build and rehearse everything that a configuration names; whatever can be refused is refused here.

    Raises:
        InputError: one sentence on what does not fit.
    """
    problem: Problem = instantiate(cfg.problem, _convert_="all")
    source = problem.at_source(**OmegaConf.to_container(cfg.pretrain.source))
    built = Experiment(problem, source, network(cfg, problem), method(cfg), measurements(cfg, problem))
    rehearse(cfg, built)
    return built


def network(cfg: DictConfig, problem: Problem) -> nn.Module:
    """The network in float64; ``inputs``, ``outputs`` and ``generator`` are given to a class that asks for them."""
    offered = {
        "inputs": problem.inputs,
        "outputs": len(problem.fields),
        "generator": torch.Generator().manual_seed(cfg.pretrain.seed),
    }
    asked = inspect.signature(get_class(cfg.net._target_)).parameters
    settings = OmegaConf.to_container(cfg.net, resolve=True)
    net = instantiate({**{k: v for k, v in offered.items() if k in asked}, **settings}).double()
    x = sobol(3, problem.inputs, seed=0)
    try:
        shape = tuple(net(x).shape)
    except RuntimeError as error:
        raise InputError(f"net cannot be called with inputs of shape {tuple(x.shape)}: {error}.") from None
    if shape != (3, len(problem.fields)):
        raise InputError(
            f"net maps inputs (3, {problem.inputs}) to {shape}, but the problem needs (3, {len(problem.fields)}): "
            f"one column for each of {', '.join(problem.fields)}."
        )
    return net


def method(cfg: DictConfig) -> Method:
    """The method, with the integrator if it takes one."""
    function = instantiate(cfg.method, _partial_=True)
    if "integrator" in inspect.signature(function.func).parameters:
        return function(integrator=instantiate(cfg.integrator))
    return function()


def measurements(cfg: DictConfig, problem: Problem) -> dict[str, Term]:
    """The data term, when there is a file of measurements."""
    if cfg.data.file is None:
        return {}
    term = read_measurements(Path(cfg.data.file), problem.coords, problem.fields)
    return {"data": term._replace(weight=float(cfg.data.weight))}


def layers(cfg: DictConfig, net: nn.Module, trains: str) -> dict[str, nn.Linear | LowRankLinear]:
    """The layers that are adapted, with factors put beside them when the method trains factors."""
    patterns = OmegaConf.to_object(cfg.lora.targets) if OmegaConf.is_list(cfg.lora.targets) else cfg.lora.targets
    targets = linear_targets(net, patterns)
    if trains == "weights":
        return targets
    start = named(cfg.lora.start, cfg.lora.start_size)
    generator = torch.Generator().manual_seed(cfg.seed)
    return adapt(net, targets, cfg.lora.rank, cfg.lora.scale, start, generator)


def adaptation(cfg: DictConfig, built: Experiment, record: Any, sizes: Mapping[str, int]) -> Adaptation:
    """The module that adapts ``built.net``, which is changed: factors are put in, or all weights are trained."""
    adapted = layers(cfg, built.net, built.method.trains)
    dtype = DTYPES[cfg.precision]
    system = System(built.problem, Solution(built.problem, built.net.to(dtype)), built.measurements)
    test = test_points(built.problem, sizes["test"])
    held = draw_points(system.terms, sizes["heldout"], max(sizes["heldout"] // 5, 1), seed=998)
    yardstick = Yardstick(system, test, held)
    budget = Budget(**OmegaConf.to_container(cfg.budget))
    return Adaptation(system, adapted, built.method, budget, yardstick, record, every=cfg.log.every)


def stream(cfg: DictConfig, terms: Mapping[str, Term]) -> PointStream:
    """The points of the run."""
    p = cfg.points
    return PointStream(terms, p.interior, p.boundary, cfg.seed, p.fresh, DTYPES[cfg.precision])


def rehearse(cfg: DictConfig, built: Experiment) -> None:
    """One step on a copy with a few points: a rank, pattern or start that does not fit is refused before training."""
    copied = built._replace(net=copy.deepcopy(built.net))

    def ignore(row: Row) -> None:
        del row

    module = adaptation(cfg, copied, ignore, {"test": 8, "heldout": 8})
    points = draw_points(module.evaluator.system.terms, 8, 8, seed=0)
    optimizer = module.configure_optimizers()
    module.evaluator.begin(_Few(0, {name: p.to(DTYPES[cfg.precision]) for name, p in points.items()}))
    try:
        optimizer.step(module.evaluator.closure)
    except NonFiniteError:
        # An untrained network may overflow where the pretrained one does not.
        return


class _Few(NamedTuple):
    number: int
    points: dict


def pretraining(cfg: DictConfig) -> Pretraining:
    """The settings of pretraining."""
    names = inspect.signature(Pretraining).parameters
    return Pretraining(**{name: cfg.pretrain[name] for name in names})

"""From a composed configuration to the objects it names. Lightning is not needed for it, so a refusal is quick."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pinn_odelora.checkpoints import load_network
from pinn_odelora.config import ADAPTIVE, AUTO, UNKNOWN, has_pretrained
from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import sobol
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.start import named
from pinn_odelora.lowrank.targets import adapt, linear_layers, linear_targets, thaw
from pinn_odelora.measurements import read_measurements
from pinn_odelora.objective import Draw, Evaluator
from pinn_odelora.optim.implicit import ImplicitODELoRA
from pinn_odelora.optim.methods import Method
from pinn_odelora.pretraining import cache
from pinn_odelora.pretraining.pretrain import Pretraining
from pinn_odelora.selection import initial_rank as rows
from pinn_odelora.selection.rank import Adaptive
from pinn_odelora.system import Solution, System, draw_points


class Experiment(NamedTuple):
    """What a run is about, before anything is trained.

    ``unknown``: parameters of the problem that are to be found; it has the first guess of them.
    """

    problem: Problem
    source: Problem
    net: nn.Module
    method: Method
    measurements: Mapping[str, Term]
    unknown: tuple[str, ...] = ()


def experiment(cfg: DictConfig) -> Experiment:
    """Build and rehearse everything that a configuration names; whatever can be refused is refused here.

    A rank that is chosen by itself stands in the configuration afterwards.

    Raises:
        InputError: one sentence on what does not fit.
    """
    problem, unknown = posed(cfg)
    source = at_source(cfg, problem)
    net = network(cfg, problem)
    if not has_pretrained(cfg):
        if cfg.pretrain.checkpoint is not None:
            load_network(net, cfg.pretrain.checkpoint)
        else:
            kept = None if cfg.pretrain.cache is None else Path(cfg.pretrain.cache)
            cache.check_writable(kept, cache.key(source, net, pretraining(cfg)))
    built = Experiment(problem, source, net, method(cfg), measurements(cfg, problem), unknown)
    if cfg.lora.rank == AUTO:
        cfg.lora.rank = own_rank(cfg, built)
    rehearse(cfg, built)
    return built


def posed(cfg: DictConfig) -> tuple[Problem, tuple[str, ...]]:
    """The problem, and which of its parameters are unknown; of these it has the first guess, their value at the source.

    Raises:
        InputError: if a parameter that is no coefficient is to be found.
    """
    settings = OmegaConf.to_container(cfg.problem, resolve=True)
    unknown = tuple(name for name, value in settings.items() if value == UNKNOWN)
    known = {name: value for name, value in settings.items() if name not in unknown}
    problem: Problem = instantiate(known, _convert_="all")
    declared = problem.parameters()
    coefficients = [name for name, p in declared.items() if not (p.integer or p.choices)]
    for name in unknown:
        if name not in coefficients:
            raise InputError(
                f"problem.{name} is {UNKNOWN}, but only numbers that may vary can be found: {', '.join(coefficients)}."
            )
    source = at_source(cfg, problem)
    return dataclasses.replace(problem, **{name: getattr(source, name) for name in unknown}), unknown


def at_source(cfg: DictConfig, problem: Problem) -> Problem:
    """The problem that the pretrained network solved."""
    return problem.at_source(**OmegaConf.to_container(cfg.pretrain.source, resolve=True))


def network(cfg: DictConfig, problem: Problem) -> nn.Module:
    """The network in float64; ``inputs``, ``outputs``, ``generator`` and ``source``, the problem that the pretrained
    network solved, are given to a class that asks for them.
    """
    offered = {
        "inputs": problem.inputs,
        "outputs": len(problem.fields),
        "generator": torch.Generator().manual_seed(cfg.pretrain.seed),
    }
    asked = inspect.signature(get_object(cfg.net._target_)).parameters
    settings = OmegaConf.to_container(cfg.net, resolve=True)
    described = {**{k: v for k, v in offered.items() if k in asked}, **settings}
    if "source" in asked:
        # By itself: Hydra would hand a problem, which is a dataclass, on as a configuration.
        net = instantiate(described, _partial_=True)(source=at_source(cfg, problem))
    else:
        net = instantiate(described)
    if not isinstance(net, nn.Module):
        raise InputError(f"net._target_ is {cfg.net._target_}, which gives a {type(net).__name__}, not a torch module.")
    net = net.double()
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
    patterns = targeted(cfg)
    if trains == "weights":
        # Nothing is put in, so a network without hidden layers is as good: all its layers are measured then.
        return linear_targets(net, "*" if patterns is None and len(linear_layers(net)) < 3 else patterns)
    targets = linear_targets(net, patterns)
    start = named(cfg.lora.start, cfg.lora.start_size)
    generator = torch.Generator().manual_seed(cfg.seed)
    rule = adaptive(cfg, trains)
    rank, name = (cfg.lora.rank, "lora.rank") if rule is None else (rule.start, "lora.adaptive.start")
    adapted = adapt(net, targets, rank, cfg.lora.scale, start, generator, name)
    thaw(net, cfg.lora.also)
    return adapted


def targeted(cfg: DictConfig) -> str | Sequence[str] | None:
    """Patterns of the layers that are adapted; None is the usual ones."""
    return OmegaConf.to_object(cfg.lora.targets) if OmegaConf.is_list(cfg.lora.targets) else cfg.lora.targets


def own_rank(cfg: DictConfig, built: Experiment) -> int:
    """The rank for these layers, points and components; where there are no factors it is of no account."""
    if built.method.trains == "weights":
        return rows.RANKS[0]
    solution = Solution(built.problem, built.net, built.unknown)
    system = System(solution.problem, solution, built.measurements, cfg.derivatives.engine)
    drawn = rows.drawn(system.terms, rows.components(system), cfg.points.interior, cfg.points.boundary)
    targets = linear_targets(built.net, targeted(cfg))
    last = [*linear_layers(built.net).values()][-1]
    beside = sum(p.numel() for p in last.parameters()) if "last" in cfg.lora.also else 0
    return rows.rank(targets, beside, rows.enough(drawn, cfg.points.interior))


def adaptive(cfg: DictConfig, trains: str) -> Adaptive | None:
    """How the rank of factors follows the gradient; None where it stays, and where there are none."""
    return Adaptive(**cfg.lora.adaptive) if trains == "factors" and cfg.lora.rank == ADAPTIVE else None


def rehearse(cfg: DictConfig, built: Experiment) -> None:
    """One step on a copy with a few points: a rank, pattern or start that does not fit is refused before training."""
    net = copy.deepcopy(built.net)
    adapted = layers(cfg, net, built.method.trains)
    solution = Solution(built.problem, net, built.unknown)
    system = System(solution.problem, solution, built.measurements, cfg.derivatives.engine)
    groups = built.method.groups(solution)
    evaluator = Evaluator(system, [p for group in groups for p in group["params"]], adapted)
    evaluator.begin(Draw(0, draw_points(system.terms, 8, 8, seed=0)))
    optimizer = built.method.optimizer(groups)
    if adaptive(cfg, built.method.trains) and not hasattr(optimizer, "rank_changed"):
        raise InputError(
            f"lora.rank is {ADAPTIVE}, but {cfg.method._target_.rpartition('.')[2]} keeps a memory for every entry of "
            "the factors, which a new rank would make meaningless: choose method=odelora or lora_gd, or a number."
        )
    if built.unknown and not isinstance(optimizer, ImplicitODELoRA):
        raise InputError(
            f"problem.{built.unknown[0]} is {UNKNOWN}, but only an implicit scheme can find it: choose method=odelora, "
            "lora_gd or full_implicit with integrator=linearly_implicit or ros2."
        )
    # An untrained network may overflow where the pretrained one does not.
    with suppress(NonFiniteError):
        check_seen(built.unknown, evaluator)
        optimizer.step(evaluator)


def check_seen(unknown: Sequence[str], evaluator: Evaluator) -> None:
    """Refuse to look for a coefficient that no residual depends on."""
    if not unknown:
        return
    gradient = evaluator.linearise()
    for name in unknown:
        if not any(bool(group.columns[f"coefficients.{name}"].any()) for group in gradient.groups()):
            raise InputError(f"problem.{name} is {UNKNOWN}, but no residual of this problem depends on it.")


def pretraining(cfg: DictConfig) -> Pretraining:
    """The settings of pretraining."""
    names = inspect.signature(Pretraining).parameters
    return Pretraining(**{name: cfg.pretrain[name] for name in names})

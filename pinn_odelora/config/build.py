"""From a composed configuration to the objects it names: problem, network, and the adaptation that will run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from omegaconf import DictConfig
from torch import nn

from pinn_odelora.adaptation import Adaptation
from pinn_odelora.checkpoints import Weights
from pinn_odelora.config import components
from pinn_odelora.config.checks import resolved, settings
from pinn_odelora.errors import RefusedValueError
from pinn_odelora.formulation import Problem
from pinn_odelora.pretraining.pretrain import Pretraining
from pinn_odelora.runs.start import in_units_at_start, weights_at_start

KEYS = {
    "rank": "lora.rank",
    "adaptive.start": "lora.adaptive.start",
    "scale": "lora.scale",
    "data_weight": "data.weight",
    "wall": "budget.wall",
}
"""The arguments of an adaptation that have another name on the command line."""


class Experiment(NamedTuple):
    """What a run is about, before anything is trained; ``adaptation`` has the network, ``source`` what it has solved,
    and ``weights`` those that it begins with, if it has some."""

    source: Problem
    net: nn.Module
    pretraining: Pretraining
    adaptation: Adaptation
    weights: Weights | None


def experiment(cfg: DictConfig) -> Experiment:
    """Build everything that a configuration names; invalid settings raise here.

    Raises:
        InputError: one sentence on what does not fit.
    """
    config = resolved(cfg)
    problem, source, unknown = posed(cfg)
    settled = settings(config, "pretrain")
    pretrain = config["pretrain"]
    weights = weights_at_start(config["output_dir"], pretrain["checkpoint"], pretrain["part"])
    made = network(cfg, problem, source)
    net = in_units_at_start(made, problem, source, settled, weights, config["data"]["file"])
    method = components.method(config["method"], config["integrator"])
    with by_keys(KEYS | {name: f"problem.{name}" for name in unknown}):
        adaptation = Adaptation(
            net,
            problem,
            lora=settings(config, "lora"),
            method=method,
            points=settings(config, "points"),
            budget=settings(config, "budget"),
            weighting=settings(config, "weighting"),
            log=settings(config, "log"),
            data=config["data"]["file"],
            data_weight=config["data"]["weight"],
            unknown=unknown,
            seed=config["seed"],
            precision=config["precision"],
            derivatives=config["derivatives"]["engine"],
        )
    return Experiment(source, adaptation.net, settled, adaptation, weights)


def posed(cfg: DictConfig) -> tuple[Problem, Problem, tuple[str, ...]]:
    """The problem, the one that the pretrained network solved, and which parameters are unknown."""
    config = resolved(cfg)
    return components.problem(config["problem"], config["pretrain"]["source"])


def network(cfg: DictConfig, problem: Problem, source: Problem) -> nn.Module:
    """The network as it is before pretraining."""
    config = resolved(cfg)
    return components.network(config["net"], problem, source, config["pretrain"]["seed"])


@contextmanager
def by_keys(names: Mapping[str, str]) -> Iterator[None]:
    """Name refused values as the command line does."""
    try:
        yield
    except RefusedValueError as refused:
        raise RefusedValueError(names.get(refused.name, refused.name), refused.value, refused.allowed) from None

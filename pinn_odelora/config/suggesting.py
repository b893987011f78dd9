"""Advice on the rank from the command line:  python -m pinn_odelora suggest-rank problem=burgers tolerance=0.1

The arguments are those of a run, of which the keys that have no effect here are refused, and ``tolerance``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pinn_odelora.arguments import readable, restore
from pinn_odelora.config import build, sentences
from pinn_odelora.config.application import register
from pinn_odelora.config.checks import check, resolved, settings
from pinn_odelora.config.request import Request
from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.ntk.rank import TOLERANCE, RankAdvice, checked_start, suggest_rank
from pinn_odelora.pretraining.pretrain import pretrained
from pinn_odelora.runs.messages import say
from pinn_odelora.system import Solution, System

CONFIGS = Path(__file__).parents[2] / "configs"
EFFECTIVE = ("problem", "net", "pretrain", "points", "data", "derivatives", "seed", "threads")
EFFECTIVE_LORA = ("lora.targets", "lora.also", "lora.scale", "lora.alpha", "lora.scaling", "lora.start")
GIVEN = "tolerance="


def suggested(arguments: Sequence[str]) -> RankAdvice:
    """The advice for a command line; the network is pretrained first, or taken from the cache or a checkpoint.

    Raises:
        InputError: for an argument that a run would refuse, or that has no effect here.
    """
    try:
        return _suggested(arguments)
    except RefusedValueError as refused:
        raise InputError(sentences.of_run(refused)) from None


def _suggested(arguments: Sequence[str]) -> RankAdvice:
    own = [argument.removeprefix(GIVEN) for argument in arguments if argument.startswith(GIVEN)]
    tolerance = TOLERANCE.check("tolerance", _number(own[-1])) if own else None
    cfg, request = _composed([argument for argument in arguments if not argument.startswith(GIVEN)])
    if other := [key for key in request.given if key not in request.gives(*EFFECTIVE, *EFFECTIVE_LORA)]:
        raise InputError(f"{other[0]} is given, but it has no effect on suggest-rank: leave it out.")
    _, _, unknown = build.posed(cfg)
    if unknown:
        raise RefusedValueError(f"problem.{unknown[0]}", "unknown", "a number for suggest-rank")
    check(cfg, request)
    config, built = resolved(cfg), build.experiment(cfg)
    lora = settings(config, "lora")
    with build.by_keys({"start": "lora.start"}):
        checked_start(lora)
    kept = None if cfg.pretrain.cache is None else Path(cfg.pretrain.cache)
    source = System(built.source, Solution(built.source, built.net))
    pretrained(source, built.pretraining, built.weights, kept, say)
    with build.by_keys(build.KEYS):
        return suggest_rank(
            built.net,
            built.adaptation.problem,
            tolerance=tolerance,
            lora=lora,
            points=settings(config, "points"),
            data=config["data"]["file"],
            data_weight=config["data"]["weight"],
            seed=cfg.seed,
            derivatives=config["derivatives"]["engine"],
            threads=1 if cfg.threads == "auto" else cfg.threads,
            say=say,
        )


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _composed(overrides: Sequence[str]) -> tuple[DictConfig, Request]:
    """The configuration of a run with these overrides, and what was given."""
    if not CONFIGS.is_dir():
        raise InputError(f"suggest-rank needs {CONFIGS}, which is not installed: call pinn_odelora.suggest_rank.")
    register()
    overrides = readable(overrides)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            hydra = compose("train", ["logger=csv", *overrides], return_hydra_config=True).hydra
            cfg = compose("train", ["logger=csv", *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(sentences.of_composition(error)) from None
    request = Request.of(hydra)
    restore(cfg, request.given)
    return cfg, Request(request.given[1:])

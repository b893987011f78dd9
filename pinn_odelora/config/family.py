"""The checks of a family:  python train.py problem=burgers 'family.nu=[0.05,0.006]'.

A family has a pretrained network, ranges of parameters, adapters and a budget in common with a run, and its own way to
solve (``families.offline``): whatever else is given would have no effect, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pinn_odelora.config.request import Request
from pinn_odelora.errors import InputError, RefusedValueError, within

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem
    from pinn_odelora.optim.methods import Method

SECONDS = 60
"""The budget where none is given."""
SAVED = "choices"
"""In a saved configuration, which is repeated as it stands."""


def limit(cfg: DictConfig, request: Request) -> None:
    """Put the budget of a family into the configuration: the limits given, not the default of a run."""
    if SAVED in cfg or not OmegaConf.is_dict(cfg.budget):
        return
    given = [key for key in request.gives("budget") if key != "budget.wall"]  # which ends a process, and no family
    if "budget.gradient_evals" not in given:
        cfg.budget.gradient_evals = None
    if not given and cfg.budget.get("seconds") is None and cfg.budget.get("steps") is None:
        cfg.budget.seconds = SECONDS


def check_family(
    config: Mapping[str, Any], request: Request, problem: Problem, unknown: Sequence[str], method: Method
) -> None:
    """Refuse a family that cannot be solved, what has no effect on one, and settings of one where there is none.

    Raises:
        InputError: one sentence on the first thing that is wrong.
    """
    from pinn_odelora.families.ranges import Ranges
    from pinn_odelora.naming import integrator_name

    ends, stations = config["family"], config["stations"]
    if not ends:
        if given := request.gives("stations"):
            raise InputError(f"{given[0]} is given, but there is no family: give a range, as family.nu=[0.05,0.006].")
        return
    with within("family"):
        Ranges.of(problem, ends, stations["scale"])
    if unknown:
        raise RefusedValueError(f"problem.{unknown[0]}", "unknown", "a number for a family")
    integrator = method.integrator and integrator_name(method.integrator)
    for key, value, wanted in (
        ("method", method.name, "odelora"),
        ("integrator", integrator, "linearly_implicit"),
        ("precision", config["precision"], 64),
        ("data.file", config["data"]["file"], None),
    ):
        if value != wanted:
            raise RefusedValueError(key, value, f"{wanted} for a family")
    if config["lora"]["rank"] == "adaptive":
        raise RefusedValueError("lora.rank", "adaptive", "a whole number or auto for a family")
    if given := request.gives(*(f"problem.{name}" for name in ends)):
        name = given[0].removeprefix("problem.")
        raise InputError(f"{given[0]} is given, but family.{name} gives its range: leave one out.")
    if given := _without_effect(request, config):
        raise InputError(f"{given[0]} is given, but it has no effect on a family: leave it out.")


def _without_effect(request: Request, config: Mapping[str, Any]) -> list[str]:
    """What was given of the keys that a family does not use; its method and its logger may be named."""
    unused = ["points", "weighting", "training", "checkpoint", "data", "lora.adaptive"]
    unused += ["log.every", "log.heldout", "log.kernel"]
    if config["logger"]["kind"] == "wandb":
        unused.append("logger")
    inside = [key for key in request.gives("method", "integrator", "trainer") if "." in key]
    return request.gives(*unused) + [key for key in inside if key != "trainer.accelerator"]

"""Adapt a pretrained physics-informed network by training low-rank factors along an ODE.

    import pinn_odelora as po
    from problems.burgers import Burgers

    net = po.pretrain(Burgers(nu=0.05))
    result = po.adapt(net, Burgers(nu=0.02), rank=8, budget=po.Budget(seconds=10))

A name is imported when it is first used: torch takes seconds, and ``python train.py --help`` must not wait for it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pinn_odelora import conditions as conditions
    from pinn_odelora import deepxde as deepxde
    from pinn_odelora import flows as flows
    from pinn_odelora import methods as methods
    from pinn_odelora import ntk as ntk
    from pinn_odelora import pina as pina
    from pinn_odelora.adaptation import Adaptation as Adaptation
    from pinn_odelora.adaptation import adapt as adapt
    from pinn_odelora.adaptation import steps as steps
    from pinn_odelora.bayes.posterior import Posterior as Posterior
    from pinn_odelora.bayes.posterior import posterior as posterior
    from pinn_odelora.budget import Budget as Budget
    from pinn_odelora.config.load import load as load
    from pinn_odelora.contract.report import check as check
    from pinn_odelora.dashboards.show import dashboard as dashboard
    from pinn_odelora.equation import problem as problem
    from pinn_odelora.errors import InputError as InputError
    from pinn_odelora.errors import NonFiniteError as NonFiniteError
    from pinn_odelora.families.answer import Answer as Answer
    from pinn_odelora.families.family import Family as Family
    from pinn_odelora.families.files import load_family as load_family
    from pinn_odelora.families.offline import family as family
    from pinn_odelora.formulation import Problem as Problem
    from pinn_odelora.formulation import Term as Term
    from pinn_odelora.formulation import parameter as parameter
    from pinn_odelora.geometry import Ball as Ball
    from pinn_odelora.geometry import Box as Box
    from pinn_odelora.geometry import Cloud as Cloud
    from pinn_odelora.geometry import Mesh as Mesh
    from pinn_odelora.geometry import Union as Union
    from pinn_odelora.integrators import RKC as RKC
    from pinn_odelora.integrators import ROS2 as ROS2
    from pinn_odelora.integrators import LinearlyImplicit as LinearlyImplicit
    from pinn_odelora.integrators import RungeKutta as RungeKutta
    from pinn_odelora.lightning.module import ODELoRAModule as ODELoRAModule
    from pinn_odelora.linearisation import Linearisation as Linearisation
    from pinn_odelora.log import Log as Log
    from pinn_odelora.loop import StepRecord as StepRecord
    from pinn_odelora.lowrank.pairs import factor_pairs as factor_pairs
    from pinn_odelora.lowrank.settings import LoRA as LoRA
    from pinn_odelora.nets import MLP as MLP
    from pinn_odelora.ntk.linearise import linearised as linearised
    from pinn_odelora.ntk.rank import suggest_rank as suggest_rank
    from pinn_odelora.objective import Objective as Objective
    from pinn_odelora.optim import ODELoRA as ODELoRA
    from pinn_odelora.points import Points as Points
    from pinn_odelora.pretraining.pretrain import Pretraining as Pretraining
    from pinn_odelora.pretraining.pretrain import pretrain as pretrain
    from pinn_odelora.result import Result as Result
    from pinn_odelora.sampling.settings import Sampling as Sampling
    from pinn_odelora.selection.rank import AdaptiveRank as AdaptiveRank
    from pinn_odelora.system import Solution as Solution
    from pinn_odelora.torch_residuals import torch_problem as torch_problem
    from pinn_odelora.unknown_fields import unknown_field as unknown_field
    from pinn_odelora.weighting.settings import Weighting as Weighting

__version__ = "0.1.0"

PUBLIC = {
    "adaptation": ("Adaptation", "adapt", "steps"),
    "bayes.posterior": ("Posterior", "posterior"),
    "budget": ("Budget",),
    "contract.report": ("check",),
    "dashboards.show": ("dashboard",),
    "equation": ("problem",),
    "errors": ("InputError", "NonFiniteError"),
    "families.answer": ("Answer",),
    "families.family": ("Family",),
    "families.files": ("load_family",),
    "families.offline": ("family",),
    "formulation": ("Problem", "Term", "parameter"),
    "geometry": ("Ball", "Box", "Cloud", "Mesh", "Union"),
    "integrators": ("RKC", "ROS2", "LinearlyImplicit", "RungeKutta"),
    "lightning.module": ("ODELoRAModule",),
    "linearisation": ("Linearisation",),
    "log": ("Log",),
    "loop": ("StepRecord",),
    "lowrank.pairs": ("factor_pairs",),
    "lowrank.settings": ("LoRA",),
    "nets": ("MLP",),
    "ntk.linearise": ("linearised",),
    "ntk.rank": ("suggest_rank",),
    "objective": ("Objective",),
    "optim": ("ODELoRA",),
    "points": ("Points",),
    "pretraining.pretrain": ("Pretraining", "pretrain"),
    "result": ("Result",),
    "config.load": ("load",),
    "sampling.settings": ("Sampling",),
    "selection.rank": ("AdaptiveRank",),
    "system": ("Solution",),
    "torch_residuals": ("torch_problem",),
    "unknown_fields": ("unknown_field",),
    "weighting.settings": ("Weighting",),
}
"""The public names by the module that has them. None may be that of a module here: importing it would hide the name."""
MODULES = {
    "conditions": "conditions",
    "deepxde": "deepxde",
    "flows": "flows",
    "methods": "methods",
    "ntk": "ntk",
    "pina": "pina",
}
"""Public modules: conditions in one line, models of DeepXDE and PINA, velocity fields on LoRA factors, the methods
that ``adapt`` takes, and the linearised regime."""
_HOMES = {name: module for module, names in PUBLIC.items() for name in names}
__all__ = sorted([*_HOMES, *MODULES])


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    if name in MODULES:
        found: Any = import_module(f"pinn_odelora.{MODULES[name]}")
    else:
        found = getattr(import_module(f"pinn_odelora.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

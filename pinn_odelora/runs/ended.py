"""What a run offers to those who sum it up and write it down: the settings it had, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from pinn_odelora.budget import Budget
from pinn_odelora.confidence import Interval
from pinn_odelora.error_estimate import ErrorEstimate
from pinn_odelora.field_networks import FoundField
from pinn_odelora.formulation import Problem
from pinn_odelora.linalg.plan import Plan
from pinn_odelora.log import Log
from pinn_odelora.loop import Row, Training
from pinn_odelora.lowrank.settings import LoRA
from pinn_odelora.misfit import Misfit
from pinn_odelora.optim.methods import Method
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.selection.rank import AdaptiveRank
from pinn_odelora.system import Solution, System
from pinn_odelora.weighting.settings import Weighting


class EndedRun(Protocol):
    """An adaptation that has come to its end; ``pinn_odelora.Adaptation`` is one.

    Attributes:
        problem, net, solution, system: what was solved, by which network.
        before: the tensors of the network before adaptation.
        method, lora, adaptive, points, weighting, budget, log, seed, precision, unknown, data, data_weight: its
            settings.
        training: what the steps have changed.
        history: the logged rows; the last one describes the end.
        intervals: of the coefficients that were found.
        misfits: of the measured fields, where there are such coefficients.
        error_before: relative L2 error of the pretrained network.
        losses_before, losses: held-out loss by term, of that network and of what the run returns.
        estimate: of the error, where there is one.
    """

    problem: Problem
    net: nn.Module
    solution: Solution
    system: System
    before: Mapping[str, Tensor]
    method: Method
    lora: LoRA
    points: Sampling
    weighting: Weighting
    budget: Budget
    log: Log
    seed: int
    precision: int
    unknown: Sequence[str]
    data: Any
    data_weight: float
    history: list[Row]
    intervals: Mapping[str, Interval]
    misfits: Mapping[str, Misfit]
    error_before: float
    losses_before: Mapping[str, float]
    losses: Mapping[str, float]
    estimate: ErrorEstimate

    @property
    def training(self) -> Training: ...

    @property
    def adaptive(self) -> AdaptiveRank | None: ...

    @property
    def chosen(self) -> str:
        """Layers and derivatives, a line each."""

    def plan(self) -> Plan | None:
        """The linear algebra of the largest steps."""


class Outcome(Protocol):
    """What came of it; ``pinn_odelora.Result`` is one."""

    adaptation: EndedRun
    net: nn.Module
    history: list[Row]
    coefficients: Mapping[str, Mapping[str, Any]]
    unknown_fields: Mapping[str, FoundField]
    rel_l2_before: float

    @property
    def adapter(self) -> Any: ...

    @property
    def summary(self) -> dict[str, Any]: ...

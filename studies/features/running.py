"""Runs: so many steps of one size, or so much flow time at a small error, and what has changed then."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from features.contenders import CONTENDERS
from features.network import Task, task
from pinn_odelora.errors import InputError
from pinn_odelora.flows import balanced_flow, gradient_flow
from pinn_odelora.integrators import RungeKutta
from pinn_odelora.integrators.tableau import BOGACKI_SHAMPINE
from pinn_odelora.optim import ODELoRA, factor_pairs


class Case(NamedTuple):
    """Who starts where, in which network."""

    method: str
    start: str
    parametrisation: str
    width: int
    seed: int


class Look(NamedTuple):
    """After ``k`` steps, or at flow time ``time``: the changes, the loss there and the largest one on the way, both
    over that at the start; not finite where the run has failed.
    """

    k: int
    time: float | None
    features: float
    outputs: float
    loss: float
    worst: float


def closure_of(made: Task) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        made.net.zero_grad()
        loss = made.loss()
        loss.backward()
        return loss.detach()

    return closure


def steps(case: Case, eta: float, marks: tuple[int, ...], size: float = 1.0, limit: float = math.inf) -> list[Look]:
    """The looks after so many steps of size eta each.

    Args:
        limit: of the loss, over that at the start, beyond which the run is given up.
    """
    made = task(case.width, case.parametrisation, case.start, case.seed, size)
    method = CONTENDERS[case.method].make(eta, case.width)
    optimizer, closure = method.optimizer(factor_pairs(made.net)), closure_of(made)
    first, worst, found = made.value(), 0.0, []
    for k in range(1, marks[-1] + 1):
        before = _step(optimizer, closure) / first
        worst = max(worst, before if k > 1 else 0.0)
        if not worst <= limit or not math.isfinite(before):
            break
        if k in marks:
            loss = made.value() / first
            found.append(Look(k, None, *made.changes(), loss, max(worst, loss)))
    lost = [Look(k, None, math.nan, math.nan, math.inf, math.inf) for k in marks[len(found) :]]
    return found + lost


def flow(case: Case, time: float) -> Look:
    """The flow at a time, by the Bogacki–Shampine pair at its default tolerance: no scheme's stability interferes."""
    made = task(case.width, case.parametrisation, case.start, case.seed)
    ours = case.method == "odelora"
    velocity, pair = balanced_flow if ours else gradient_flow, RungeKutta(BOGACKI_SHAMPINE)
    optimizer = ODELoRA(factor_pairs(made.net), integrator=pair, flow=velocity, retract=ours)
    first, passed, k, closure = made.value(), 0.0, 0, closure_of(made)
    while passed < time:
        group = optimizer.param_groups[0]
        if group["memory"].get("h", 0.0) >= time - passed:  # the last step ends there
            for each in optimizer.param_groups:
                each["lr"] = time - passed
        optimizer.step(closure)
        passed = time if group["lr"] else passed + group["memory"]["last_h"]
        k += 1
    loss = made.value() / first
    return Look(k, time, *made.changes(), loss, loss)


def _step(optimizer: Optimizer, closure: Callable[[], Tensor]) -> float:
    """The loss before a step; infinite where numbers fail or a factor has lost its rank."""
    try:
        loss = float(optimizer.step(closure))
    except (FloatingPointError, InputError, torch.linalg.LinAlgError):
        return math.inf
    return loss if math.isfinite(loss) else math.inf

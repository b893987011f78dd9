"""Runs: so many steps of one size, or so much flow time at a small error, and what has changed then."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from features.contenders import CONTENDERS
from features.network import Task, task
from pinn_odelora import Budget, Objective, RungeKutta, Sampling, Solution, loop
from pinn_odelora.integrators.tableau import BOGACKI_SHAMPINE
from pinn_odelora.loop import StepRecord, Training
from pinn_odelora.methods import Method, lora_gd, odelora
from pinn_odelora.optim.groups import parameters
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.system import System

ENDLESS = Budget(steps=10**9)


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


def training_of(made: Task, method: Method) -> Training:
    """The steps of a method on the task."""
    solution = Solution(made.problem, made.net)
    # By reverse mode the network is evaluated as it is, by thin products.
    system = System(made.problem, solution, derivatives="autograd")
    groups = method.groups(solution)
    objective = Objective(system, parameters(groups), {})
    return Training(objective, method, method.optimizer(groups), Sampler(system.terms, Sampling.fixed()))


def records(training: Training, budget: Budget) -> Iterator[StepRecord]:
    """Those of steps until numbers fail or a factor loses its rank."""
    try:
        yield from loop.steps(training, budget)
    except torch.linalg.LinAlgError:
        return


def steps(case: Case, eta: float, marks: tuple[int, ...], size: float = 1.0, limit: float = math.inf) -> list[Look]:
    """The looks after so many steps of size eta each.

    Args:
        limit: of the loss, over that at the start, beyond which the run is given up.
    """
    made = task(case.width, case.parametrisation, case.start, case.seed, size)
    method = CONTENDERS[case.method].make(eta, case.width)
    first, worst, found = made.value(), 0.0, []
    for record in records(training_of(made, method), Budget(steps=marks[-1])):
        k = record.step + 1
        worst = max(worst, record.loss / first if k > 1 else 0.0)
        if not worst <= limit:
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
    pair = RungeKutta(BOGACKI_SHAMPINE)
    training = training_of(made, odelora(pair) if ours else lora_gd(pair))
    first, passed, k = made.value(), 0.0, 0
    for record in loop.steps(training, ENDLESS):
        passed, k = passed + record.report.h, k + 1
        (*_, last), groups = training.optimizer.state.values(), training.optimizer.param_groups
        if groups[0]["lr"] is not None:
            break
        if last["integrator"]["h"] >= time - passed:  # the last step ends there
            for group in groups:
                group["lr"] = time - passed
    if training.failure is not None:
        raise training.failure
    loss = made.value() / first
    return Look(k, time, *made.changes(), loss, loss)

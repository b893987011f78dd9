"""From scratch for every target: a new network, by natural gradient, L-BFGS or self-scaled Broyden."""

from __future__ import annotations

from answering.cases import Case
from answering.trace import Trace, error_at
from pinn_odelora import loop
from pinn_odelora.budget import Budget
from pinn_odelora.pretraining import stages
from pinn_odelora.pretraining.pretrain import Pretraining
from pinn_odelora.pretraining.stages import Stage
from pinn_odelora.rivals.ssbroyden import SSBroyden
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import Solution, System

SETTINGS = Pretraining()
POINTS = SETTINGS.interior, SETTINGS.boundary
FIRST = 500
"""Steps of Adam before a quasi-Newton method."""


def started(case: Case, value: float, seed: int, target: float, cap: float, steps: int) -> tuple[System, Trace]:
    """A new network after so many steps of Adam, which are timed."""
    problem = case.at(value)
    error = error_at(problem)
    solution = Solution(problem, case.net(seed))
    trace = Trace(lambda: error(solution), target, cap)
    with trace.apart():
        trace.look()
        system = System(problem, solution)
    stages.adam(system, *POINTS, seed, steps, SETTINGS.adam_lr, lambda line: None)
    return system, trace


def followed(stage: Stage, trace: Trace) -> Trace:
    """The stage until the run is over or can go no further."""
    stage.training.clock = trace.clock
    if not trace.look():
        for _ in loop.steps(stage.training, Budget(seconds=trace.left)):
            if trace.look():
                break
    return trace


def natural_gradient(case: Case, value: float, seed: int, target: float, cap: float) -> Trace:
    """Linearly implicit steps with the second-order correction, after 100 steps of Adam."""
    system, trace = started(case, value, seed, target, cap, SETTINGS.adam_steps)
    return followed(stages.natural_gradient(system, *POINTS, seed), trace)


def lbfgs(case: Case, value: float, seed: int, target: float, cap: float) -> Trace:
    """Gradients on fixed points, a hundred pairs, strong Wolfe line searches, after 500 steps of Adam."""
    system, trace = started(case, value, seed, target, cap, FIRST)
    return followed(stages.lbfgs(system, *POINTS, seed), trace)


def ssbroyden(case: Case, value: float, seed: int, target: float, cap: float) -> Trace:
    """Self-scaled Broyden on fixed points, after 500 steps of Adam."""
    system, trace = started(case, value, seed, target, cap, FIRST)
    training = stages.training_of(system, SSBroyden, Sampling.fixed(*POINTS), seed)
    return followed(Stage("SSBroyden", training, 3000, 300, lambda training: training.progress.gradient_evals), trace)

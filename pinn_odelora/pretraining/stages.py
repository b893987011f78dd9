"""The stages of pretraining: ways to bring all weights of a network to the solution at the source parameter.

Adam, its learning rate falling by a cosine, finds the neighbourhood; from there the second stage has a long way to go
down a narrow valley:

* natural gradient: linearly implicit steps of the gradient flow of all weights with the second-order correction and
  momentum, on fresh points whose number adapts (``sampling.batch_size``). Few, expensive steps, tens to a hundred;
  their linear algebra is that of the residuals, so that the width hardly matters. Before the waves of an indefinite
  operator lies a plateau, where steps are short and alike: momentum crosses it in a fifth of them;
* L-BFGS on fixed points, one gradient an evaluation, thousands of them: for networks whose Jacobian does not follow
  from one reverse sweep, or does not fit the memory.

Each is followed as ``pretraining.following`` tells.

Off a plateau that is wider than natural gradient gets in a minute, Adam helps: it moves all weights at its own rate,
whatever the curvature, and halves the loss there in hundreds of cheap steps. What it does not halve is undone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from pinn_odelora import loop
from pinn_odelora.budget import Budget, Progress
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.loop import Training
from pinn_odelora.objective import Objective
from pinn_odelora.optim.groups import Group, parameters, single_tensors
from pinn_odelora.optim.methods import Method, full_implicit
from pinn_odelora.pretraining.following import ITERATIONS, Message, Stage
from pinn_odelora.rivals.lbfgs import LBFGS
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import System

MEMORY = 2.0**31
"""Bytes for the linear algebra of a step of natural gradient: 12,000 residuals of a network with 5,000 weights."""
WIDTH, LR = 40, 5e-3
"""Units of a layer, and the learning rate of Adam up to there."""
HALF, RISEN = 0.5, 4.0
"""The parts of the loss at which a turn of Adam ends, in success or not."""
FEW = 400
"""Points of a turn of Adam."""
ALONE = 32
"""Trained numbers that the tape does not tell of beyond which a Jacobian is too expensive: each takes a reverse
sweep."""


def training_of(
    system: System, make: Callable[[list[Group]], torch.optim.Optimizer], points: Sampling, seed: int
) -> Training:
    """The trainable weights of a system's network by an optimiser."""
    method = Method("pretraining", "weights", make)
    return _training(system, method, points, seed)


def _training(system: System, method: Method, points: Sampling, seed: int) -> Training:
    # Not method.groups, which thaws: what the user has frozen stays as it is.
    groups = single_tensors(system.solution)
    like = next(system.solution.net.parameters())
    components = {name: system.components(name) for name in system.terms}
    sampler = Sampler(system.terms, points, components, seed, like.dtype)
    return Training(Objective(system, parameters(groups), {}), method, method.optimizer(groups), sampler)


def adam(
    system: System,
    interior: int,
    boundary: int,
    seed: int,
    steps: int,
    lr: float,
    say: Message,
    wall: float | None = None,
    seconds: float = math.inf,
) -> Training:
    """All steps, on fixed points, or as many as ``seconds`` allow; fewer, and ``paused`` is set, where the time on the
    ``wall`` is over before.
    """
    points = Sampling.fixed(interior, boundary)
    training = training_of(system, lambda groups: torch.optim.Adam(parameters(groups), lr=lr), points, seed)
    limit = None if seconds == math.inf else seconds
    for record in loop.steps(training, Budget(steps=steps, seconds=limit, wall=wall)) if steps else ():
        done = record.step + 1
        part = max(done / steps, min(training.progress.seconds / seconds, 1.0))
        for group in training.optimizer.param_groups:
            group["lr"] = lr * (1 + math.cos(math.pi * part)) / 2
        if done % max(steps // 10, 1) == 0:
            say(f"Adam {done}/{steps}: loss {record.loss:.2e}")
    return training


def adam_lr(net: nn.Module) -> float:
    """In proportion to 1/width beyond 40 units, as hidden layers ask for (Yang et al., 2022, arXiv 2203.03466)."""
    widest = max((min(p.shape) for p in net.parameters() if p.ndim == 2), default=WIDTH)
    return LR * min(1.0, WIDTH / widest)


def halve(system: System, boundary: int, seed: int, budget: Budget) -> tuple[bool, Progress]:
    """Adam, at a constant rate and on few fixed points, until the loss there is half; whether it came to that within
    the budget, and what it cost. All is as before if it did not: a loss that rises, as from where a network is trained
    already, is no plateau.
    """
    lr, points = adam_lr(system.solution.net), Sampling.fixed(FEW, boundary)
    training = training_of(system, lambda groups: torch.optim.Adam(parameters(groups), lr=lr), points, seed)
    trained = training.objective.parameters
    before = [p.detach().clone() for p in trained]
    first = math.nan
    for record in loop.steps(training, budget):
        first = record.loss if record.step == 0 else first
        if record.loss < HALF * first:
            return True, training.progress
        if record.loss > RISEN * first:
            break
    with torch.no_grad():
        for p, value in zip(trained, before, strict=True):
            p.copy_(value)
    return False, training.progress


def lbfgs(system: System, interior: int, boundary: int, seed: int) -> Stage:
    """L-BFGS on fixed points; its cost is gradient evaluations, those of line searches included."""
    make = lambda groups: LBFGS(parameters(groups), iterations=ITERATIONS)
    training = training_of(system, make, Sampling.fixed(interior, boundary), seed)
    return Stage("L-BFGS", training, 3000, 300, lambda training: training.progress.gradient_evals)


def natural_gradient(system: System, interior: int, boundary: int, seed: int) -> Stage:
    """Linearly implicit steps on all weights; its cost is steps.

    Args:
        system: what is solved; its solution is trained.
        interior, boundary: points of a step at most; all terms and components together give at most ``interior``
            residuals.
        seed: of the points.
    """
    points = Sampling(interior=interior, boundary=boundary, batch_size=interior, best_iterate=False)
    training = _training(system, full_implicit(LinearlyImplicit(memory=MEMORY)), points, seed)
    way = lambda budget: halve(system, boundary, seed, budget)
    return Stage("Natural gradient", training, 40, 20, lambda training: training.progress.step, way)


def unsuitable(stage: Stage) -> str | None:
    """Why natural gradient would be too expensive: its Jacobian does not follow from one reverse sweep, or does not fit
    the memory; None where it is not.
    """
    objective = stage.training.objective
    sweep, terms = objective.sweep, objective.system.terms
    if (alone := max(map(sweep.alone, terms))) > ALONE:
        return f"{alone} numbers are trained neither in linear layers nor as factors or summands"
    if (name := next((name for name in terms if not sweep.paired(name)), None)) is not None:
        return f"the Jacobian of {name} is formed row by row: {sweep.unpaired(name)}"
    form = stage.training.optimizer.plan(stage.training.sampler.largest).form
    return "the linear algebra of a step does not fit the memory" if form == "cg" else None

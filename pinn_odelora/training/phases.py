"""The phases of pretraining: ways to bring all weights of a network to the solution at the source parameter.

Adam, its learning rate falling by a cosine, finds the neighbourhood; from there a second phase has a long way to go
down a narrow valley:

* natural gradient: linearly implicit steps of the gradient flow of all weights with the second-order correction, on
  fresh points whose number grows (``optim.implicit``, ``growth``). Few and dear steps, tens to a hundred; their linear
  algebra is that of the rows, so that the width hardly matters;
* L-BFGS on fixed points, one gradient an evaluation, thousands of them: for networks whose Jacobian has no structure to
  be had from one sweep, or does not fit the memory.

A phase ends at the target, at its budget, or when the error has not fallen by a tenth for a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinn_odelora.errors import NonFiniteError
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.optim import ImplicitODELoRA
from pinn_odelora.optim.lbfgs import LBFGS
from pinn_odelora.optim.methods import full_implicit
from pinn_odelora.points import Points
from pinn_odelora.system import System, draw_points
from pinn_odelora.training.data import PointStream, components
from pinn_odelora.training.evaluation import Evaluator
from pinn_odelora.training.growth import Growth, ended

Report = Callable[[str], None]
ITERATIONS = 20
"""Of L-BFGS between two looks at the error."""
RESIDUAL, FIRST = 0.3, 125
"""The part of the points of natural gradient that follows the residual, and the rows of its first step."""


class Gone(NamedTuple):
    """A part of a phase: what it cost, in the units of the phase's budget, and the loss where it began."""

    cost: int
    loss: float


class Phase(NamedTuple):
    """Something that can be advanced; None is returned where it cannot go on.

    ``patience`` is the cost within which the error has to fall by a tenth, ``every`` that between two reports.
    """

    name: str
    patience: int
    every: int
    advance: Callable[[], Gone | None]


def follow(phase: Phase, most: int, error: Callable[[], float], target: float, report: Report) -> None:
    """Advance a phase until it is over; without an error (NaN) the loss has to fall instead."""
    spent = reported = at = 0
    now, best = error(), math.inf
    while spent < most and not now <= target:
        gone = phase.advance()
        if gone is None:
            report(f"{phase.name} {spent}/{most}: no further progress")
            return
        spent += gone.cost
        now = error()
        judged = gone.loss if math.isnan(now) else now
        if judged < 0.9 * best:
            best, at = judged, spent
        if spent - reported >= phase.every:
            reported = spent
            report(f"{phase.name} {spent}/{most}: loss {gone.loss:.2e}, relative L2 {now:.2e}")
        if spent - at >= phase.patience:
            report(f"{phase.name} {spent}/{most}: no further progress")
            return


def adam(system: System, points: Mapping[str, Points], steps: int, lr: float, report: Report) -> None:
    """All steps, on fixed points."""
    parameters = list(system.solution.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for done in range(steps):
        loss = _step(optimizer, system, points, parameters)
        schedule.step()
        if (done + 1) % max(steps // 10, 1) == 0:
            report(f"Adam {done + 1}/{steps}: loss {float(loss):.2e}")


def quasi_newton(system: System, points: Mapping[str, Points]) -> Phase:
    """L-BFGS on fixed points; its cost are gradient evaluations, line searches included."""
    parameters = list(system.solution.parameters())
    optimizer = LBFGS(parameters, iterations=ITERATIONS)
    spent = 0

    def advance() -> Gone | None:
        nonlocal spent
        loss = float(_step(optimizer, system, points, parameters))
        before, spent = spent, optimizer.state[parameters[0]]["func_evals"]
        # A line search that takes so many has lost its way.
        return Gone(spent - before, loss) if spent - before <= 10 * ITERATIONS else None

    return Phase("L-BFGS", 3000, 300, advance)


def natural_gradient(system: System, interior: int, boundary: int, seed: int, force: bool = False) -> Phase | None:
    """Linearly implicit steps on all weights; its cost are steps.

    Args:
        system: what is solved; its solution is trained.
        interior, boundary: points of a step at most, before they are thinned to as many rows as ``interior``.
        seed: of the points.
        force: whether also where the Jacobian has to be found row by row, or does not fit the memory; None then else.
    """
    method = full_implicit(LinearlyImplicit())
    groups = method.groups(system.solution)
    parameters = [p for group in groups for p in group["params"]]
    optimizer, evaluator = method.optimizer(groups), Evaluator(system, parameters, {})
    each = components(system)
    stream = PointStream(
        system.terms, interior, boundary, seed, True, residual=RESIDUAL, rows=interior, components=each, first=FIRST
    )
    if not force and not affordable(evaluator, optimizer, stream.most):
        return None
    growth, step = Growth(stream.first), 0

    def advance() -> Gone | None:
        nonlocal step
        draw = stream.draw(step, growth.rows).to(parameters[0].device)
        step += 1
        try:
            evaluator.begin(stream.chosen(draw, evaluator.residuals))
            optimizer.step(evaluator)
        except NonFiniteError:
            evaluator.restore()
            return None
        loss = float(evaluator.first.total)
        growth.look_back(stream.most, loss, ended(optimizer))
        return Gone(1, loss)

    return Phase("Natural gradient", 40, 20, advance)


def affordable(evaluator: Evaluator, optimizer: ImplicitODELoRA, rows: int) -> bool:
    """Whether the Jacobian of every term comes from one sweep, and its linear algebra fits the memory."""
    few = draw_points(evaluator.system.terms, 8, 8, seed=0)
    few = {name: p.to(evaluator.parameters[0]) for name, p in few.items()}
    if not all(evaluator.sweep.paired(name, p) for name, p in few.items()):
        return False
    return optimizer.plan(rows).form != "cg"


def _step(optimizer: Optimizer, system: System, points: Mapping[str, Points], parameters: list[nn.Parameter]) -> Tensor:
    def closure() -> Tensor:
        loss = system.loss(points).total
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = g
        return loss.detach()

    return optimizer.step(closure)

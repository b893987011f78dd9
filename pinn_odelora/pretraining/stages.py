"""The phases of pretraining: ways to bring all weights of a network to the solution at the source parameter.

Adam, its learning rate falling by a cosine, finds the neighbourhood; from there a second phase has a long way to go
down a narrow valley:

* natural gradient: linearly implicit steps of the gradient flow of all weights with the second-order correction, on
  fresh points whose number grows (``optim.implicit``, ``growth``). Few and dear steps, tens to a hundred; their linear
  algebra is that of the rows, so that the width hardly matters;
* L-BFGS on fixed points, one gradient an evaluation, thousands of them: for networks whose Jacobian has no structure to
  be had from one sweep, or does not fit the memory.

The second phase ends at the target, at its budget, where it cannot go on, or when the error (the loss, where there is
no reference) has not fallen by a tenth for a while.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pinn_odelora.integrators.implicit import LinearlyImplicit
from pinn_odelora.linearisation import Sweep
from pinn_odelora.objective import Evaluator
from pinn_odelora.optim import ImplicitODELoRA
from pinn_odelora.optim.groups import single_tensors
from pinn_odelora.optim.lbfgs import LBFGS
from pinn_odelora.points import Points
from pinn_odelora.sampling.batch_size import Growth, ended
from pinn_odelora.sampling.sampler import PointStream
from pinn_odelora.selection.initial_rank import components
from pinn_odelora.system import System, draw_points

Report = Callable[[str], None]
ITERATIONS = 20
"""Of L-BFGS between two looks at the error."""
RESIDUAL, FIRST = 0.3, 125
"""As of ``points=residual``: the part of the points that follows the residual, and the rows of the first step."""
DEAR = 32
"""Trained numbers outside linear layers beyond which a Jacobian is too dear: each takes a reverse sweep of its own."""


class Leg(NamedTuple):
    """A part of a phase: its cost in the units of the phase's budget, and the loss on its points where it began."""

    cost: int
    began: float


class Phase(NamedTuple):
    """Something that can be advanced; None is returned where it cannot go on.

    ``patience`` is the cost within which the error has to fall by a tenth, ``every`` that between two reports.
    """

    name: str
    patience: int
    every: int
    advance: Callable[[], Leg | None]


def follow(phase: Phase, most: int, error: Callable[[], float], target: float, report: Report) -> None:
    """Advance a phase until it is over."""
    spent = reported = at = 0
    now = error()
    known = not math.isnan(now)
    best = now if known else math.inf
    while spent < most and not now <= target:
        leg = None if spent - at >= phase.patience else phase.advance()
        if leg is None:
            report(f"{phase.name} {spent}/{most}: no further progress")
            return
        spent += leg.cost
        now = error()
        figure = now if known else leg.began
        if figure < 0.9 * best:
            best, at = figure, spent
        if spent - reported >= phase.every:
            reported = spent
            report(f"{phase.name} {spent}/{most}: loss {leg.began:.2e}, relative L2 {now:.2e}")


def adam(system: System, points: Mapping[str, Points], steps: int, lr: float, report: Report) -> None:
    """All steps, on fixed points."""
    parameters = trained(system)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for done in range(steps):
        loss = _step(optimizer, system, points, parameters)
        schedule.step()
        if (done + 1) % max(steps // 10, 1) == 0:
            report(f"Adam {done + 1}/{steps}: loss {float(loss):.2e}")


def quasi_newton(system: System, points: Mapping[str, Points]) -> Phase:
    """L-BFGS on fixed points; its cost are gradient evaluations, line searches included."""
    parameters = trained(system)
    optimizer = LBFGS(parameters, iterations=ITERATIONS)
    spent = 0

    def advance() -> Leg | None:
        nonlocal spent
        loss = float(_step(optimizer, system, points, parameters))
        before, spent = spent, optimizer.state[parameters[0]]["func_evals"]
        # A line search that takes so many has lost its way.
        return Leg(spent - before, loss) if spent - before <= 10 * ITERATIONS else None

    return Phase("L-BFGS", 3000, 300, advance)


class NaturalGradient(NamedTuple):
    """The phase, why the network does not suit it (None if it does), and the way back to the last good weights."""

    phase: Phase
    unsuitable: Callable[[], str | None]
    restore: Callable[[], None]


def natural_gradient(system: System, interior: int, boundary: int, seed: int) -> NaturalGradient:
    """Linearly implicit steps on all weights; its cost are steps.

    Args:
        system: what is solved; its solution is trained.
        interior, boundary: points of a step at most; all terms and components together give at most ``interior`` rows.
        seed: of the points.
    """
    groups = single_tensors(system.solution)
    parameters = [p for group in groups for p in group["params"]]
    # From scratch momentum gains little: seconds to the target are the same within a third on six problems.
    evaluator, optimizer = Evaluator(system, parameters, {}), ImplicitODELoRA(groups, LinearlyImplicit(momentum=0.0))
    stream = PointStream(
        system.terms,
        interior,
        boundary,
        seed,
        fresh=True,
        dtype=parameters[0].dtype,
        residual=RESIDUAL,
        rows=interior,
        components=components(system),
        first=FIRST,
    )
    growth, numbers = Growth(stream.first), itertools.count()

    def advance() -> Leg:
        draw = stream.draw(next(numbers), growth.rows).to(parameters[0].device)
        evaluator.begin(stream.chosen(draw, evaluator.residuals))
        optimizer.step(evaluator)
        began = float(evaluator.first.total)
        growth.look_back(stream.most, began, ended(optimizer), enough=stream.enough)
        return Leg(1, began)

    phase = Phase("Natural gradient", 40, 20, advance)
    return NaturalGradient(phase, lambda: unsuitable(evaluator, optimizer, stream.most), evaluator.restore)


def unsuitable(evaluator: Evaluator, optimizer: ImplicitODELoRA, rows: int) -> str | None:
    """Why natural gradient would be too dear: its Jacobian is not had from one sweep, or does not fit the memory."""
    system = evaluator.system
    biases = {id(x.bias) for x in system.solution.modules() if isinstance(x, nn.Linear)}
    alone = sum(x.numel() for x in evaluator.variables.others.values() if id(x) not in biases)
    if alone > DEAR:
        return f"{alone} numbers are trained outside linear layers"
    few = draw_points(system.terms, 8, 8, seed=0)
    few = {name: p.to(evaluator.parameters[0]) for name, p in few.items()}
    apart = Sweep(System(system.problem, system.solution, system.extra, system.derivatives), *evaluator.variables)
    if not all(apart.paired(name, p) for name, p in few.items()):
        return "the network has no jet rules, or a term is coupled"
    form = optimizer.plan(rows).form
    return "the linear algebra of a step does not fit the memory" if form == "cg" else None


def trained(system: System) -> list[nn.Parameter]:
    return [p for p in system.solution.parameters() if p.requires_grad]


def _step(optimizer: Optimizer, system: System, points: Mapping[str, Points], parameters: list[nn.Parameter]) -> Tensor:
    def closure() -> Tensor:
        loss = system.loss(points).total
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True):
            p.grad = g
        return loss.detach()

    return optimizer.step(closure)

"""A network trained by Adam and natural gradient, as ``po.pretrain`` does, for so many CPU seconds."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from pinn_odelora import loop
from pinn_odelora.budget import Budget
from pinn_odelora.derivatives.field import Field
from pinn_odelora.formulation import Problem
from pinn_odelora.loop import Training
from pinn_odelora.pretraining import stages
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import System

ADAM_STEPS, ADAM_RATE, ADAM_PART = 100, 5e-3, 0.2
"""Steps of Adam, and the part of the time that they take at most."""
RESIDUALS, FIRST = 2000, 500
"""Of a step at most, twice as many as where one problem is solved, and of the first step."""


def train(system: System, seconds: float, seed: int = 0) -> None:
    """Train the network of a system in place; the step that passes the time is taken.

    Terms of full dimension share the points of a step, so that several problems at once cost what one costs.
    """
    start = time.process_time()
    interior = max(RESIDUALS // sum(term.where.interior for term in system.terms.values()), 1)
    boundary = max(interior // 5, 1)
    first = stages.adam(system, interior, boundary, seed, 0, ADAM_RATE, lambda line: None)
    _run(first, Budget(seconds=ADAM_PART * seconds, steps=ADAM_STEPS))
    training = stages.natural_gradient(system, RESIDUALS, boundary, seed).training
    points = Sampling(True, interior, boundary, stages.RESIDUAL, RESIDUALS, FIRST, best_iterate=False)
    training.sampler = Sampler(system.terms, points, {name: system.components(name) for name in system.terms}, seed)
    if (left := seconds - (time.process_time() - start)) > 0:
        _run(training, Budget(seconds=left))
    system.solution.zero_grad(set_to_none=True)


def _run(training: Training, budget: Budget) -> None:
    training.clock = time.process_time
    for _ in loop.steps(training, budget):
        pass


class Seen(Field):
    """A field of more coordinates or more components as the residual of one problem asks for it.

    Args:
        field: the whole.
        problem: names the coordinates and components that are seen.
        suffix: which the whole adds to the names of the components.
    """

    def __init__(self, field: Field, problem: Problem, suffix: str = "") -> None:
        super().__init__(field.points, problem.fields, problem.coords)
        self.field, self.suffix = field, suffix

    def derivative(self, field: str, along: str) -> Tensor:
        return self.field.derivative(field + self.suffix, along)

    def op(self, field: str, coefficients: Mapping[str, float | Tensor]) -> Tensor:
        return self.field.op(field + self.suffix, coefficients)

    def at(self, **columns: Tensor) -> Field:
        raise NotImplementedError("no case evaluates its solution at moved points")

"""A station: a member of the family that is solved on the low-rank manifold, starting from its neighbours.

From a start near the solution the linearly implicit scheme needs a few steps (``integrators.linearly_implicit``). They
end when the member stops changing as a function: with d_n = ‖u_n - u_{n-1}‖ / ‖u_n‖ at fixed probes,

    d_n ≤ τ and d_{n-1} ≤ τ .

Every step has points of its own, so that d_n holds the noise of the points, which is what the error of a converged
member consists of. The points over-determine the step: R = 2½ P residuals for P coordinates, where that is affordable,
and otherwise few enough to stay clear of the interpolation threshold.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, linalg

from pinn_odelora import loop
from pinn_odelora.budget import Budget
from pinn_odelora.families.parametric import Parametric, Weights
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.loop import Training
from pinn_odelora.optim.methods import odelora
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling

STEPS = 30
"""Most steps of a station."""
OVER, MOST, FEW = 2.5, 4000, 1000
"""Residuals for each coordinate; how many that may be at most; and how many are taken where it would be more."""
BOUNDARY = 0.25
"""Points of a condition for each interior one."""
DAMPING = 1e-11
"""1/h of the first step, relative to the largest entry of JᵀJ: far below the default, since the start is close, and
what few steps do not reach are the soft directions. Chosen among 1e-6, 1e-9, 1e-11 and 1e-12 on burgers, convection and
reaction; at 1e-12 convection has single answers that are lost."""


@dataclass(frozen=True)
class Station:
    """A solved member.

    Attributes:
        values: its parameters.
        weights: what is trained.
        loss: on the points of its last step.
        change: d_n of that step.
        steps, gradient_evals, seconds: cost.
        rounds: how many times it was solved further.
        settled: whether that no longer helps.
        failure: why it could not be solved; empty if it was.
    """

    values: dict[str, float]
    weights: dict[str, Tensor] = field(repr=False)
    loss: float
    change: float
    steps: int
    gradient_evals: int
    seconds: float
    rounds: int = 0
    settled: bool = False
    failure: str = ""


def residuals_of_a_step(dimension: int) -> int:
    """R for P coordinates."""
    wanted = math.ceil(OVER * dimension)
    return wanted if wanted <= MOST else FEW


def sampling(parametric: Parametric, residuals: int | None = None) -> Sampling:
    """The points of a step: new ones each time, a third of them where the residual is large.

    Args:
        parametric: the residual system.
        residuals: about how many; absent, as many as a station takes.
    """
    inner, outer = parametric.residuals_at_a_point
    residuals = residuals or residuals_of_a_step(parametric.dimension)
    interior = max(1, round(residuals / (inner + BOUNDARY * outer)))
    return Sampling(
        interior=interior,
        boundary=max(1, round(BOUNDARY * interior)),
        batch_size=None,
        initial_batch_size=None,
    )


def solve(
    parametric: Parametric, start: Weights, values: dict[str, float], tolerance: float, seed: int, steps: int = STEPS
) -> Station:
    """Solve a member.

    Args:
        parametric: the residual system; the member is in its network afterwards.
        start: weights near its own.
        values: its parameters.
        tolerance: τ.
        seed: of its points.
        steps: at most.
    """
    began = time.perf_counter()
    parametric.place(start, values)
    method = odelora(LinearlyImplicit(initial_damping=DAMPING))
    sampler = Sampler(parametric.system.terms, sampling(parametric), parametric.components, seed)
    training = Training(parametric.new_objective(), method, method.optimizer(parametric.groups), sampler)
    before, changes = parametric.function(), [math.inf]
    for _ in loop.steps(training, Budget(steps=steps)):
        after = parametric.function()
        changes.append(distance(before, after))
        before = after
        if max(changes[-2:]) <= tolerance:
            break
    loop.conclude(training)
    progress = training.progress
    return Station(
        dict(values),
        parametric.weights(),
        progress.loss,
        changes[-1],
        progress.step,
        progress.gradient_evals,
        time.perf_counter() - began,
        failure=str(training.failure or ""),
    )


def distance(u: Tensor, v: Tensor) -> float:
    """‖u - v‖ / ‖v‖ over all points and fields."""
    return float(linalg.vector_norm(u - v) / linalg.vector_norm(v).clamp(min=torch.finfo(v.dtype).tiny))

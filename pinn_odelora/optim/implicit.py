"""The projected flow on the manifold of rank-r products, by a linearly implicit scheme, as a ``torch.optim.Optimizer``.

Where an explicit scheme asks for gradients, an implicit one asks for the rows r and their Jacobian. So ``step`` takes a
closure that offers both (``Surroundings``); within a training run the evaluator of the run is one.

The metric says which flow it is. ``weights``: the product moves by the projection of full fine-tuning's gradient flow,
which is ODELoRA; coordinates are those of the tangent space at the product, the factors are balanced after every step.
``factors``: the flow of plain LoRA, dA/dt = -∂L/∂A, dB/dt = -∂L/∂B, whose coordinates are the factors themselves.
Single tensors ride along with the flat metric, coefficients above a bound by their logarithm; see ``variables``. With
nothing but whole weights it is natural gradient descent on all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.errors import unknown
from pinn_odelora.integrators import ROS2, LinearlyImplicit
from pinn_odelora.integrators.implicit import Local
from pinn_odelora.linalg.plan import Plan, Shape, plan
from pinn_odelora.linearisation import Coordinates, Linearisation
from pinn_odelora.manifolds.variables import variable
from pinn_odelora.optim.groups import at_rank, forget, unchanged_on_failure
from pinn_odelora.optim.objective import Surroundings

log = logging.getLogger(__name__)
METRICS = ("weights", "factors")
SWEPT = 0.25
"""The part of the memory that the sweep may take; the rest is for J."""


class Point(dict[str, Any]):
    """Variables by name, and the norm of what retractions left out on the way here; None where none could."""

    discarded: float | None = None


class ImplicitODELoRA(Optimizer):
    """Follow a flow on LoRA pairs, and on what rides along, by a linearly implicit scheme.

    Args:
        groups: parameter groups of one pair each, as ``factor_pairs`` gives, or of one tensor each, named as the
            linearisation names it; ``above`` is the bound of a coefficient.
        integrator: the scheme.
        metric: ``weights``, which is ODELoRA, or ``factors``, the flow of plain LoRA.

    Raises:
        InputError: if the metric is unknown.
        FloatingPointError: from ``step``, when rows or Jacobian are not finite at the current point.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        integrator: LinearlyImplicit | ROS2 | None = None,
        metric: Literal["weights", "factors"] = "weights",
    ) -> None:
        if metric not in METRICS:
            raise unknown("integrator metric", metric, METRICS)
        self.integrator = integrator or LinearlyImplicit()
        self.metric = metric
        defaults = {"lr": self.integrator.h, "scale": 1.0, "name": "", "above": None, "memory": {}}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Surroundings) -> Tensor:
        chart = Chart(self.param_groups, self.metric, closure, self.integrator.memory)
        with unchanged_on_failure(self.param_groups):
            taken = self.integrator.step(chart, chart.start(), self.param_groups[0]["memory"])
            chart.place(taken.y)
        said = {"last_h": taken.h, "ended": taken.loss, "discarded": taken.y.discarded, **chart.said}
        if taken.way is not None:
            said |= {"bits": taken.way.bits, "fallback": taken.way.fallback}
        for group in self.param_groups:
            group["memory"] = {**taken.memory, **said}
        return chart.loss

    def rank_changed(self) -> None:
        """The pairs have other shapes. The damping goes on, and the last step where it is an element of the space
        around; as a step of the factors it belongs to those that there were, and is forgotten.
        """
        if self.metric == "factors":
            forget(self.param_groups, "last")

    def plan(self, rows: int, rank: int | None = None) -> Plan:
        """The linear algebra that steps with so many rows will use, with pairs of that rank if it is given."""
        groups = self.param_groups if rank is None else [at_rank(group, rank) for group in self.param_groups]
        return Chart(groups, self.metric, None, self.integrator.memory).plan(rows)


class Chart:
    """Variables as a point of a product of spaces, and the system around it; an ``integrators.implicit.Residual``.

    Args:
        groups: the variables.
        metric: that of pairs.
        closure: rows and Jacobian at the parameters as they are.
        memory: bytes that the linear algebra of a step may take.
    """

    def __init__(self, groups: list[dict[str, Any]], metric: str, closure: Surroundings | None, memory: float) -> None:
        self.groups = {group["name"]: group for group in groups}
        self.variables = {name: variable(group, metric) for name, group in self.groups.items()}
        self.closure = closure
        self.memory = memory
        self.said: dict[str, Any] = {}
        self.loss: Tensor | None = None

    def start(self) -> Point:
        """The point where the parameters are."""
        return Point({name: variable.start() for name, variable in self.variables.items()})

    def place(self, y: Point) -> None:
        for name, group in self.groups.items():
            for p, x in zip(group["params"], self.variables[name].values(y[name]), strict=True):
                p.copy_(x)

    def rows(self, y: Point) -> Tensor:
        self.place(y)
        return self.closure.rows().double()

    def linearise(self, y: Point) -> Local:
        self.place(y)
        linearised = self.closure.linearise(SWEPT * self.memory)
        if self.loss is None:
            self.loss = linearised.loss
        return self.around(y, linearised)

    def plan(self, rows: int) -> Plan:
        """The linear algebra of steps with so many rows."""
        columns = sum(variable.dimension for variable in self.variables.values())
        matrices = [p for group in self.groups.values() for p in group["params"] if p.ndim == 2]
        pairs = any(len(group["params"]) == 2 for group in self.groups.values())
        stretched = any(group["above"] is not None for group in self.groups.values())
        return plan(Shape(rows, columns, sum(sum(p.shape) for p in matrices), not (pairs or stretched)), self.memory)

    def around(self, y: Point, linearised: Linearisation) -> Local:
        """The system around y from its linearisation in effective weights."""
        names = [*linearised.layers, *linearised.others]
        frames = {name: self.variables[name].frame(y[name]) for name in names}
        sizes = [self.variables[name].dimension for name in names]
        form = self.plan(linearised.rows).form
        given = {name: frame for name, frame in frames.items() if frame is not None}
        kept = (1 - SWEPT) * self.memory
        J = Coordinates(linearised, given, kept, kernel=form == "pairs", restore=lambda: self.place(y))
        self.said |= {"form": form, "columns": sum(sizes)}

        def each(z: Tensor) -> Iterable[tuple[str, Tensor]]:
            return zip(names, z.split(sizes), strict=True)

        def move(z: Tensor) -> Point:
            moved = {name: self.variables[name].move(y[name], frames[name], part) for name, part in each(z)}
            point = Point({name: to.point for name, to in moved.items()})
            lost = [to.discarded for to in moved.values() if to.discarded is not None]
            if lost:
                point.discarded = float(torch.stack(lost).norm())
            return point

        def coordinates(D: dict[str, Tensor]) -> Tensor:
            here = linearised.r.device
            return torch.cat([self.variables[name].coordinates(frames[name], D[name].to(here)) for name in names])

        return Local(
            linearised.r.double(),
            J.dense() if form in ("normal", "kernel") else J,
            move,
            vector=lambda z: {name: self.variables[name].vector(frames[name], part) for name, part in each(z)},
            coordinates=coordinates,
        )

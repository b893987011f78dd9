"""The projected flow on the manifold of rank-r products, by a linearly implicit scheme, as a ``torch.optim.Optimizer``.

Where an explicit scheme asks for gradients, an implicit one asks for the rows r and their Jacobian. So ``step`` takes a
closure that offers both (``Surroundings``); within a training run the evaluator of the run is one.

The metric says which flow it is. ``weights``: the product moves by the projection of full fine-tuning's gradient flow,
which is ODELoRA; coordinates are those of the tangent space at the product, the factors are balanced after every step.
``factors``: the flow of plain LoRA, dA/dt = -∂L/∂A, dB/dt = -∂L/∂B, whose coordinates are the factors themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.errors import unknown
from pinn_odelora.integrators import ROS2, LinearlyImplicit
from pinn_odelora.integrators.implicit import Local
from pinn_odelora.linearisation import Linearisation
from pinn_odelora.lowrank.layer import Factors
from pinn_odelora.lowrank.manifold import LowRank, low_rank, retract
from pinn_odelora.lowrank.tangent import FactorFrame, Frame
from pinn_odelora.optim.groups import unchanged_on_failure
from pinn_odelora.optim.surroundings import Surroundings

Products = dict[str, LowRank]
Pairs = dict[str, Factors]


class ImplicitODELoRA(Optimizer):
    """Follow a flow on LoRA pairs by a linearly implicit scheme.

    Args:
        pairs: parameter groups of one pair each, as ``factor_pairs`` gives.
        integrator: the scheme.
        metric: ``weights``, which is ODELoRA, or ``factors``, the flow of plain LoRA.

    Raises:
        InputError: if the metric is unknown.
        FloatingPointError: from ``step``, when rows or Jacobian are not finite at the current point.
    """

    def __init__(
        self,
        pairs: Iterable[dict[str, Any]],
        integrator: LinearlyImplicit | ROS2 | None = None,
        metric: Literal["weights", "factors"] = "weights",
    ) -> None:
        if metric not in CHARTS:
            raise unknown("integrator metric", metric, CHARTS)
        self.integrator = integrator or LinearlyImplicit()
        self.chart = CHARTS[metric]
        super().__init__(pairs, {"lr": self.integrator.h, "scale": 1.0, "name": "", "memory": {}})

    @torch.no_grad()
    def step(self, closure: Surroundings) -> Tensor:
        chart = self.chart(self.param_groups, closure)
        with unchanged_on_failure(self.param_groups):
            taken = self.integrator.step(chart, chart.start(), self.param_groups[0]["memory"])
            chart.place(taken.y)
        for group in self.param_groups:
            group["memory"] = {**taken.memory, "last_h": taken.h, **chart.said}
        return chart.loss


class Chart(ABC):
    """Pairs as points of a space, and the system around one; implements ``integrators.implicit.Residual``.

    Args:
        groups: the pairs.
        closure: rows and Jacobian at the parameters as they are.
    """

    def __init__(self, groups: list[dict[str, Any]], closure: Surroundings) -> None:
        self.groups = {group["name"]: group for group in groups}
        self.closure = closure
        self.said: dict[str, float] = {}
        self.loss: Tensor | None = None

    @abstractmethod
    def start(self) -> Any:
        """The point where the parameters are."""

    @abstractmethod
    def pair(self, y: Any, name: str) -> Factors:
        """The factors of one pair at y."""

    @abstractmethod
    def around(self, y: Any, linearised: Linearisation) -> Local:
        """The system around y from its linearisation in effective weights."""

    def place(self, y: Any) -> None:
        for name, group in self.groups.items():
            for p, x in zip(group["params"], self.pair(y, name), strict=True):
                p.copy_(x)

    def rows(self, y: Any) -> Tensor:
        self.place(y)
        return self.closure.rows().double()

    def linearise(self, y: Any) -> Local:
        self.place(y)
        linearised = self.closure.linearise()
        if self.loss is None:
            self.loss = linearised.loss
        return self.around(y, linearised)


class Manifold(Chart):
    """The fixed-rank manifold, in tangent coordinates."""

    def start(self) -> Products:
        return {n: low_rank(Factors(*group["params"]), group["scale"]) for n, group in self.groups.items()}

    def pair(self, y: Products, name: str) -> Factors:
        return y[name].factors(self.groups[name]["scale"])

    def around(self, y: Products, linearised: Linearisation) -> Local:
        frames = {name: y[name].frame for name in linearised.layers}
        J = linearised.columns({name: frame.to(linearised.r) for name, frame in frames.items()})
        sizes = [frame.dimension for frame in frames.values()]

        def each(z: Tensor) -> Iterator[tuple[str, Frame, Tensor]]:
            return ((name, frames[name], part) for name, part in zip(frames, z.split(sizes), strict=True))

        def move(z: Tensor) -> Products:
            moved = {name: retract(y[name], frame, part) for name, frame, part in each(z)}
            self.said = {"discarded": float(torch.stack([to.discarded for to in moved.values()]).norm())}
            return {name: to.point for name, to in moved.items()}

        return Local(
            linearised.r.double(),
            J.double(),
            move,
            vector=lambda z: {name: frame.vector(part) for name, frame, part in each(z)},
            coordinates=lambda D: torch.cat([frame.coordinates(D[name]) for name, frame in frames.items()]),
        )


class FactorSpace(Chart):
    """The factors as they are: a flat space, in which a product has many points."""

    def start(self) -> Pairs:
        return {n: Factors(*(p.detach().double().clone() for p in group["params"])) for n, group in self.groups.items()}

    def pair(self, y: Pairs, name: str) -> Factors:
        return y[name]

    def around(self, y: Pairs, linearised: Linearisation) -> Local:
        frames = {name: FactorFrame(y[name], self.groups[name]["scale"]) for name in linearised.layers}
        J = linearised.columns({name: frame.to(linearised.r) for name, frame in frames.items()})
        sizes = [frame.dimension for frame in frames.values()]

        def move(z: Tensor) -> Pairs:
            moved = zip(frames.items(), z.split(sizes), strict=True)
            return {name: frame.moved(part) for (name, frame), part in moved}

        return Local(linearised.r.double(), J.double(), move, vector=lambda z: z, coordinates=lambda z: z)


CHARTS = {"weights": Manifold, "factors": FactorSpace}

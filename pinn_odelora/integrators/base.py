"""The protocol of all integrators: explicit, stabilised and linearly implicit schemes.

An integrator moves a point y along a flow dy/dt = f(y):

    state = scheme.init()
    y, state, report = scheme.step(flow, y, state, h)

It has no internal state. The state passed from step to step is a dataclass of numbers and tensors, which can be saved
as it is; telemetry is a ``Report``. An explicit scheme uses the velocity of the flow. A linearly implicit one needs a
loss that is a sum of squares, and uses the residuals and their linearisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pinn_odelora.linalg.damped import Operator, SolverUsed
from pinn_odelora.manifolds.space import FLAT, Point, Slope, Space


class Velocity(NamedTuple):
    """f(y), and the loss at y, NaN if unknown."""

    slope: Slope
    loss: float = math.nan


class Local(NamedTuple):
    """The local model of a least-squares loss ½‖r‖² at a point y.

    Attributes:
        r: residuals, (R,).
        J: their Jacobian in orthonormal coordinates of the tangent space, (R, P), or an operator if it is not formed.
        retract: z (P,) -> the point R_y(z).
        vector: z (P,) -> the tangent vector as an element of the ambient space.
        coordinates: an element of the ambient space -> coordinates (P,) of its projection on the tangent space at y.
    """

    r: Tensor
    J: Tensor | Operator
    retract: Callable[[Tensor], Any]
    vector: Callable[[Tensor], Any]
    coordinates: Callable[[Any], Tensor]


class Flow(Protocol):
    """A velocity field on a space."""

    space: Space

    def velocity(self, y: Point) -> Velocity:
        """f(y), with the loss at y.

        Raises:
            FloatingPointError: if it is not finite; the error control then tries a smaller h.
        """


class ResidualFlow(Protocol):
    """The gradient flow of ½‖r‖² on a manifold, as used by linearly implicit schemes."""

    def residuals(self, y: Any) -> Tensor:
        """r at y, (R,); entries may be NaN or infinite."""

    def linearise(self, y: Any) -> Local:
        """The local model at y."""


@dataclass(frozen=True)
class Field:
    """A flow given by a plain function, without a loss.

    Args:
        function: y -> f(y), points and slopes as in ``space``.
        space: the space of y; lists of tensors by default.
    """

    function: Callable[[Point], Slope]
    space: Space = field(default=FLAT)

    def velocity(self, y: Point) -> Velocity:
        """f(y); the loss is NaN.

        Raises:
            FloatingPointError: if the slope is not finite.
        """
        slope = self.function(y)
        if not all(bool(torch.isfinite(x).all()) for x in self.space.entries(slope)):
            raise FloatingPointError("The velocity is NaN or infinite.")
        return Velocity(slope)


@dataclass(frozen=True)
class Report:
    """Telemetry of a step.

    Attributes:
        h: the step size, in units of flow time; the learning rate of a method without a flow.
        loss: at the start of the step, on the points of the step; NaN if unknown.
        loss_after: at the end of the step, on the same points; None if the scheme does not evaluate it.
        rejected: number of rejected trial steps.
        corrected: whether the second-order correction was used.
        discarded: Frobenius norm of the part discarded by truncation to rank r; None without truncation.
        solver: how the linear systems were solved; None for an explicit scheme.
        dimension: P, the number of coordinates of an implicit step; 0 for an explicit scheme.
        form: the planned form of its linear algebra, see ``linalg.plan``; None for an explicit scheme.
    """

    h: float = math.nan
    loss: float = math.nan
    loss_after: float | None = None
    rejected: int = 0
    corrected: bool = False
    discarded: float | None = None
    solver: SolverUsed | None = None
    dimension: int = 0
    form: str | None = None


class Step(NamedTuple):
    """An accepted step: the point reached, the state for the next step, and the report."""

    y: Any
    state: Any
    report: Report


class Integrator(Protocol):
    """A time discretisation; see the module's docstring.

    Attributes:
        h: the step size; None for adaptive steps.
        stages: evaluations of the velocity in a step of fixed size.
    """

    h: float | None

    @property
    def linearises(self) -> bool:
        """Whether steps need residuals and their Jacobian (``ResidualFlow``)."""

    def init(self) -> Any:
        """The state before the first step, a dataclass; ``dataclasses.replace(init(), **vars(state))`` is ``state``."""

    def step(self, flow: Any, y: Any, state: Any, h: float | None = None) -> Step:
        """One accepted step from y, which is not modified.

        Args:
            flow: a ``Flow``, or a ``ResidualFlow`` if the scheme linearises.
            y: the starting point.
            state: the state returned by the last step, or ``init()``.
            h: the step size; None for the scheme's own ``h``, or for an adaptive step if that is None, too.

        Raises:
            FloatingPointError: if the flow is not finite at y or at every trial step.
        """

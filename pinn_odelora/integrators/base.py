"""What every integrator is: one protocol for explicit, stabilised and linearly implicit schemes.

An integrator moves a point y along a flow dy/dt = f(y):

    state = scheme.init()
    y, state, report = scheme.step(flow, y, state, h)

It holds no state of its own. What a step hands to the next one is a ``State``, a dataclass of numbers and tensors that
can be saved as it is; what it tells the outside is a ``Report``. A flow offers its velocity, and where the loss is a
sum of squares also the residuals and their linearisation; an explicit scheme asks for the velocity alone.
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
    """f(y), and the loss that the flow decreases at y; NaN where it is not known."""

    slope: Slope
    loss: float = math.nan


class Local(NamedTuple):
    """A least-squares loss ½‖r‖² around a point y.

    Attributes:
        r: residuals, (R,).
        J: their Jacobian in orthonormal coordinates of the tangent space, (R, P); an operator where it is not formed.
        retract: z (P,) -> the point R_y(z).
        vector: z (P,) -> the tangent vector as an element of the ambient space.
        coordinates: such an element -> the coordinates of its projection on the tangent space at y.
    """

    r: Tensor
    J: Tensor | Operator
    retract: Callable[[Tensor], Any]
    vector: Callable[[Tensor], Any]
    coordinates: Callable[[Any], Tensor]


class Flow(Protocol):
    """A velocity field on a space.

    ``velocity`` raises ``FloatingPointError`` where the field is not finite: an error control then tries a smaller h.
    """

    space: Space

    def velocity(self, y: Point) -> Velocity: ...


class ResidualFlow(Protocol):
    """The gradient flow of ½‖r‖² on a manifold, as a scheme that linearises asks for it."""

    def residuals(self, y: Any) -> Tensor:
        """r at y, (R,), with entries that are not finite where it has no value."""

    def linearise(self, y: Any) -> Local:
        """The loss around y."""


@dataclass(frozen=True)
class Field:
    """A flow from a plain function y -> slope, its loss not known."""

    function: Callable[[Point], Slope]
    space: Space = field(default=FLAT)

    def velocity(self, y: Point) -> Velocity:
        slope = self.function(y)
        if not all(bool(torch.isfinite(x).all()) for x in self.space.entries(slope)):
            raise FloatingPointError("The velocity is NaN or infinite.")
        return Velocity(slope)


@dataclass(frozen=True)
class Report:
    """What a step says of itself.

    Attributes:
        h: the step size taken, in units of flow time; of a method without a flow its learning rate.
        loss: where the step started, on the step's own points; NaN where it is not known.
        loss_after: where it ended, on the same points; None where the scheme has not evaluated it.
        rejected: trial steps that were refused before this one.
        corrected: whether the second-order correction was used.
        discarded: Frobenius norm of what the retraction to rank r left out; None for a step that needed none.
        solver: how the linear systems were solved; None for an explicit scheme.
        dimension: P, coordinates that an implicit step solved for; 0 for an explicit scheme.
        form: of its linear algebra as planned, see ``linalg.plan``; None for an explicit scheme.
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
    """A step taken: the point reached, the state for the next step, and the report."""

    y: Any
    state: Any
    report: Report


class Integrator(Protocol):
    """A time discretisation; see the file's docstring.

    Attributes:
        h: the step size, or None where the scheme chooses it.
        linearises: whether steps ask for residuals and their Jacobian (``ResidualFlow``).
        stages: evaluations of the velocity in a step of given size.
    """

    h: float | None

    @property
    def linearises(self) -> bool: ...

    def init(self) -> Any:
        """The state before the first step."""

    def restored(self, saved: dict[str, Any]) -> Any:
        """The state that ``vars(state)`` was."""

    def step(self, flow: Any, y: Any, state: Any, h: float | None = None) -> Step:
        """One accepted step from y, which is not changed.

        Args:
            flow: the field; ``ResidualFlow`` where the scheme linearises.
            y: where the step starts.
            state: what the last step returned, or ``init()``.
            h: the step size; None lets the scheme choose, by its own ``h`` first.

        Raises:
            FloatingPointError: if the field at y itself, or at every trial step, is not finite.
        """

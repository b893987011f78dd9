"""The variables of an optimiser as a point of a space, and the flow there: what an integrator is given.

``FactorChart``     the factors A and B and all other tensors as a point of a flat space, with a velocity field on
                    factors (``flows``). It asks for gradients by the factors alone, so any torch closure serves.
``ManifoldChart``   the product of every pair as a point of the manifold of rank-r matrices, other tensors beside it,
                    with the gradient flow of ½‖r‖²: explicit schemes get projected velocities, schemes that linearise
                    get the residuals and their Jacobian in coordinates of the tangent space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.flows.gram import SINGULAR
from pinn_odelora.flows.start import is_zero, zero_flow
from pinn_odelora.integrators.base import Local, Velocity
from pinn_odelora.linalg.plan import Plan, Shape, plan
from pinn_odelora.linearisation import Coordinates, Linearisation
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import LowRank
from pinn_odelora.manifolds.projected import Element, FixedRank, project, tangent
from pinn_odelora.manifolds.space import FLAT
from pinn_odelora.manifolds.variables import Variable
from pinn_odelora.optim.groups import Group, is_pair

SWEPT = 0.25
"""The part of the memory that the linearisation may take; the rest is for J."""

FactorFlow = Callable[[Factors, Factors, float], Factors]
"""``flow(y, g, scale)``: the velocity at factors y with gradients g; pure, so that every stage sees the same field."""


@runtime_checkable
class LeastSquares(Protocol):
    """A loss ½‖r‖² at the parameters as they are when it is asked; ``pinn_odelora.Objective`` is one."""

    def __call__(self) -> Tensor:
        """The loss; the gradients of the parameters are set."""

    def weight_gradients(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and by name G = ∂L/∂W (m, n) for the effective weight of every pair, ∂L/∂x for other tensors."""

    def linearise(self, memory: float) -> Linearisation:
        """r and its Jacobian with respect to the effective weight of every pair and to every other tensor, by name.

        Args:
            memory: bytes that the linearisation may take.
        """

    def residuals(self) -> Tensor:
        """r alone, (R,)."""


def check_finite(loss: float, slopes: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse a velocity that is not finite.

    Raises:
        FloatingPointError: naming the loss, or the parameter group whose gradient it is.
    """
    if math.isinf(loss):
        raise FloatingPointError("The loss is infinite.")
    # One number that is finite only if all are: one host read instead of one for each tensor.
    if not slopes or math.isfinite(float(sum(x.detach().sum().double() for x in slopes))):
        return
    for name, x in zip(names, slopes, strict=True):
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(f"The gradient of {name or 'a parameter'} is NaN or infinite.")


class FactorChart:
    """Factors and other tensors in a flat space; an ``integrators.base.Flow`` whose points are lists of tensors.

    Args:
        groups: parameter groups of one pair or one tensor each.
        closure: evaluates the loss and leaves gradients; None uses those that are there.
        flow: the velocity of a pair.
        speeds: of each group, the part of the flow's time that passes for it.
    """

    space = FLAT

    def __init__(
        self, groups: list[Group], closure: Callable[[], Tensor] | None, flow: FactorFlow, speeds: Sequence[float]
    ) -> None:
        self.groups = groups
        self.closure = closure
        self.flow = flow
        self.speeds = speeds
        self.places: list[slice] = []
        self.zero_start = False
        self.losses: list[Tensor] = []
        for group in groups:
            first = self.places[-1].stop if self.places else 0
            self.places.append(slice(first, first + len(group["params"])))

    def place(self, y: list[Tensor]) -> None:
        for group, at in zip(self.groups, self.places, strict=True):
            for p, x in zip(group["params"], y[at], strict=True):
                p.copy_(x)

    def velocity(self, y: list[Tensor]) -> Velocity:
        self.place(y)
        if self.closure is not None:
            with torch.enable_grad():
                self.losses.append(self.closure())
        loss = float(self.losses[-1]) if self.losses else math.nan
        if self.losses and math.isnan(loss):
            raise FloatingPointError("The loss is NaN.")
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for g in self.groups for p in g["params"]]
        names = [str(group["name"]) for group in self.groups for _ in group["params"]]
        check_finite(loss, gradients, names)
        gradients = [g.to(x.dtype) for g, x in zip(gradients, y, strict=True)]
        return Velocity(self._slopes(y, gradients), loss)

    def _slopes(self, y: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Minus the gradient of single tensors, the flow of pairs; pairs of one shape and scale in one batch."""
        slopes = [-g for g in gradients]
        batches: dict[Any, list[int]] = {}
        for i, (group, at) in enumerate(zip(self.groups, self.places, strict=True)):
            if not is_pair(group):
                continue
            A, B = y[at]
            zero = self.zero_start and is_zero(Factors(A, B))
            key = (A.shape, B.shape, A.dtype, A.device, group["scale"], i if zero else -1)
            batches.setdefault(key, []).append(i)
        for (*_, scale, zero), members in batches.items():
            of = lambda state, k, members=members: torch.stack([state[self.places[i]][k] for i in members])
            point, g = (Factors(of(state, 0), of(state, 1)) for state in (y, gradients))
            dA, dB = self._named(members, point, g, scale, zero >= 0)
            for j, i in enumerate(members):
                slopes[self.places[i]] = [dA[j], dB[j]]
        return [
            x if speed == 1 else speed * x
            for at, speed in zip(self.places, self.speeds, strict=True)
            for x in slopes[at]
        ]

    def _named(self, members: list[int], point: Factors, g: Factors, scale: float, zero: bool) -> Factors:
        """The flow of a batch, with the layers' names where it refuses."""
        try:
            if zero:
                found = zero_flow(Factors(point.A[0], point.B[0]), Factors(g.A[0], g.B[0]), scale)
                return Factors(found.A[None], found.B[None])
            return self.flow(point, g, scale)
        except (InputError, FloatingPointError) as error:
            names = ", ".join(str(self.groups[i]["name"]) for i in members)
            kind = InputError if isinstance(error, InputError) else FloatingPointError
            raise kind(f"In {names}: {error}.") from None


class Reached(list[Any]):
    """A point, one entry for each group, and the norm of what retractions left out on the way; None where none
    could."""

    discarded: float | None = None


class ManifoldChart:
    """A product of manifolds, and the gradient flow of a loss there.

    It is a ``Flow`` for explicit schemes and, with a ``LeastSquares`` for closure, a ``ResidualFlow`` for those that
    linearise. A point is a list with one entry for each group: ``LowRank``, ``Factors`` or a tensor.

    Args:
        groups: parameter groups of one pair or one tensor each.
        variables: what each group is, by name.
        closure: the loss; a ``LeastSquares`` for schemes that linearise.
        memory: bytes that the linear algebra of a step may take.
        speeds: as in ``FactorChart``; for explicit schemes.
    """

    def __init__(
        self,
        groups: list[Group],
        variables: dict[str, Variable],
        closure: Callable[[], Tensor] | None,
        memory: float = math.inf,
        speeds: Sequence[float] = (),
    ) -> None:
        self.groups = {group["name"]: group for group in groups}
        self.variables = variables
        self.closure = closure
        self.memory = memory
        self.speeds = speeds or [1.0] * len(groups)
        self.discarded: list[Tensor] = []
        self.space = FixedRank(self.discarded)
        self.form: str | None = None
        self.losses: list[Tensor] = []

    def start(self) -> list[Any]:
        """The point where the parameters are."""
        return [variable.start() for variable in self.variables.values()]

    def place(self, y: list[Any]) -> None:
        for group, variable, x in zip(self.groups.values(), self.variables.values(), y, strict=True):
            for p, value in zip(group["params"], variable.values(x), strict=True):
                p.copy_(value)

    def velocity(self, y: list[Any]) -> Velocity:
        """P_Y(-G) for pairs, minus the gradient for other tensors."""
        self.place(y)
        if isinstance(self.closure, LeastSquares):
            loss, G = self.closure.weight_gradients()
            downhill = [-G[name].double() for name in self.groups]
            slopes = [project(x, D) if isinstance(x, LowRank) else D for x, D in zip(y, downhill, strict=True)]
        else:
            with torch.enable_grad():
                loss = self.closure()
            slopes = [self._slope(group, x) for group, x in zip(self.groups.values(), y, strict=True)]
        self.losses.append(loss)
        if math.isnan(float(loss)):
            raise FloatingPointError("The loss is NaN.")
        check_finite(float(loss), *self._numbers(slopes))
        moving = zip(slopes, self.speeds, strict=True)
        return Velocity([x if speed == 1 else _faster(x, speed) for x, speed in moving], float(loss))

    def _numbers(self, slopes: list[Element]) -> tuple[list[Tensor], list[str]]:
        flat = [(name, part) for name, x in zip(self.groups, slopes, strict=True) for part in _tensors(x)]
        return [x for _, x in flat], [name for name, _ in flat]

    def _slope(self, group: Group, y: Any) -> Element:
        """The projected velocity from gradients by the factors: UᵀG = g_A/√(sσ) and G Vᵀ = g_B/√(sσ) for the balanced
        pair that stands for y.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]]
        if not isinstance(y, LowRank):
            return -gradients[0].double()
        root = torch.sqrt(group["scale"] * y.sigma)
        if not bool(y.sigma[-1] > SINGULAR**0.5 * y.sigma[0]):
            raise InputError(
                f"In {group['name']}: the product has lost rank, so that gradients of its factors do not give that of "
                "the product; start from factors of full rank, choose a smaller rank, or pass an objective."
            )
        g_A, g_B = (g.double() for g in gradients)
        return tangent(y, -g_A / root[:, None], -g_B / root)

    def residuals(self, y: list[Any]) -> Tensor:
        self.place(y)
        return self.closure.residuals().double()

    def linearise(self, y: list[Any]) -> Local:
        self.place(y)
        linearised = self.closure.linearise(SWEPT * self.memory)
        self.losses.append(linearised.loss)
        return self.around(y, linearised)

    def plan(self, residuals: int) -> Plan:
        """The linear algebra of steps with so many residuals."""
        columns = sum(variable.dimension for variable in self.variables.values())
        matrices = [p for group in self.groups.values() for p in group["params"] if p.ndim == 2]
        pairs = any(is_pair(group) for group in self.groups.values())
        stretched = any(group["above"] is not None for group in self.groups.values())
        shape = Shape(residuals, columns, sum(sum(p.shape) for p in matrices), not (pairs or stretched))
        return plan(shape, self.memory)

    def around(self, y: list[Any], linearised: Linearisation) -> Local:
        """The loss around y from its linearisation in effective weights."""
        names = [*linearised.layers, *linearised.others]
        point = dict(zip(self.groups, y, strict=True))
        frames = {name: self.variables[name].frame(point[name]) for name in names}
        sizes = [self.variables[name].dimension for name in names]
        self.form = form = self.plan(len(linearised.r)).form
        given = {name: frame for name, frame in frames.items() if frame is not None}
        kept = (1 - SWEPT) * self.memory
        J = Coordinates(linearised, given, kept, kernel=form == "pairs", restore=lambda: self.place(y))

        def each(z: Tensor) -> Iterable[tuple[str, Tensor]]:
            return zip(names, z.split(sizes), strict=True)

        def move(z: Tensor) -> Reached:
            moved = {name: self.variables[name].move(point[name], frames[name], part) for name, part in each(z)}
            reached = Reached(moved[name].point for name in self.groups)
            lost = [to.discarded for to in moved.values() if to.discarded is not None]
            if lost:
                reached.discarded = float(torch.stack(lost).norm())
            return reached

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


def _tensors(x: Element) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else [x.left, x.right]


def _faster(x: Element, speed: float) -> Element:
    return speed * x if isinstance(x, Tensor) else x._replace(left=speed * x.left)

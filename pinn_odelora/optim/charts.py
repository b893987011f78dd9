"""The variables of an optimiser as a point of a space, and the flow there: what an integrator is given.

``FactorChart``     the factors A and B and all other tensors as a point of a flat space, with a velocity field on
                    factors (``flows``). It asks for gradients by the factors alone, so any torch closure serves.
``ManifoldChart``   the product of every pair as a point of the manifold of rank-r matrices, other tensors beside it,
                    with the gradient flow of ½‖r‖²: explicit schemes get projected velocities, schemes that linearise
                    get the residuals and their Jacobian in coordinates of the tangent space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.flows.gram import SINGULAR
from pinn_odelora.flows.start import zero_flow
from pinn_odelora.integrators.base import Local, Report, Step, Velocity
from pinn_odelora.linalg.plan import Plan, Shape, plan
from pinn_odelora.linearisation import Coordinates, Linearisation
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import LowRank, rebalance, regauge
from pinn_odelora.manifolds.projected import Element, FixedRank, project, tangent
from pinn_odelora.manifolds.space import FLAT
from pinn_odelora.manifolds.variables import variable
from pinn_odelora.optim.groups import Group, alike, has_gradient, is_pair, parameters, slices, stacked

SWEPT = 0.25
"""The part of the memory that the linearisation may take; the rest is for J."""

NONE: Mapping[int, float] = MappingProxyType({})

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


def check_finite(tensors: Sequence[Tensor], names: Sequence[str], what: str) -> None:
    """Refuse numbers that are not finite.

    Args:
        tensors: the numbers.
        names: of the parameter group that each belongs to.
        what: they are, for the message.

    Raises:
        FloatingPointError: naming the first group concerned.
    """
    # One number that is finite only if all are: one host read instead of one for each tensor.
    device = tensors[0].device
    if math.isfinite(float(sum(x.detach().sum().double().to(device) for x in tensors))):
        return
    for name, x in zip(names, tensors, strict=True):
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(f"The {what} of {name} is NaN or infinite.")


def balanced(
    groups: Sequence[Group], after: list[Tensor], before: list[Tensor], members: Sequence[int], already: bool = False
) -> list[Tensor]:
    """Pairs of the same products, balanced, in the gauge nearest to the former one; in batches of one shape.

    Args:
        groups: one pair or one tensor each.
        after: the tensors of all groups.
        before: the same before the step.
        members: the groups to balance, where they are pairs.
        already: whether their pairs are balanced, so that the gauge alone is to be chosen.
    """
    turn = regauge if already else rebalance
    places, after = slices(groups), list(after)
    to, former = [after[at] for at in places], [before[at] for at in places]
    pairs = [i for i in members if is_pair(groups[i])]
    for batch in alike(pairs, lambda i: (to[i][0].shape, to[i][1].shape, to[i][0].dtype, to[i][0].device)):
        found = turn(stacked(to, batch), stacked(former, batch))
        for j, i in enumerate(batch):
            after[places[i]] = [found.A[j], found.B[j]]
    return after


class Chart:
    """What both charts share: the parameters, and the loss that is evaluated there.

    Args:
        groups: parameter groups of one pair or one tensor each.
        numbers: their values where the step starts, in the precision that the step is computed in.
        closure: evaluates the loss and leaves gradients; None uses those that are there.
        speeds: of each group, the part of the flow's time that passes for it.
        zero: groups that are a pair with B A = 0, and the precision that they were given in, see ``flows.start``.

    Attributes:
        loss: what the closure returned first, where the step starts; None before that, or without a closure.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        numbers: list[Tensor],
        closure: Callable[[], Tensor] | None = None,
        speeds: Sequence[float] = (),
        zero: Mapping[int, float] = NONE,
    ) -> None:
        self.groups = groups
        self.before = numbers
        self.closure = closure
        self.speeds = speeds or [1.0] * len(groups)
        self.zero = zero
        self.places = slices(groups)
        self.names = [str(group["name"]) for group in groups for _ in group["params"]]
        self.loss: Tensor | None = None

    def place(self, numbers: Sequence[Tensor]) -> None:
        """Write numbers to the parameters."""
        for p, x in zip(parameters(self.groups), numbers, strict=True):
            p.copy_(x)

    def evaluate(self) -> float:
        """The loss at the parameters as they are, their gradients set; NaN where there is no closure to tell it.

        Raises:
            FloatingPointError: if the loss is NaN or infinite.
        """
        if self.closure is None:
            return math.nan
        with torch.enable_grad():
            return self._seen(self.closure())

    def _seen(self, loss: Tensor | None) -> float:
        """A loss as a number; the first one is kept. A closure that returns None has set its gradients all the same."""
        if loss is None:
            return math.nan
        self.loss = loss if self.loss is None else self.loss
        number = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if not math.isfinite(number):
            raise FloatingPointError(f"The loss is {number}.")
        return number

    def gradients(self) -> list[Tensor]:
        """Those of all parameters, zero where there are none."""
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters(self.groups)]
        check_finite(found, self.names, "gradient")
        return found

    def moving(self) -> list[int]:
        """The groups that a step moves: not those without gradients or with a step size of zero."""
        return [
            i for i, group in enumerate(self.groups) if self.speeds[i] and has_gradient(group) and not self.still(i)
        ]

    def still(self, i: int) -> bool:
        """Whether a group is a pair with B A = 0 whose gradient vanishes, too."""
        return i in self.zero and not any(bool(p.grad.any()) for p in self.groups[i]["params"] if p.grad is not None)


class FactorChart(Chart):
    """Factors and other tensors in a flat space; an ``integrators.base.Flow`` whose points are lists of tensors.

    Args:
        flow: the velocity of a pair; the others are those of ``Chart``.
    """

    space = FLAT

    def __init__(self, flow: FactorFlow, *args: Any) -> None:
        super().__init__(*args)
        self.flow = flow
        self.first: Velocity | None = None

    def start(self) -> list[Tensor]:
        """The point where the parameters are."""
        return self.before

    def numbers(self, y: list[Tensor]) -> list[Tensor]:
        """The values of all parameters at y."""
        return y

    def described(self, step: Step) -> Report:
        """The report of a step."""
        return step.report

    def velocity(self, y: list[Tensor]) -> Velocity:
        """Minus the gradient for single tensors, the flow for pairs."""
        # Whoever looks at the start before the integrator does pays for one evaluation.
        if y is self.before and self.first is not None:
            return self.first
        self.place(y)
        loss = self.evaluate()
        gradients = [g.to(x.dtype) for g, x in zip(self.gradients(), y, strict=True)]
        found = Velocity(self._slopes(y, gradients), loss)
        self.first = self.first or found
        return found

    def _slopes(self, y: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Pairs of one shape and scale in one batch."""
        slopes = [-g for g in gradients]
        points, downhill = [y[at] for at in self.places], [gradients[at] for at in self.places]
        pairs = [i for i, group in enumerate(self.groups) if is_pair(group) and has_gradient(group)]

        def kind(i: int) -> Hashable:
            A, B = points[i]
            return A.shape, B.shape, A.dtype, A.device, self.groups[i]["scale"], i if i in self.zero else None

        for members in alike(pairs, kind):
            dA, dB = self._flow(members, stacked(points, members), stacked(downhill, members))
            for j, i in enumerate(members):
                slopes[self.places[i]] = [dA[j], dB[j]]
        return [
            x if speed == 1 else speed * x
            for at, speed in zip(self.places, self.speeds, strict=True)
            for x in slopes[at]
        ]

    def _flow(self, members: list[int], y: Factors, g: Factors) -> Factors:
        """The flow of a batch, with the layers' names where it refuses."""
        first, *_ = members
        scale = self.groups[first]["scale"]
        try:
            if first in self.zero:
                alone = zero_flow(Factors(y.A[0], y.B[0]), Factors(g.A[0], g.B[0]), scale, self.zero[first])
                return Factors(alone.A[None], alone.B[None])
            return self.flow(y, g, scale)
        except (InputError, FloatingPointError) as error:
            names = ", ".join(str(self.groups[i]["name"]) for i in members)
            # At a trial point it is the step that is too long, and not the start that is singular.
            at_start = isinstance(error, InputError) and self.first is None
            raise (InputError if at_start else FloatingPointError)(f"In {names}: {error}.") from None


class Reached(list[Any]):
    """A point, one entry for each group, and the norm of what retractions left out on the way; None where none
    could."""

    discarded: float | None = None


class ManifoldChart(Chart):
    """A product of manifolds, and the gradient flow of a loss there.

    It is a ``Flow`` for explicit schemes and, with a ``LeastSquares`` for closure, a ``ResidualFlow`` for those that
    linearise. A point is a list with one entry for each group: ``LowRank``, ``Factors`` or a tensor.

    Args:
        metric: of pairs, that of their ``product`` or that of the ``factors``.
        memory: bytes that the linear algebra of a step may take; the others are those of ``Chart``.
    """

    def __init__(self, metric: str, memory: float, *args: Any) -> None:
        super().__init__(*args)
        self.memory = memory
        values = [self.before[at] for at in self.places]
        pairs = zip(self.groups, values, strict=True)
        self.variables = {group["name"]: variable(group | {"params": x}, metric) for group, x in pairs}
        self.discarded: list[Tensor] = []
        self.space = FixedRank(self.discarded)
        self.form: str | None = None

    def start(self) -> list[Any]:
        """The point where the parameters are."""
        return [variable.start() for variable in self.variables.values()]

    def numbers(self, y: list[Any]) -> list[Tensor]:
        """The values of all parameters at y; a pair is balanced."""
        values = [x for variable, point in zip(self.variables.values(), y, strict=True) for x in variable.values(point)]
        return [x.to(like.dtype) for x, like in zip(values, self.before, strict=True)]

    def described(self, step: Step) -> Report:
        """The report of a step, with what its retractions left out and the form of its linear algebra."""
        discarded = getattr(step.y, "discarded", None)
        if discarded is None and self.discarded and self.form is None:
            discarded = float(self.discarded[-1])
        return replace(step.report, discarded=discarded, form=self.form)

    def moving(self) -> list[int]:
        """As ``Chart.moving``; a least-squares loss knows all groups, and sets no gradients where it linearises."""
        if isinstance(self.closure, LeastSquares):
            return [i for i, speed in enumerate(self.speeds) if speed]
        return super().moving()

    def velocity(self, y: list[Any]) -> Velocity:
        """P_Y(-G) for pairs, minus the gradient for other tensors."""
        self.place(self.numbers(y))
        if isinstance(self.closure, LeastSquares):
            found, G = self.closure.weight_gradients()
            loss = self._seen(found)
            downhill = [-G[name].double() for name in self.variables]
            slopes = [project(x, D) if isinstance(x, LowRank) else D for x, D in zip(y, downhill, strict=True)]
        else:
            loss, gradients = self.evaluate(), self.gradients()
            slopes = [self._slope(i, x, gradients[at]) for i, (x, at) in enumerate(zip(y, self.places, strict=True))]
        flat = [(name, part) for name, x in zip(self.variables, slopes, strict=True) for part in _tensors(x)]
        check_finite([x for _, x in flat], [name for name, _ in flat], "velocity")
        moving = zip(slopes, self.speeds, strict=True)
        return Velocity([x if speed == 1 else _faster(x, speed) for x, speed in moving], loss)

    def _slope(self, i: int, y: Any, gradients: list[Tensor]) -> Element:
        """The projected velocity from gradients by the factors: UᵀG = g_A/√(sσ) and G Vᵀ = g_B/√(sσ) for the balanced
        pair that stands for y.
        """
        group = self.groups[i]
        if not isinstance(y, LowRank):
            return -gradients[0].double()
        if not has_gradient(group) or self.still(i):
            return tangent(y, torch.zeros_like(y.V), torch.zeros_like(y.U))
        root = torch.sqrt(group["scale"] * y.sigma)
        if not bool(y.sigma[-1] > SINGULAR**0.5 * y.sigma[0]):
            raise InputError(
                f"In {group['name']}: the product has lost rank, so that gradients of its factors do not give that of "
                "the product; start from factors of full rank, choose a smaller rank, or pass an objective."
            )
        g_A, g_B = (g.double() for g in gradients)
        return tangent(y, -g_A / root[:, None], -g_B / root)

    def residuals(self, y: list[Any]) -> Tensor:
        self.place(self.numbers(y))
        return self.closure.residuals().double()

    def linearise(self, y: list[Any]) -> Local:
        self.place(self.numbers(y))
        linearised = self.closure.linearise(SWEPT * self.memory)
        self._seen(linearised.loss)
        return self.around(y, linearised)

    def plan(self, residuals: int) -> Plan:
        """The linear algebra of steps with so many residuals."""
        columns = sum(variable.dimension for variable in self.variables.values())
        matrices = [p for p in parameters(self.groups) if p.ndim == 2]
        pairs = any(is_pair(group) for group in self.groups)
        stretched = any(group["above"] is not None or group.get("size") for group in self.groups)
        shape = Shape(residuals, columns, sum(sum(p.shape) for p in matrices), not (pairs or stretched))
        return plan(shape, self.memory)

    def around(self, y: list[Any], linearised: Linearisation) -> Local:
        """The loss around y from its linearisation in effective weights."""
        names = [*linearised.layers, *linearised.others]
        point = dict(zip(self.variables, y, strict=True))
        frames = {name: self.variables[name].frame(point[name]) for name in names}
        sizes = [self.variables[name].dimension for name in names]
        self.form = form = self.plan(len(linearised.r)).form
        given = {name: frame for name, frame in frames.items() if frame is not None}
        kept = (1 - SWEPT) * self.memory
        J = Coordinates(linearised, given, kept, kernel=form == "pairs", restore=lambda: self.place(self.numbers(y)))

        def each(z: Tensor) -> Iterable[tuple[str, Tensor]]:
            return zip(names, z.split(sizes), strict=True)

        def move(z: Tensor) -> Reached:
            moved = {name: self.variables[name].move(point[name], frames[name], part) for name, part in each(z)}
            reached = Reached(moved[name].point for name in self.variables)
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

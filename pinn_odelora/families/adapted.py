"""Members as adapters: Gauss–Newton in the span of the nearest stations' factors, and steps on the manifold.

Three guesses of the weights are compared (``interpolation``), the best one is the base point of the span (``span``),
and where the steps end far above the losses of the stations beside the member they start again from the next one. If
the estimate exceeds a tolerance, rounds of steps on the low-rank manifold follow (``stations``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from numpy.typing import NDArray
from torch import Tensor

from pinn_odelora.families.interpolation import guesses
from pinn_odelora.families.parametric import fresh
from pinn_odelora.families.span import Found, Span, gauss_newton
from pinn_odelora.families.stations import solve
from pinn_odelora.points import Points

if TYPE_CHECKING:
    from pinn_odelora.families.family import Family

FAR = 10.0
"""So many times the losses of the stations beside it are too much for a member."""
CORRECTIONS = 12
"""Most steps on the manifold in one round, and how many rounds there are."""
ROUNDS = 3
ENOUGH = 0.8
"""A round that leaves more than this fraction of the estimate is the last."""


class Adapted(NamedTuple):
    """A member by its weights.

    Attributes:
        weights: what is trained, by the names of the network's parameters.
        loss: ½‖r‖² on the points on which it was found.
        error: the estimate of its relative L2 error.
        steps: Gauss–Newton steps in the span.
        corrections: steps on the manifold.
    """

    weights: dict[str, Tensor]
    loss: float
    error: float
    steps: int
    corrections: int


def adapted(family: Family, x: NDArray, tolerance: float | None = None) -> Adapted:
    """The member at coordinates x, (parameters,), with steps on the manifold up to a tolerance if there is one."""
    values = family.space.values(x)
    found = in_span(family, x)
    weights, loss, error, corrections = found.weights, found.loss, family.estimate(x), 0
    for round_ in range(ROUNDS if tolerance is not None else 0):
        if error <= tolerance:
            break
        solved = solve(family.parametric, weights, values, tolerance / 4, family.seed + round_, CORRECTIONS)
        corrections += solved.steps
        before, after = error, family.estimate(x)
        if after < before:
            weights, loss, error = solved.weights, solved.loss, after
        if not after < ENOUGH * before:
            break
    return Adapted(weights, loss, error, found.steps, corrections)


def in_span(family: Family, x: NDArray) -> Found:
    """The member in the span of the stations nearest to x; it is in the network afterwards."""
    near = family.nearest(x)
    neighbours = [family.stations[k].weights for k in near]
    usual = FAR * family.loss_beside(x)
    best: Found | None = None
    for base in _bases(family, x, near):
        found = gauss_newton(Span(family.parametric, base, neighbours), fresh(family.points))
        if best is None or found.loss < best.loss:
            best = found._replace(steps=found.steps + (best.steps if best else 0))
        if best.loss <= usual:
            break
    assert best is not None
    family.parametric.place(best.weights)
    return best


def _bases(family: Family, x: NDArray, near: Sequence[int]) -> list[dict[str, Tensor]]:
    """The guesses, the best first; the equation has the parameters at x afterwards."""
    parametric, points, found = family.parametric, fresh(family.glance), []
    parametric.set(family.space.values(x))
    for c in guesses(family.coordinates[near], x):
        guess = _sum(c, [family.stations[k].weights for k in near])
        parametric.place(guess)
        found.append((_loss(family, points), len(found), guess))
    return [guess for *_, guess in sorted(found, key=lambda entry: entry[:2])]


def _loss(family: Family, points: Mapping[str, Points]) -> float:
    return float(family.parametric.residual_vector(points).square().sum())


def _sum(c: NDArray, weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    used = [(float(w), x) for w, x in zip(c, weights, strict=True) if w]
    return {name: sum(w * x[name] for w, x in used) for name in weights[0]}

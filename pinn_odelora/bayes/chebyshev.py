"""Predictions of a family as polynomials of its parameters.

An answer of a family costs about a tenth of a second, and a posterior asks for tens of thousands. What is predicted at
given points is therefore interpolated in the parameters, by Chebyshev polynomials in the family's coordinate of each,
moved to z in [-1, 1], or y in [-1, 1] on a part of that:

    u(z) ≈ Σ_k c_k T_k(y),    exact at the nodes y_j = cos(πj/n), j = 0 … n.

For a solution analytic in the parameters the error falls geometrically in n (Trefethen, Approximation Theory and
Approximation Practice, 2013, theorem 8.2). It is measured at a few answers between the nodes. While it is too large n
is doubled, whose nodes are among those of 2n. Two parameters have the product of both sets of nodes; n of that one is
doubled whose last coefficients are larger.

Only a part of the range may matter, such as that where measurements are likely. As soon as an interpolant tells which,
with its error allowed for, a new one is made there: it needs fewer nodes, and is free of the errors that answers have
elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray

from pinn_odelora.errors import NonFiniteError
from pinn_odelora.families.ranges import Interval

Array = NDArray[np.float64]

FIRST = 2
"""n of the first nodes of each parameter."""
MOST = 300
"""Answers in all, half a minute."""
IRRATIONAL = {1: [0.6180339887498949], 2: [0.7548776662466927, 0.5698402909980532]}
"""Multiples of these, modulo 1, are spread evenly (Roberts, 2018): powers of 1/g with g² = g + 1, or g³ = g + 1."""
STUCK = 16
"""From which n on a doubling must halve the error: answers may not be smooth."""


def value_at(interval: Interval, z: Array) -> Array:
    """The parameter for z in [-1, 1], of any shape; never outside its range by rounding."""
    x = (np.asarray(z) + 1) / 2
    if interval.scale == "log":
        found = interval.low * (interval.high / interval.low) ** x
    else:
        found = interval.low + (interval.high - interval.low) * x
    return np.clip(found, interval.low, interval.high)


def values_at(intervals: Sequence[Interval], z: Array) -> dict[str, float]:
    """All parameters by name for z, (parameters,)."""
    return {i.name: float(value_at(i, v)) for i, v in zip(intervals, z, strict=True)}


class Part(NamedTuple):
    """A box of the coordinates z.

    Attributes:
        low, high: its ends, (parameters,).
    """

    low: Array
    high: Array

    @property
    def volume(self) -> float:
        return float(np.prod(self.high - self.low))

    def at(self, y: Array) -> Array:
        """z for y in [-1, 1], (M, parameters)."""
        return self.low + (self.high - self.low) * (y + 1) / 2

    def holds(self, z: Array) -> NDArray[np.bool_]:
        """Whether points lie in it, (M, parameters) -> (M,)."""
        return ((z >= self.low) & (z <= self.high)).all(axis=1)


@dataclass(frozen=True)
class Interpolant:
    """Predictions at N points as a polynomial of the parameters.

    Attributes:
        intervals: of the parameters.
        part: where it is meant.
        coefficients: c, (n_1 + 1, …, N).
        error: the largest ‖interpolant - answer‖₂ over the N points that was found between the nodes.
    """

    intervals: tuple[Interval, ...]
    part: Part
    coefficients: Array
    error: float = math.inf

    def basis(self, z: Array) -> Array:
        """The products of Chebyshev polynomials at z (M, parameters), (M, K)."""
        y = (2 * z - self.part.low - self.part.high) / (self.part.high - self.part.low)
        return _basis(y, self.coefficients.shape[:-1])

    @property
    def matrix(self) -> Array:
        """The coefficients as K rows, those of ``basis``, (K, N)."""
        return self.coefficients.reshape(-1, self.coefficients.shape[-1])

    def __call__(self, z: Array) -> Array:
        """The predictions at z (M, parameters), (M, N)."""
        return self.basis(z) @ self.matrix


class Demand(NamedTuple):
    """What is asked of an interpolant, from what is known so far.

    Attributes:
        tolerance: ‖error‖₂.
        part: where.
    """

    tolerance: float
    part: Part


def interpolate(
    predict: Callable[[Array], Array],
    intervals: Sequence[Interval],
    demand: Callable[[Interpolant], Demand],
    most: int = MOST,
) -> Interpolant:
    """Interpolate predictions until they agree with the answers at new nodes, or cannot be made to.

    The latter are answers that are not smooth in the parameters, so that more of them are no help, and a number of
    answers above ``most``; the ``error`` of what is returned tells.

    Args:
        predict: the predictions for z, (parameters,) -> (N,).
        intervals: of the parameters.
        demand: the tolerance to attain, and where.
        most: answers in all.

    Raises:
        NonFiniteError: if an answer is not finite.
    """
    d = len(intervals)
    answers = _Answers(predict, tuple(intervals))
    part, steps, last = Part(-np.ones(d), np.ones(d)), [FIRST] * d, math.inf
    while True:
        found = answers.interpolant(part, steps)
        tolerance, narrow = demand(found)
        if found.error <= tolerance:
            return found
        if narrow.volume < part.volume / 2 and len(answers.known) + answers.cost([FIRST] * d) <= most:
            part, steps, last = narrow, [FIRST] * d, math.inf
            continue
        i = int(np.argmax(_tails(found.coefficients)))
        finer = [2 * n if i == k else n for k, n in enumerate(steps)]
        stuck = steps[i] >= STUCK and found.error > last / 2
        if stuck or len(answers.known) + answers.cost(finer) - answers.cost(steps) > most:
            return found
        steps, last = finer, found.error


class _Answers:
    """The predictions so far.

    Attributes:
        known: predictions by z.
    """

    def __init__(self, predict: Callable[[Array], Array], intervals: tuple[Interval, ...]) -> None:
        self.predict, self.intervals = predict, intervals
        self.known: dict[tuple[float, ...], Array] = {}

    def cost(self, steps: Sequence[int]) -> int:
        """Answers at the nodes."""
        return math.prod(n + 1 for n in steps)

    def interpolant(self, part: Part, steps: Sequence[int]) -> Interpolant:
        """Through the nodes of a part; answers that are missing are computed."""
        grid = np.array([*itertools.product(*map(_nodes, steps))])
        nodes = part.at(grid)
        values = np.stack([self._at(z) for z in nodes])
        sizes = [n + 1 for n in steps]
        coefficients = np.linalg.solve(_basis(grid, sizes), values).reshape(*sizes, -1)
        found = Interpolant(self.intervals, part, coefficients)
        between = np.array(self._between(part, {tuple(z) for z in nodes.tolist()}))
        difference = found(between) - np.stack([self._at(z) for z in between])
        return replace(found, error=float(np.linalg.norm(difference, axis=1).max()))

    def _between(self, part: Part, nodes: set[tuple[float, ...]]) -> list[tuple[float, ...]]:
        """Answers of the part that are no nodes, at least 2 for one parameter and 4 for two."""
        d = len(part.low)
        found = [z for z in self.known if z not in nodes and part.holds(np.array([z]))[0]]
        for z in map(tuple, part.at(2 * np.modf(np.outer(np.arange(1, 2**d + 1), IRRATIONAL[d]))[0] - 1).tolist()):
            if len(found) < 2**d and z not in found:
                found.append(z)
        return found

    def _at(self, z: Array) -> Array:
        key = tuple(map(float, z))
        if key not in self.known:
            self.known[key] = self.predict(np.array(key))
            if not np.isfinite(self.known[key]).all():
                where = ", ".join(f"{name}={x:g}" for name, x in values_at(self.intervals, key).items())
                raise NonFiniteError(f"The family's answer at {where} is not finite at a measured point.")
        return self.known[key]


def _tails(coefficients: Array) -> list[float]:
    """How large the last two coefficients of each parameter are; every other one of an even function is zero."""
    d = coefficients.ndim - 1
    return [float(np.linalg.norm(np.take(coefficients, [-2, -1], axis=i))) for i in range(d)]


def _nodes(n: int) -> list[float]:
    """cos(πj/n); the same numbers, to the last bit, for n and 2n."""
    return [math.cos(math.pi * (j / n)) for j in range(n + 1)]


def _basis(z: Array, sizes: Sequence[int]) -> Array:
    found = np.ones((len(z), 1))
    for i, size in enumerate(sizes):
        found = (found[:, :, None] * chebvander(z[:, i], size - 1)[:, None, :]).reshape(len(z), -1)
    return found

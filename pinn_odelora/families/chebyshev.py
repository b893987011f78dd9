"""Predictions of a family as polynomials of its parameters.

An answer of a family costs about a tenth of a second, and a posterior asks for tens of thousands. What is predicted at
given points is therefore interpolated in the parameters, by Chebyshev polynomials in the family's coordinate of each,
moved to z in [-1, 1]:

    u(z) ≈ Σ_k c_k T_k(z),    exact at the nodes z_j = cos(πj/n), j = 0 … n.

For a solution analytic in the parameters the error falls geometrically in n (Trefethen, Approximation Theory and
Approximation Practice, 2013, theorem 8.2). The nodes of n are among those of 2n. So n is doubled, one parameter after
the other, until the interpolant agrees with the answers at the new nodes; these then join it, and what is reported is
an upper estimate. With two parameters the nodes are the product of both sets.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import NDArray

from pinn_odelora.errors import NonFiniteError
from pinn_odelora.families.ranges import Interval

Array = NDArray[np.float64]

FIRST = 2
"""n of the first nodes of each parameter."""
MOST = 300
"""Nodes in all; half a minute of answers."""


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


@dataclass(frozen=True)
class Interpolant:
    """Predictions at N points as a polynomial of the parameters.

    Attributes:
        intervals: of the parameters.
        coefficients: c, (n_1 + 1, …, N).
        error: the largest ‖interpolant - answer‖₂ over the N points that was found at the last new nodes.
        answers: the number of answers that it was made from.
    """

    intervals: tuple[Interval, ...]
    coefficients: Array
    error: float
    answers: int

    def basis(self, z: Array) -> Array:
        """The products of Chebyshev polynomials at z (M, parameters), (M, K)."""
        return _basis(z, self.coefficients.shape[:-1])

    @property
    def matrix(self) -> Array:
        """The coefficients as K rows, those of ``basis``, (K, N)."""
        return self.coefficients.reshape(-1, self.coefficients.shape[-1])

    def __call__(self, z: Array) -> Array:
        """The predictions at z (M, parameters), (M, N)."""
        return self.basis(z) @ self.matrix


def interpolate(
    predict: Callable[[Array], Array],
    intervals: Sequence[Interval],
    tolerance: Callable[[Interpolant], float],
    most: int = MOST,
) -> Interpolant:
    """Interpolate predictions until they agree with the answers at new nodes, or cannot be made to.

    The latter are answers that are not smooth in the parameters, so that more of them are no help, and a number of
    nodes above ``most``; the ``error`` of what is returned tells.

    Args:
        predict: the predictions for z, (parameters,) -> (N,).
        intervals: of the parameters.
        tolerance: the ‖error‖₂ to attain, from what is known so far.
        most: nodes in all.

    Raises:
        NonFiniteError: if an answer is not finite.
    """
    known: dict[tuple[float, ...], Array] = {}
    steps = [FIRST] * len(intervals)
    found = _through(predict, intervals, steps, known)
    errors = [math.inf] * len(intervals)
    while max(errors) > (allowed := tolerance(found)):
        # The parameter with the fewest nodes: none is doubled twice before all have been doubled once.
        i = min((i for i, error in enumerate(errors) if error > allowed), key=lambda i: steps[i])
        finer = [2 * n if i == k else n for k, n in enumerate(steps)]
        if math.prod(n + 1 for n in finer) > most:
            break
        before, nodes = found, set(known)
        found = _through(predict, intervals, finer, known)
        fresh = [z for z in known if z not in nodes]
        difference = before(np.array(fresh)) - np.stack([known[z] for z in fresh])
        error = float(np.linalg.norm(difference, axis=1).max())
        steps, stuck = finer, steps[i] >= 16 and error > errors[i] / 2
        errors[i] = error
        found = dataclasses.replace(found, error=max(errors))
        if stuck:
            break
    return found


def _through(
    predict: Callable[[Array], Array],
    intervals: Sequence[Interval],
    steps: Sequence[int],
    known: dict[tuple[float, ...], Array],
) -> Interpolant:
    """The interpolant through the product of the nodes; ``known`` keeps the predictions by z."""
    nodes = [_nodes(n) for n in steps]
    for z in itertools.product(*nodes):
        if z not in known:
            known[z] = predict(np.array(z))
            if not np.isfinite(known[z]).all():
                where = ", ".join(f"{name}={x:g}" for name, x in values_at(intervals, np.array(z)).items())
                raise NonFiniteError(f"The family's answer at {where} is not finite at a measured point.")
    values = np.stack([known[z] for z in itertools.product(*nodes)])
    basis = _basis(np.array([*itertools.product(*nodes)]), [n + 1 for n in steps])
    coefficients = np.linalg.solve(basis, values).reshape(*(n + 1 for n in steps), -1)
    return Interpolant(tuple(intervals), coefficients, math.inf, len(known))


def _nodes(n: int) -> list[float]:
    """cos(πj/n); the same numbers, to the last bit, for n and 2n."""
    return [math.cos(math.pi * (j / n)) for j in range(n + 1)]


def _basis(z: Array, sizes: Sequence[int]) -> Array:
    found = np.ones((len(z), 1))
    for i, size in enumerate(sizes):
        found = (found[:, :, None] * chebvander(z[:, i], size - 1)[:, None, :]).reshape(len(z), -1)
    return found

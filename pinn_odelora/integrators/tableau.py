"""Butcher tableaux as data, whose order conditions are checked on construction.

A scheme  k_i = f(y + h Σ_j a_ij k_j),  y⁺ = y + h Σ_i b_i k_i  has order p if and only if, for every rooted tree τ
with at most p nodes,  Σ_i b_i Φ_i(τ) = 1 / γ(τ), where for τ with subtrees τ₁ … τ_m

    Φ_i(τ) = Π_k Σ_j a_ij Φ_j(τ_k),    γ(τ) = |τ| Π_k γ(τ_k)

(Butcher, 1963; Hairer, Nørsett and Wanner, 1993, II.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod

import numpy as np

Tree = tuple["Tree", ...]
"""A rooted tree is the sorted tuple of its subtrees; a single node is ()."""


@cache
def trees(n: int) -> tuple[Tree, ...]:
    """All rooted trees with n nodes: 1, 1, 2, 4, 9 for n = 1 … 5."""
    return tuple(dict.fromkeys(tuple(sorted(forest)) for forest in _forests(n - 1, n - 1)))


def _forests(n: int, largest: int) -> Iterator[tuple[Tree, ...]]:
    """Multisets of trees with n nodes in total, each with at most ``largest``."""
    if n == 0:
        yield ()
    for size in range(1, min(n, largest) + 1):
        for tree in trees(size):
            for rest in _forests(n - size, size):
                yield (tree, *rest)


def _size(tree: Tree) -> int:
    return 1 + sum(map(_size, tree))


def _density(tree: Tree) -> int:
    return _size(tree) * prod(map(_density, tree))


def _weights(a: np.ndarray, tree: Tree) -> np.ndarray:
    """Φ_i(τ) for every stage i."""
    return np.prod([a @ _weights(a, subtree) for subtree in tree], axis=0) * np.ones(len(a))


def order_defect(a: np.ndarray, b: np.ndarray, order: int) -> float:
    """The largest violation of the order conditions of trees with exactly ``order`` nodes.

    Args:
        a: the matrix of the tableau, (stages, stages).
        b: the weights, (stages,).
        order: number of nodes.
    """
    return max(abs(b @ _weights(a, tree) - 1 / _density(tree)) for tree in trees(order))


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge–Kutta scheme.

    Args:
        a: the rows of the strictly lower triangle; the first is empty.
        b: weights of the solution.
        order: its order p.
        embedded: weights of the embedded solution, for an embedded pair.
        embedded_order: order of the embedded solution.

    Raises:
        ValueError: if shapes do not match, or an order condition up to the stated order is violated.
    """

    a: Sequence[Sequence[float]]
    b: Sequence[float]
    order: int
    embedded: Sequence[float] | None = None
    embedded_order: int = 0

    def __post_init__(self) -> None:
        if [len(row) for row in self.a] != list(range(self.stages)):
            raise ValueError(f"row i = 1 … {self.stages} of an explicit tableau must have i - 1 entries; got {self.a}")
        for weights, order in ((self.b, self.order), (self.embedded, self.embedded_order)):
            for p in range(1, order + 1):
                if weights is None or order_defect(self.matrix, np.asarray(weights), p) > 1e-12:
                    raise ValueError(f"weights {weights} do not have order {order}: a condition of order {p} fails")

    @property
    def stages(self) -> int:
        """Number of stages s."""
        return len(self.b)

    @cached_property
    def matrix(self) -> np.ndarray:
        """a as a square matrix, (stages, stages)."""
        return np.array([[*row, *[0.0] * (self.stages - len(row))] for row in self.a])

    @cached_property
    def real_stability(self) -> float:
        """The largest x such that |R(z)| ≤ 1 on [-x, 0], with R(z) = 1 + Σ_k (bᵀ a^k 1) z^{k+1}."""
        powers = [np.linalg.matrix_power(self.matrix, k).sum(axis=1) for k in range(self.stages)]
        R = np.polynomial.Polynomial([1.0, *(np.asarray(self.b) @ power for power in powers)])
        crossings = np.concatenate([(R - 1).trim(1e-14).roots(), (R + 1).trim(1e-14).roots()])
        left = -crossings[np.abs(crossings.imag) < 1e-9].real
        return float(min(x for x in left if x > 1e-6 and abs(R(-1.001 * x)) > 1))


EULER = Tableau(a=[[]], b=[1], order=1)
MIDPOINT = Tableau(a=[[], [1 / 2]], b=[0, 1], order=2)
HEUN = Tableau(a=[[], [1]], b=[1 / 2, 1 / 2], order=2)
KUTTA3 = Tableau(a=[[], [1 / 2], [-1, 2]], b=[1 / 6, 2 / 3, 1 / 6], order=3)
RK4 = Tableau(a=[[], [1 / 2], [0, 1 / 2], [0, 0, 1]], b=[1 / 6, 1 / 3, 1 / 3, 1 / 6], order=4)

# Bogacki and Shampine (1989): order 3 with an embedded order 2.
BOGACKI_SHAMPINE = Tableau(
    a=[[], [1 / 2], [0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]],
    b=[2 / 9, 1 / 3, 4 / 9, 0],
    order=3,
    embedded=[7 / 24, 1 / 4, 1 / 3, 1 / 8],
    embedded_order=2,
)

# Dormand and Prince (1980): order 5 with an embedded order 4.
DORMAND_PRINCE = Tableau(
    a=[
        [],
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ],
    b=[35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    order=5,
    embedded=[5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40],
    embedded_order=4,
)

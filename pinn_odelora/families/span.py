"""The span of a member's neighbours, and Gauss–Newton steps in it.

Around a base point, for each rank-one part b_c a_c of an adapted layer, the coordinates are the differences of a_c, and
of b_c, to the m nearest stations; other trained tensors are free. Factors of all stations are in one gauge, that
of the path which they were followed along (``manifolds.factors``), so that the c-th part is the same one in all of
them. With D_c the differences of a_c, and their singular value decomposition D_c = X S V,

    a_c = a_c⁰ + zᵀ S V ,      ∂r/∂z = S V (∂r/∂W)ᵀ s b_c ,

a restriction of the Jacobian with respect to the layer's weight, from the same sweep (``linearisation.blocks``). The
scaling S measures a direction by how far the stations reach along it, so that the damping of a step prefers members
between the stations. There are some hundred coordinates, whatever the width of the network.

A step is  (JᵀJ + μ) d = -Jᵀ r. While the loss falls fast it is repeated with the former J and the new r, at the cost of
an evaluation (the chord method); then J is renewed.

This is a reduced basis whose snapshots are weights: reduced bases and their greedy snapshots are reviewed by
Quarteroni, Manzoni and Negri (2016); GPT-PINN (Chen and Koohy, 2023, arXiv 2303.14878) combines snapshots of the
solution, CoLoRA (Berman and Peherstorfer, 2024, arXiv 2402.14646) interpolates low-rank factors by a network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.families.parametric import Parametric, Weights
from pinn_odelora.linalg.damped import Damped
from pinn_odelora.linearisation import Linearisation
from pinn_odelora.manifolds.tangent import Restriction
from pinn_odelora.points import Points

RANK_TOLERANCE = 1e-9
"""Singular values of differences below this fraction of the largest are no direction."""
DAMPING = 1e-12
"""μ relative to the largest entry of JᵀJ."""
RENEWALS, CHORDS, TRIALS = 4, 4, 4
"""Most linearisations, steps with one of them, and dampings tried for the first of these."""
FAST = 0.5
"""A step that leaves more than this fraction of the loss calls for a new J."""
SETTLED = 0.9
"""A step that leaves more than this fraction, with a new J, is the last."""


@dataclass(frozen=True)
class Directions:
    """S V of every part of one layer: how far its a_c, and its b_c, may move.

    Attributes:
        A, B: by part, (k, n) and (m, k).
    """

    A: list[Tensor]
    B: list[Tensor]

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return sum(len(V) for V in self.A) + sum(U.shape[1] for U in self.B)

    def moved(self, A: Tensor, B: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The factors at coordinates z (dimension,), from those at the base."""
        parts = z.split([*(len(V) for V in self.A), *(U.shape[1] for U in self.B)])
        r = len(self.A)
        A = torch.stack([a + w @ V for a, V, w in zip(A, self.A, parts[:r], strict=True)])
        B = torch.stack([b + U @ w for b, U, w in zip(B.mT, self.B, parts[r:], strict=True)], dim=1)
        return A, B

    def frame(self, A: Tensor, B: Tensor, scale: float) -> SpanFrame:
        """The coordinates where the factors are A and B: a direction of a_c is multiplied by the b_c of that place."""
        own = [Restriction(scale * B[:, c : c + 1], V) for c, V in enumerate(self.A)]
        return SpanFrame(own + [Restriction(scale * U, A[c : c + 1]) for c, U in enumerate(self.B)], self.dimension)


@dataclass(frozen=True)
class SpanFrame:
    """The coordinates of a layer as restrictions of its weight, see ``manifolds.tangent``."""

    restrictions: list[Restriction]
    dimension: int


def directions(A: Tensor, B: Tensor, neighbours: Sequence[tuple[Tensor, Tensor]]) -> Directions:
    """Of a layer around factors A (r, n) and B (m, r), from those of its neighbours."""
    V = _directions(torch.stack([near - A for near, _ in neighbours]).transpose(0, 1))
    U = _directions(torch.stack([(near - B).mT for _, near in neighbours]).transpose(0, 1))
    return Directions(V, [x.mT for x in U])


def _directions(D: Tensor) -> list[Tensor]:
    """S V of every part's differences, from (r, neighbours, n)."""
    _, S, V = linalg.svd(D, full_matrices=False)
    return [(s[:, None] * v)[s > RANK_TOLERANCE * s[0]] for s, v in zip(S, V, strict=True)]


class Found(NamedTuple):
    """Where Gauss–Newton steps ended.

    Attributes:
        weights: what is trained.
        loss: ½‖r‖² at the points of the steps.
        steps: evaluations of a step, accepted or not.
    """

    weights: dict[str, Tensor]
    loss: float
    steps: int


class Span:
    """The base point and its coordinates.

    Args:
        parametric: the residual system, at the parameters wanted.
        base: the weights to start from.
        neighbours: weights of stations.
    """

    def __init__(self, parametric: Parametric, base: Weights, neighbours: Sequence[Weights]) -> None:
        self.parametric = parametric
        self.base = dict(base)
        self.factors = {layer: parametric.tensors_of[layer] for layer in parametric.layers}
        self.directions = {
            layer: directions(base[a], base[b], [(w[a], w[b]) for w in neighbours])
            for layer, (a, b) in self.factors.items()
        }
        own, trained = self.directions, parametric.trained
        self.sizes = {
            variable: own[variable].dimension if variable in own else sum(trained[name].numel() for name in names)
            for variable, names in parametric.tensors_of.items()
        }

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return sum(self.sizes.values())

    def at(self, z: Tensor) -> dict[str, Tensor]:
        """The weights at coordinates z, (dimension,)."""
        parts = dict(zip(self.sizes, z.split([*self.sizes.values()]), strict=True))
        free = {variable: part for variable, part in parts.items() if variable not in self.directions}
        found = self.parametric.moved(self.base, free)
        for layer, (a, b) in self.factors.items():
            found[a], found[b] = self.directions[layer].moved(self.base[a], self.base[b], parts[layer])
        return found

    def frames(self, weights: Weights) -> dict[str, SpanFrame]:
        """The coordinates of all adapted layers at these weights."""
        return {
            layer: self.directions[layer].frame(weights[a], weights[b], self.parametric.layers[layer].scale)
            for layer, (a, b) in self.factors.items()
        }


def gauss_newton(span: Span, points: Mapping[str, Points]) -> Found:
    """Minimise ½‖r‖² in the span; the member is in the network afterwards."""
    parametric = span.parametric
    z = torch.zeros(span.dimension, dtype=torch.float64)
    here, steps = span.base, 0
    for _ in range(RENEWALS):
        parametric.place(here)
        around = Linearisation(parametric.objective.sweep, points)
        before = float(around.loss)
        z, loss, taken = _with_one_jacobian(span, points, z, around.r, around.columns(span.frames(here)))
        here, steps = span.at(z), steps + taken
        if not loss < SETTLED * before:
            break
    parametric.place(here)
    return Found(here, loss, steps)


def _with_one_jacobian(
    span: Span, points: Mapping[str, Points], z: Tensor, r: Tensor, J: Tensor
) -> tuple[Tensor, float, int]:
    """Steps from z while they leave at most ``FAST`` of the loss: where they end, its loss, and how many were tried."""
    solver, mu, loss, tried = Damped(J, single=False), DAMPING, float(r @ r) / 2, 0
    for chord in range(CHORDS):
        for _ in range(1 if chord else TRIALS):
            trial = z - solver(r, mu * solver.largest)
            span.parametric.place(span.at(trial))
            ahead = span.parametric.residual_vector(points)
            after, tried = float(ahead @ ahead) / 2, tried + 1
            if after < loss:
                break
            mu *= 1e3
        if not after < loss:  # also where it is no number
            break
        slow = after > FAST * loss
        z, r, loss = trial, ahead, after
        if slow:
            break
    return z, loss, tried

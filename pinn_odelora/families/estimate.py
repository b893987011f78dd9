"""A posteriori error estimates by a discrete Green's operator.

The error e of a member u satisfies, to first order, the linearised equation with the residual of u on its right-hand
side. Linearised at a station instead, and restricted to what its adapter can represent,

    e ≈ U δ ,    δ = -(JᵀJ + μ)⁻¹ Jᵀ r ,    J = ∂r/∂θ ,    U = ∂u/∂θ ,

in coordinates θ of the manifold at the station, with r at fixed points that no step has seen and u at fixed probes. J
and U are formed once for a station; an estimate then costs the residuals of the member itself, and two products with
them. The dual-weighted residual method (Becker and Rannacher, 2001) weighs residuals for one functional; here the
functional is the solution.

Most of r is no consequence of an error that the adapter can represent, and without damping is taken for one: ‖e‖ was up
to fifteen times too large where errors are near 1e-6. So μ is chosen for every member, by the residuals r' at further
points, of which δ knows nothing. What of them remains, ‖r' + J' δ‖², is a sum over n residuals, with a relative
deviation of √(2/n): of all μ for which it is as small as the smallest up to that, the smallest μ is taken, since
damping makes e smaller (the rule of one standard error, Breiman et al., 1984, towards the side that is safe here).

Networks have a thousand coordinates and more, but J falls below 1e-7 of its norm after some four hundred directions.
``COORDINATES`` random combinations of the coordinates span these (Halko, Martinsson and Tropp, 2011, arXiv 0909.4061).

What an adapter cannot represent is not seen. Estimates are ‖e‖ / ‖u‖ times a safety factor. Ratios to the true error
are between 1 and 2 for most equations, but a seventh for the reaction equation, whose solution has a kink where the
network is smooth. There, nearly nothing of r' is explained; no rule for μ was found that tells this from small errors
of the Allen–Cahn equation, where as little is, and points that follow the residual do not help.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.families.parametric import Parametric, fresh
from pinn_odelora.families.stations import Station
from pinn_odelora.linalg.gram import gram
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.points import Points
from pinn_odelora.system import VALUE, Values

DAMPINGS = tuple(10.0**-k for k in range(14, 1, -1))
"""μ relative to the trace of JᵀJ, the smallest first."""
COORDINATES = 500
EACH, FURTHER = 2.4, 1.0
"""Residuals for each coordinate, and further ones."""
SAFETY = 2**0.5
"""By which an estimate is multiplied; seen on burgers, allen_cahn, heat, kovasznay and poisson_scale."""


class Unseen(NamedTuple):
    """What δ is found from, and what it is judged by; points by term, or the residuals there."""

    own: Tensor | Mapping[str, Points]
    further: Tensor | Mapping[str, Points]


@dataclass(frozen=True)
class Green:
    """The linearised equation at one station, in the eigenvectors V of JᵀJ.

    Attributes:
        squares: eigenvalues, (P,), float64.
        own: J V, (R, P), float32.
        further: J' V, (R', P), float32.
        probes: U V, (probes · fields, P), float32, for fields in the units of the network.
    """

    squares: Tensor
    own: Tensor
    further: Tensor
    probes: Tensor

    def error(self, residuals: Unseen) -> Tensor:
        """e at the probes, (probes · fields,), from residuals (R,) and (R',)."""
        r, beyond = residuals
        size = float(linalg.vector_norm(r))
        if not 0 < size < math.inf:
            return self.probes.new_full((len(self.probes),), size, dtype=torch.float64)
        # Of r / ‖r‖ products in float32 suffice, since every column of J V has a size of its own.
        slope = (self.own.mT @ (r / size).float()).double()
        mu = self.squares.sum() * torch.tensor(DAMPINGS, dtype=torch.float64)
        moves = -(slope[:, None] / (self.squares[:, None] + mu)).float()
        left = ((beyond / size).float()[:, None] + self.further @ moves).square().sum(dim=0)
        small = left <= (1 + math.sqrt(2 / len(beyond))) * left.min()
        return size * (self.probes @ moves[:, int(small.nonzero()[0])]).double()


def green(J: Tensor, further: Tensor, U: Tensor) -> Green:
    """From J (R, P) at the points, J' (R', P) at further ones, and U (probes · fields, P), float64."""
    squares, V = linalg.eigh(gram(J))
    return Green(squares.clamp(min=0), (J @ V).float(), (further @ V).float(), (U @ V).float())


class Linearised:
    """Residuals and solution with their derivatives by what is trained; made once for a family.

    Args:
        parametric: the residual system.
        seed: of the points.
    """

    def __init__(self, parametric: Parametric, seed: int) -> None:
        self.parametric = parametric
        self.coordinates = min(COORDINATES, parametric.dimension)
        drawn = lambda each, purpose: parametric.points(math.ceil(each * self.coordinates), seed, purpose)
        self.points = Unseen(drawn(EACH, "family estimate"), drawn(FURTHER, "family estimate, further"))
        variables = parametric.objective.sweep.variables
        values = Values(parametric.problem, parametric.solution, parametric.system.derivatives)
        self.values = Sweep(values, variables.layers, variables.others)
        self._mixing = _orthonormal(parametric.dimension, self.coordinates, seed)

    def green(self, station: Station) -> Green:
        """Linearise at a station; it is in the network afterwards."""
        parametric = self.parametric
        parametric.place(station.weights, station.values)
        columns = lambda sweep, points: self._mixed(parametric.columns(Linearisation(sweep, points), "product"))
        J, beyond = (columns(parametric.objective.sweep, fresh(points)) for points in self.points)
        # Rows of a term are weighted by √(2/N).
        U = math.sqrt(parametric.probes.number / 2) * columns(self.values, {VALUE: parametric.probes})
        return green(J, beyond, U)

    def residuals(self) -> Unseen:
        """Those of the member in the network."""
        return Unseen(*(self.parametric.residual_vector(fresh(points)) for points in self.points))

    def _mixed(self, columns: Tensor) -> Tensor:
        return columns if self._mixing is None else columns @ self._mixing


def _orthonormal(dimension: int, number: int, seed: int) -> Tensor | None:
    """So many random directions, (dimension, number); None where they would be all."""
    if number == dimension:
        return None
    generator = torch.Generator().manual_seed(seed)
    return linalg.qr(torch.randn(dimension, number, generator=generator, dtype=torch.float64)).Q


def relative(error: Tensor, u: Tensor) -> float:
    """‖e‖ / ‖u‖ for e (probes · fields,), component by component, and u (probes, fields), both in units of fields."""
    return float(linalg.vector_norm(error) / linalg.vector_norm(u).clamp(min=torch.finfo(u.dtype).tiny))

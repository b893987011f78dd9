"""A posteriori error estimates by a discrete Green's operator.

The error e of a member u satisfies, to first order, the linearised equation with the residual of u on its right-hand
side. Linearised at a station instead, and restricted to what its adapter can represent,

    e ≈ U δ ,     δ = -(JᵀJ + λ)⁻¹ Jᵀ r ,     so     e ≈ G r ,   G = -U (JᵀJ + λ)⁻¹ Jᵀ ,

with J = ∂r/∂θ and U = ∂u/∂θ in coordinates θ of the manifold at the station. G maps residuals at fixed points, which
no step has seen, to the error at fixed probes. It is formed once for a station; an estimate then costs one evaluation
of the residuals, at the member itself. The dual-weighted residual method (Becker and Rannacher, 2001) weighs residuals
for one functional; here the functional is the solution itself.

What an adapter cannot represent is not seen: ‖G r‖ was 0.4 to 1.6 of the error where the network resolves the solution,
and 0.2 to 0.5 for the reaction equation, whose periodic solution has a kink. Estimates are therefore ‖G r‖ / ‖u‖ times
a safety factor, √3 for adapters. Errors near 1e-6 are overestimated, up to five times: there G holds the noise of its
own points. For combinations ‖G r‖ is within a fifth of the error on most equations, but ten times too large on many of
those that solve the Allen–Cahn equation. Neither the smaller of the estimates at two or three stations nor subtracting
what the part of r outside the range of J contributes changes that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from pinn_odelora.families.parametric import Parametric, fresh
from pinn_odelora.families.stations import Station
from pinn_odelora.linalg.gram import gram
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.system import VALUE, Values

DAMPING = 1e-12
"""λ relative to the largest entry of JᵀJ."""
EACH, MOST = 1.6, 4000
"""Residuals for each coordinate, and at most."""
SAFETY = 3**0.5
"""By which an estimate of an adapter is multiplied; seen on burgers, heat, convection, reaction, allen_cahn and
kovasznay."""
COMBINED = 1.3
"""The same for a combination; seen on burgers, allen_cahn, reaction, convection and heat_plane."""


@dataclass(frozen=True)
class Green:
    """G of one station, (probes · fields, R), for fields in the units of the network."""

    operator: Tensor

    def error(self, residuals: Tensor) -> Tensor:
        """e at the probes, (probes · fields,), from residuals (R,)."""
        return self.operator @ residuals


class Linearised:
    """Residuals and solution with their derivatives by what is trained; made once for a family.

    Args:
        parametric: the residual system.
        seed: of the points.
    """

    def __init__(self, parametric: Parametric, seed: int) -> None:
        self.parametric = parametric
        residuals = min(MOST, math.ceil(EACH * parametric.dimension))
        self.points = parametric.points(residuals, seed, "family estimate")
        variables = parametric.objective.sweep.variables
        values = Values(parametric.problem, parametric.solution, parametric.system.derivatives)
        self.values = Sweep(values, variables.layers, variables.others)

    def green(self, station: Station) -> Green:
        """Linearise at a station; it is in the network afterwards."""
        parametric = self.parametric
        parametric.place(station.weights, station.values)
        J = parametric.columns(Linearisation(parametric.objective.sweep, fresh(self.points)), "product")
        U = parametric.columns(Linearisation(self.values, {VALUE: parametric.probes}), "product")
        # Rows of a term are weighted by √(2/N).
        return Green(-math.sqrt(parametric.probes.number / 2) * _times_inverse(U, J))

    def residuals(self) -> Tensor:
        """r of the member in the network, (R,)."""
        return self.parametric.residual_vector(fresh(self.points))


def _times_inverse(U: Tensor, J: Tensor) -> Tensor:
    """U (JᵀJ + λ)⁻¹ Jᵀ, by a Cholesky factor unless rounding spoils it."""
    damping = DAMPING * float(J.square().sum(dim=0).max())
    eye = torch.eye(J.shape[1], dtype=J.dtype)
    L, failed = linalg.cholesky_ex(gram(J) + damping * eye)
    if not bool(failed):
        return torch.cholesky_solve(U.mT, L).mT @ J.mT
    Q, R = linalg.qr(torch.cat([J, math.sqrt(damping) * eye]))
    return linalg.solve_triangular(R.mT, U.mT, upper=False).mT @ Q[: len(J)].mT


def relative(error: Tensor, u: Tensor) -> float:
    """‖e‖ / ‖u‖ for e (probes · fields,), component by component, and u (probes, fields), both in units of fields."""
    return float(linalg.vector_norm(error) / linalg.vector_norm(u).clamp(min=torch.finfo(u.dtype).tiny))

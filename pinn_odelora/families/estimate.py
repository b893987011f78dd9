"""A posteriori error estimates by a discrete Green's operator.

The error e of a member u satisfies, to first order, the linearised equation with the residual of u on its right-hand
side. Linearised at a station instead, and restricted to what the adapter can represent there,

    e ≈ U δ ,     δ = -(JᵀJ + λ)⁻¹ Jᵀ r ,     so     e ≈ G r ,   G = -U (JᵀJ + λ)⁻¹ Jᵀ ,

with J = ∂r/∂θ and U = ∂u/∂θ in coordinates θ of the manifold at the station. G maps residuals at fixed points, which
no step has seen, to the error at fixed probes. It is formed once for a station; an estimate then costs one evaluation
of the residuals. The dual-weighted residual method (Becker and Rannacher, 2001) weighs residuals for one functional;
here the functional is the solution itself.

What an adapter cannot represent is not seen. So the estimate is multiplied by a factor, found where both are known: a
new station is compared with the online answer that was given there before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.stations import Station
from pinn_odelora.formulation import Term
from pinn_odelora.linalg.gram import gram
from pinn_odelora.linearisation import Coordinates, Linearisation, Sweep
from pinn_odelora.manifolds.variables import variable
from pinn_odelora.points import Points
from pinn_odelora.system import System

DAMPING = 1e-12
"""λ relative to the largest entry of JᵀJ."""
EACH = 1.6
"""Residuals for each coordinate."""
MOST = 4000
VALUE = "value"
"""The name of the term whose residual is u itself."""


@dataclass(frozen=True)
class Green:
    """G of one station, (probes · fields, R)."""

    operator: Tensor

    def error(self, residuals: Tensor) -> Tensor:
        """e at the probes, (probes · fields,), from residuals (R,)."""
        return self.operator @ residuals


def points_of(parametric: Parametric, seed: int) -> dict[str, Points]:
    """The points of the residuals."""
    return parametric.points(min(MOST, math.ceil(EACH * parametric.dimension)), seed, "family estimate")


def green(parametric: Parametric, station: Station, points: Mapping[str, Points]) -> Green:
    """Linearise at a station; it is in the network afterwards."""
    parametric.place(station.weights, station.values)
    variables = {group["name"]: variable(group, "product") for group in parametric.groups}
    sweep = parametric.objective.sweep
    J = _dense(Linearisation(sweep, points), variables)
    fields = parametric.problem.fields
    where = parametric.problem.region
    value = Term(where, lambda f: tuple(f.derivative(name, "") for name in fields))
    system = _Values(parametric, value)
    at = Linearisation(Sweep(system, *_pair(sweep)), {VALUE: parametric.probes})
    # Rows of a term are component by component and weighted by √(2/N).
    U = _dense(at, variables) * math.sqrt(parametric.probes.number / 2)
    return Green(-_regularised_inverse(J, U))


def _regularised_inverse(J: Tensor, U: Tensor) -> Tensor:
    """U (JᵀJ + λ)⁻¹ Jᵀ, by a Cholesky factor unless rounding spoils it."""
    damping = DAMPING * float(J.square().sum(dim=0).max())
    eye = torch.eye(J.shape[1], dtype=J.dtype)
    L, failed = linalg.cholesky_ex(gram(J) + damping * eye)
    if not bool(failed):
        return torch.cholesky_solve(U.mT, L).mT @ J.mT
    Q, R = linalg.qr(torch.cat([J, math.sqrt(damping) * eye]))
    return linalg.solve_triangular(R.mT, U.mT, upper=False).mT @ Q[: len(J)].mT


def _pair(sweep: Sweep) -> tuple:
    return sweep.variables.layers, sweep.variables.others


def _dense(around: Linearisation, variables: Mapping) -> Tensor:
    names = [*around.layers, *around.others]
    frames = {name: f for name in names if (f := variables[name].frame(variables[name].start())) is not None}
    return Coordinates(around, frames).dense()


class _Values(System):
    """The system whose residual is the solution."""

    def __init__(self, parametric: Parametric, value: Term) -> None:
        super().__init__(parametric.problem, parametric.solution, derivatives=parametric.system.derivatives)
        self.terms = {VALUE: value}


def relative(error: Tensor, u: Tensor) -> float:
    """‖e‖ / ‖u‖ for e (probes · fields,), component by component, and u (probes, fields)."""
    return float(linalg.vector_norm(error) / linalg.vector_norm(u).clamp(min=torch.finfo(u.dtype).tiny))


def calibration(stations: Sequence[Station]) -> float:
    """The factor of estimates: the geometric mean of truth over estimate, where both are known; 1 before that."""
    known = [math.log(s.truth / s.estimate) for s in stations if s.estimate > 0 and s.truth > 0]
    return math.exp(sum(known) / len(known)) if known else 1.0

"""A posteriori error estimates by a discrete Green's operator.

The error e of a member u satisfies, to first order, the linearised equation with the residual of u on its right-hand
side. Let J = ∂r/∂W and U = ∂u/∂W be the derivatives of the residuals at R fixed points, and of the solution at fixed
probes, by all weights of the network at a station. The correction of minimum norm that removes the residual gives

    e ≈ G r ,     G = -U Jᵀ (J Jᵀ + λ)⁻¹ ,

in which only the neural tangent kernels J Jᵀ (R, R) and U Jᵀ are formed (``Linearisation.kernel``), so that the width
of the network does not matter. All weights take part, since the error of an answer is what an adapter has not removed,
or cannot represent. No step has seen these points. G is formed once for a station; an estimate then costs one
evaluation of the residuals, at the member itself. The dual-weighted residual method (Becker and Rannacher, 2001)
weighs residuals for one functional; here the functional is the solution itself.

The estimate is multiplied by a factor, found where both are known: a new station is compared with the online answer
that was given there before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, linalg, nn

from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.stations import Station
from pinn_odelora.formulation import Term
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.points import Points
from pinn_odelora.system import System

DAMPING = 1e-11
"""λ relative to the largest entry of J Jᵀ."""
RESIDUALS = 1000
"""R."""
SURE, LEAST = 5.0, 5
"""How much further than its last step a station must be from the answer before, and how many such stations it takes."""
VALUE = "value"
"""The name of the term whose residual is u itself."""


@dataclass(frozen=True)
class Green:
    """G of one station, (probes · fields, R)."""

    operator: Tensor

    def error(self, residuals: Tensor) -> Tensor:
        """e at the probes, (probes · fields,), from residuals (R,)."""
        return self.operator @ residuals


class Linearised:
    """Residuals and solution with their derivatives by all weights; made once for a family.

    Args:
        parametric: the residual system.
        seed: of the points.
    """

    def __init__(self, parametric: Parametric, seed: int) -> None:
        self.parametric = parametric
        self.points = parametric.points(RESIDUALS, seed, "family estimate")
        layers = _linear_layers(parametric.solution)
        biases = {f"{name}.bias": b for name, layer in layers.items() if (b := _bias(layer)) is not None}
        self.sweep = Sweep(_WithValues(parametric), layers, biases)

    def green(self, station: Station) -> Green:
        """Linearise at a station; it is in the network afterwards."""
        parametric = self.parametric
        parametric.place(station.weights, station.values)
        here = {name: Points(dict(p)) for name, p in self.points.items()}
        around = Linearisation(self.sweep, {**here, VALUE: parametric.probes})
        K, values = around.kernel().double(), around.terms[VALUE]
        R = values.start
        # Rows of a term are weighted by √(2/N).
        UJ = K[values, :R] * math.sqrt(parametric.probes.number / 2)
        return Green(-_times_inverse(UJ, K[:R, :R]))

    def residuals(self) -> Tensor:
        """r of the member in the network, (R,)."""
        return self.parametric.residual_vector({name: Points(dict(p)) for name, p in self.points.items()})


def _times_inverse(UJ: Tensor, K: Tensor) -> Tensor:
    """U Jᵀ (K + λ)⁻¹, by a Cholesky factor unless rounding spoils it."""
    damping = DAMPING * float(K.diagonal().max())
    L, failed = linalg.cholesky_ex(K + damping * torch.eye(len(K), dtype=K.dtype))
    if not bool(failed):
        return torch.cholesky_solve(UJ.mT, L).mT
    values, Q = linalg.eigh(K)
    return (UJ @ Q / (values.clamp(min=0) + damping)) @ Q.mT


class _WithValues(System):
    """The system with one more term, whose residual is the solution."""

    def __init__(self, parametric: Parametric) -> None:
        fields = parametric.problem.fields
        value = Term(parametric.problem.region, lambda f: tuple(f.derivative(name, "") for name in fields))
        super().__init__(parametric.problem, parametric.solution, {VALUE: value}, parametric.system.derivatives)


def _linear_layers(solution: nn.Module) -> dict[str, nn.Linear | LowRankLinear]:
    """All linear layers, the factors of adapted ones apart."""
    found = {name: x for name, x in solution.named_modules() if isinstance(x, nn.Linear | LowRankLinear)}
    inside = {id(y) for x in found.values() if isinstance(x, LowRankLinear) for y in x.modules() if y is not x}
    return {name: x for name, x in found.items() if id(x) not in inside}


def _bias(layer: nn.Linear | LowRankLinear) -> Tensor | None:
    return layer.base_layer.bias if isinstance(layer, LowRankLinear) else layer.bias


def relative(error: Tensor, u: Tensor) -> float:
    """‖e‖ / ‖u‖ for e (probes · fields,), component by component, and u (probes, fields)."""
    return float(linalg.vector_norm(error) / linalg.vector_norm(u).clamp(min=torch.finfo(u.dtype).tiny))


def calibration(stations: Sequence[Station]) -> float:
    """The factor of estimates: the geometric mean of truth over estimate; 1 where too little is known.

    Counted are stations that moved far from the answer before, compared with what their last step still changed:
    otherwise the distance to the station says nothing of the error.
    """
    known = [
        math.log(s.truth / s.estimate)
        for s in stations
        if s.estimate > 0 and s.truth > SURE * s.change > 0 and s.truth > 0
    ]
    return math.exp(sum(known) / len(known)) if len(known) >= LEAST else 1.0

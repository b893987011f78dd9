"""An estimate of the error without a reference: the linearised equation, solved in the tangent space of the network.

The error e = u* - u of a solution u satisfies, to first order, the linearised equation with the residual of u on its
right-hand side. It is sought among the functions that the network moves along to first order when all of its weights
and biases do, whatever the run trained, from points that no step has had,

    e = ∂u/∂θ δ ,    δ = -(JᵀJ + μ)⁻¹ Jᵀ r = -Jᵀ (J Jᵀ + μ)⁻¹ r ,    J = ∂r/∂θ ,

and ‖e‖ / ‖u + e‖ estimates the relative error. There are more coordinates θ than residuals, so that the second form is
used, and μ decides what of r is taken for a consequence of the error: it is the one that leaves the least of the
residuals at further points, ‖r + J δ‖ there, of which δ knows nothing. If u + e is closer to u* than u by a factor
β < 1, which is called saturation, then

    (1 - β) ‖u - u*‖ ≤ ‖e‖ ≤ (1 + β) ‖u - u*‖

(Bank and Weiser, 1985; Dörfler and Nochetto, 2002).

The network is not moved. The loss of a network that is moved by δ rises long before that of u + e does, since it is
curved in its weights where the equation is not in u: damped steps that have to lower it do not get as far as e, least
of all where the equation amplifies early errors, of which the residual tells little.

Half of the points inside the region are drawn by the size of the residual (``sampling.residual_sampling``): where it is
concentrated, even points see little of the error.

What the tangent space cannot represent is not seen. The fraction ``remaining`` of the residuals' squares at further
points tells how much of them that is: where it is nearly all, as in a local minimum of the loss, nothing is known of
the error and there is no estimate. docs/results/error_estimate.md has the ratio to the true error.

Fields that are determined up to a constant (``checks.constants``) are compared without their means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, linalg, nn

from pinn_odelora.checks.constants import free_constants
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud, sobol, stream
from pinn_odelora.gradient import in_pieces
from pinn_odelora.linalg.damped import Damped
from pinn_odelora.linearisation import Coordinates, Linearisation, Sweep
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.nets.scaled import in_field_units
from pinn_odelora.objective import Trained, variables_of
from pinn_odelora.points import Points
from pinn_odelora.sampling.residual_sampling import CANDIDATES, resampled
from pinn_odelora.system import VALUE, System, Values, draw_points

ROWS = 1000
"""Residuals from which the error is found."""
FEW = 300
"""The least, and as many where each takes a reverse sweep of its own."""
DAMPINGS = tuple(10.0**-k for k in range(2, 15))
"""μ relative to the trace of J Jᵀ."""
PROBES = 1024
PART = 0.5
"""Of the points inside the region: those that follow the residual."""
NOT_FINITE = "the residual is not finite everywhere"
AGAIN = 0.5
"""Of the residuals' squares at further points: with more left the error is sought again, from twice the residuals."""
UNEXPLAINED = 0.8
"""Likewise: there is no estimate if more is left."""


@dataclass(frozen=True)
class ErrorEstimate:
    """What is known of the error of a solution without a reference.

    Attributes:
        rel_l2: estimate of ‖u - u*‖₂ / ‖u*‖₂, of fields in their units (``in_field_units``); None where there is none.
        fields: the same of each field by name, relative to the field.
        remaining: what is left of the residuals' squares by e at points that it does not know, as a fraction.
        reason: why there is no estimate; empty where there is one.
    """

    rel_l2: float | None = None
    fields: Mapping[str, float] = field(default_factory=dict)
    remaining: float | None = None
    reason: str = ""

    @property
    def uncertain(self) -> bool:
        """Whether there is none since too much of the residual remains."""
        return self.rel_l2 is None and self.remaining is not None


def error_estimate(system: System, seed: int = 0, most: int = ROWS) -> ErrorEstimate:
    """Estimate the relative L2 error of the solution of a system; the network is the same afterwards, bit for bit.

    Args:
        system: the residual system; its solution has the network.
        seed: of the points.
        most: residuals of the largest steps of the run, whose cost the estimate is not to exceed much; there are at
            least ``FEW`` here, and at most ``ROWS``, or twice as many where these leave too much unexplained.
    """
    if isinstance(system.problem.region, UnitMatrices):
        return ErrorEstimate(reason="the rank of a matrix problem is part of it: a richer space has other solutions")
    try:
        rows = max(FEW, min(most, ROWS))
        linearised = _Linearised(system, seed, rows)
        found = linearised.estimate()
        if linearised.paired and (found.remaining or 0.0) > AGAIN:
            found = _Linearised(system, seed, 2 * rows).estimate()
        return found
    except InputError as refused:
        return ErrorEstimate(reason=str(refused).rstrip("."))
    except FloatingPointError as failed:
        return ErrorEstimate(reason=str(failed))
    except linalg.LinAlgError as failed:
        return ErrorEstimate(reason=f"the linearised equation cannot be solved: {failed}".rstrip("."))


def variables(solution: nn.Module) -> Trained:
    """What pretraining trains: adapted layers by their effective weights, and every other parameter."""
    adapted = {name: x for name, x in solution.named_modules() if isinstance(x, LowRankLinear)}
    own = {id(p) for x in adapted.values() for p in x.parameters() if p is not x.base_layer.bias}
    return variables_of(solution, [p for p in solution.parameters() if id(p) not in own], adapted)


class _Linearised:
    """The equation linearised at a solution, with the points at which it is looked at."""

    def __init__(self, system: System, seed: int, rows: int) -> None:
        self.system = system
        known = variables(system.solution)
        self.sweep = Sweep(system, *known)
        self.values = Sweep(Values(system.problem, system.solution, system.derivatives), *known)
        like = next(system.solution.parameters())
        self.paired = all(map(self.sweep.paired, system.terms))
        rows = rows if self.paired else FEW
        self.own, self.further = (
            {name: p.to(like) for name, p in points.items()} for points in _points(system, rows, seed)
        )
        draw = lambda n, d: sobol(n, d, seed=stream("error estimate", seed))
        probes = PROBES if self.values.paired(VALUE) else FEW // len(system.problem.fields)
        self.probes = system.problem.region.sample(probes, draw).to(like)
        free = free_constants(system.problem, system.terms, like)
        self.free = torch.tensor([name in free for name in system.problem.fields])

    @torch.no_grad()
    def estimate(self) -> ErrorEstimate:
        movements = self.movements()
        there = Linearisation(self.sweep, self.further)
        left = there.r.double()[:, None] + Coordinates(there, {}) @ movements
        before = float(there.r.double().square().sum())
        after, best = left.square().sum(dim=0).nan_to_num(nan=math.inf).min(dim=0)
        if not math.isfinite(before + float(after)):
            return ErrorEstimate(reason=NOT_FINITE)
        remaining = float(after) / before if before > 0 else 0.0
        u, e = map(self.without_constants, (self.function(), self.change(movements[:, best])))
        errors, size = linalg.vector_norm(e, dim=0), linalg.vector_norm(u + e, dim=0)
        if not bool(torch.isfinite(size).all()) or not float(size.max()) > 0:
            return ErrorEstimate(
                reason="the solution vanishes, or is its centre everywhere, to which no error can be relative"
            )
        if remaining > UNEXPLAINED and not any(term.measured for term in self.system.terms.values()):
            return ErrorEstimate(remaining=remaining, reason=_unexplained(remaining))
        each = {k: float(a / b) for k, a, b in zip(self.system.problem.fields, errors, size, strict=True) if b > 0}
        return ErrorEstimate(float(errors.norm() / size.norm()), each, remaining)

    def without_constants(self, u: Tensor) -> Tensor:
        """(N, fields), the fields that are free by a constant without their means."""
        return u - self.free.to(u) * u.mean(dim=0) if bool(self.free.any()) else u

    def movements(self) -> Tensor:
        """δ for every μ, (P, dampings)."""
        around = Linearisation(self.sweep, self.own)
        if not bool(around.r.isfinite().all()):
            raise FloatingPointError(NOT_FINITE)
        r, solve = around.r.double(), Damped(Coordinates(around, {}))
        return torch.stack([solve(-r, damping * solve.trace) for damping in DAMPINGS], dim=1)

    def function(self) -> Tensor:
        """u at the probes, its fields in their units, (probes, fields), float64."""
        return in_field_units(self.system.solution, self.system.solution(self.probes)).double()

    def change(self, movement: Tensor) -> Tensor:
        """e = ∂u/∂θ δ at the probes, likewise."""
        around = Linearisation(self.values, {VALUE: self.probes})
        rows = (Coordinates(around, {}) @ movement).view(len(self.system.problem.fields), self.probes.number)
        return rows.mT * math.sqrt(self.probes.number / 2)  # rows of a term are weighted by √(2/N)


def _unexplained(remaining: float) -> str:
    return (
        f"the error is uncertain: {100 * remaining:.0f} % of the residual is none that a small change of the solution "
        "takes away, as at a local minimum of the loss or where the network is too small"
    )


def _points(system: System, rows: int, seed: int) -> Sequence[dict[str, Points]]:
    """Points of a step, and further ones; of points that are always the same, measured ones, every second each."""
    count = {name: system.components(name) for name in system.terms}
    inside = sum(count[name] for name, term in system.terms.items() if term.where.interior)
    # On each part of the boundary a fifth as many.
    share = inside + (sum(count.values()) - inside) / 5
    n = max(10, int(rows / share))
    terms = {name: term.unseen for name, term in system.terms.items()}
    own, further = (
        _following(system, terms, n, seed, purpose) for purpose in ("error estimate", "error estimate, further")
    )
    for name, p in own.items():
        same = all(torch.equal(x, further[name][key]) for key, x in p.items() if len(x) == len(further[name][key]))
        if same and p.number > 1 and not system.terms[name].coupled:
            own[name], further[name] = (Points({key: x[k::2] for key, x in p.items()}) for k in (0, 1))
    return own, further


def _following(system: System, terms: Mapping[str, Term], n: int, seed: int, purpose: str) -> dict[str, Points]:
    """n points inside the region, a part of them where the residual is large, and a fifth as many on its boundary."""
    points = draw_points(terms, CANDIDATES * n, max(n // 5, 2), seed, purpose=purpose)
    like, residuals = next(system.solution.parameters()), in_pieces(system)
    generator = torch.Generator().manual_seed(seed)
    of = lambda name: lambda p: residuals({name: p.to(like)})[name]
    found = dict(points)
    for name, term in system.terms.items():
        p = points[name]
        if not term.where.interior or p.number <= n or isinstance(term.where, Cloud):
            continue
        if term.coupled:
            found[name] = p.part(slice(0, n))
            continue
        more = lambda k, name=name: draw_points({name: terms[name]}, k, 0, seed, purpose=f"{purpose}, {name}")[name]
        found[name] = resampled(p, n, PART, of(name), generator, more)
    return found

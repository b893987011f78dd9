"""An estimate of the error without a reference: how far the solution moves where it is free to.

Let u be the solution that a run returns, and û what a few damped Gauss–Newton steps make of it in a richer space: all
weights and biases of the network, whatever the run trained, on points that no step has had. If û is closer to the
solution u* by a factor β < 1, which is called saturation, then

    (1 - β) ‖u - u*‖ ≤ ‖û - u‖ ≤ (1 + β) ‖u - u*‖ ,

and ‖û - u‖ / ‖û‖ estimates the relative error (Bank and Weiser, 1985; Dörfler and Nochetto, 2002). To first order
e = û - u solves the linearised equation with the residual of u on its right-hand side,

    e = ∂u/∂θ δ ,    δ = -(JᵀJ + μ)⁻¹ Jᵀ r = -Jᵀ (J Jᵀ + μ)⁻¹ r ,    J = ∂r/∂θ .

There are more coordinates θ than residuals, so that the second form is used, and μ decides what of r is taken for a
consequence of the error. It is the one with the smallest loss at further points, of which the step knows nothing. Far
from the solution a step is followed by others, as long as the loss falls by a quarter. Half of the points inside the
region are drawn by the size of the residual (``sampling.residual_sampling``): where it is concentrated, even points see
little of the error.

What no weights of the network can represent, a kink for instance, is not seen; the estimate is then too small. The
fraction ``remaining`` of the loss at the further points is no measure of that: in converged runs most of the loss is
left where the estimate is right. docs/results/error_estimate.md has the ratio to the true error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, linalg, nn

from pinn_odelora.errors import InputError
from pinn_odelora.geometry import Cloud, sobol, stream
from pinn_odelora.gradient import in_pieces, residual_vector_of
from pinn_odelora.linalg.damped import Damped
from pinn_odelora.linearisation import Coordinates, Linearisation, Sweep
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.matrices import UnitMatrices
from pinn_odelora.nets.scaled import in_field_units
from pinn_odelora.objective import Trained, variables_of
from pinn_odelora.points import Points
from pinn_odelora.sampling.residual_sampling import resampled
from pinn_odelora.system import System, draw_points

ROWS = 1000
"""Residuals of a step."""
FEW = 300
"""The least, and as many where each takes a reverse sweep of its own."""
STEPS = 3
ENOUGH = 0.75
"""A further step follows one that left less than this of the loss."""
DAMPINGS = tuple(10.0**-k for k in range(2, 15))
"""μ relative to the trace of J Jᵀ, tried from the largest until the loss rises again."""
PROBES = 2048
CANDIDATES, PART = 4, 0.5
"""Points inside the region for each that is kept, and the part of those that follows the residual."""


@dataclass(frozen=True)
class ErrorEstimate:
    """What is known of the error of a solution without a reference.

    Attributes:
        rel_l2: estimate of ‖u - u*‖₂ / ‖u*‖₂, of fields in their units (``in_field_units``); None where there is none.
        fields: the same of each field by name, relative to the field.
        remaining: the loss of û at points that it does not know, as a fraction of that of u.
        reason: why there is no estimate; empty where there is one.
    """

    rel_l2: float | None = None
    fields: Mapping[str, float] = field(default_factory=dict)
    remaining: float | None = None
    reason: str = ""


def error_estimate(system: System, seed: int = 0, most: int = ROWS) -> ErrorEstimate:
    """Estimate the relative L2 error of the solution of a system; the network is the same afterwards, bit for bit.

    Args:
        system: the residual system; its solution has the network.
        seed: of the points.
        most: residuals of the largest steps of the run, whose cost the estimate is not to exceed much; there are at
            least ``FEW`` here, and at most ``ROWS``.
    """
    if isinstance(system.problem.region, UnitMatrices):
        return ErrorEstimate(reason="the rank of a matrix problem is part of it: a richer space has other solutions")
    try:
        return _Comparison(system, seed, most).estimate()
    except InputError as refused:
        return ErrorEstimate(reason=str(refused).rstrip("."))
    except (FloatingPointError, linalg.LinAlgError) as failed:
        return ErrorEstimate(reason=f"the comparison failed: {failed}".rstrip("."))


def variables(solution: nn.Module) -> Trained:
    """All linear layers by their effective weights, their biases, and the unknown coefficients."""
    adapted = {name: x for name, x in solution.named_modules() if isinstance(x, LowRankLinear)}
    factors = {id(part) for x in adapted.values() for part in (x.lora_A, x.lora_B)}
    linear = [x for x in solution.modules() if isinstance(x, nn.Linear) and id(x) not in factors]
    frozen = {id(x.base_layer) for x in adapted.values()}
    moved = [x.weight for x in linear if id(x) not in frozen]
    moved += [x.bias for x in linear if x.bias is not None]
    return variables_of(solution, [*moved, *getattr(solution, "coefficients", {}).values()], adapted)


class _Comparison:
    """The network on its way from u to û."""

    def __init__(self, system: System, seed: int, most: int) -> None:
        self.system = system
        self.solution = system.solution
        self.sweep = Sweep(system, *variables(self.solution))
        known = self.sweep.variables
        weights = {name: getattr(x, "base_layer", x).weight for name, x in known.layers.items()}
        self.tensors: dict[str, Tensor] = weights | dict(known.others)
        like = next(self.solution.parameters())
        rows = max(FEW, min(most, ROWS)) if all(map(self.sweep.paired, system.terms)) else FEW
        self.own, self.further = (
            {name: p.to(like) for name, p in points.items()} for points in _points(system, rows, seed)
        )
        draw = lambda n, d: sobol(n, d, seed=stream("error estimate", seed))
        self.probes = system.problem.region.sample(PROBES, draw).to(like)
        self.residuals = residual_vector_of(system)
        self.first = 0

    @torch.no_grad()
    def estimate(self) -> ErrorEstimate:
        u, before = self.function(), self.loss()
        if not math.isfinite(before):
            return ErrorEstimate(reason="the residual is not finite everywhere")
        with self.kept():
            after = self.improve(before)
            better = self.function()
        size = linalg.vector_norm(better, dim=0)
        if not bool(torch.isfinite(better).all()) or not float(size.max()) > 0:
            return ErrorEstimate(
                reason="the solution vanishes, or is its centre everywhere, to which no error can be relative"
            )
        e = linalg.vector_norm(better - u, dim=0)
        each = {name: float(a / b) for name, a, b in zip(self.system.problem.fields, e, size, strict=True) if b > 0}
        return ErrorEstimate(float(e.norm() / size.norm()), each, after / before if before > 0 else 1.0)

    def function(self) -> Tensor:
        """The solution at the probes, its fields in their units."""
        return in_field_units(self.solution, self.solution(self.probes))

    def improve(self, loss: float) -> float:
        """Put û into the network; its loss at the further points."""
        for _ in range(STEPS):
            before, loss = loss, self.step(loss)
            if not loss < ENOUGH * before:
                break
        return loss

    def step(self, before: float) -> float:
        """One damped Gauss–Newton step, with the μ whose loss at the further points is smallest; that loss."""
        around = Linearisation(self.sweep, self.own)
        r, solve = around.r.double(), Damped(Coordinates(around, {}))
        here = self.copies()
        best, chosen, last = math.inf, here, 0
        for k, damping in enumerate(DAMPINGS):
            if k < self.first:
                continue
            self.move(here, solve(-r, damping * solve.trace))
            loss = self.loss()
            if loss < best:
                best, chosen, last = loss, self.copies(), k
            elif best < before:
                break
        self.first = max(0, last - 2)  # the next step takes a similar one
        self.place(chosen)
        return best

    def loss(self) -> float:
        """At the further points."""
        return float(self.residuals(self.further).square().sum()) / 2

    def move(self, start: Mapping[str, Tensor], by: Tensor) -> None:
        """Put every variable at its start plus its part of a direction, (P,)."""
        sizes = [x.numel() for x in self.tensors.values()]
        for (name, x), part in zip(self.tensors.items(), by.split(sizes), strict=True):
            x.copy_(start[name] + part.view_as(x))

    def copies(self) -> dict[str, Tensor]:
        return {name: x.detach().clone() for name, x in self.tensors.items()}

    def place(self, values: Mapping[str, Tensor]) -> None:
        for name, x in self.tensors.items():
            x.copy_(values[name])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The network as it is comes back at the end."""
        here = self.copies()
        try:
            yield
        finally:
            self.place(here)


def _points(system: System, rows: int, seed: int) -> Sequence[dict[str, Points]]:
    """Points of a step, and further ones; of points that are always the same, measured ones, every second each."""
    count = {name: system.components(name) for name in system.terms}
    inside = sum(count[name] for name, term in system.terms.items() if term.where.interior)
    # On each part of the boundary a fifth as many.
    share = inside + (sum(count.values()) - inside) / 5
    n = max(10, int(rows / share))
    terms = {name: term.unseen for name, term in system.terms.items()}
    own, further = (
        _following(system, draw_points(terms, CANDIDATES * n, max(n // 5, 2), seed, purpose=purpose), n, seed)
        for purpose in ("error estimate", "error estimate, further")
    )
    for name, p in own.items():
        same = all(torch.equal(x, further[name][key]) for key, x in p.items() if len(x) == len(further[name][key]))
        if same and p.number > 1 and not system.terms[name].coupled:
            own[name], further[name] = (Points({key: x[k::2] for key, x in p.items()}) for k in (0, 1))
    return own, further


def _following(system: System, points: dict[str, Points], n: int, seed: int) -> dict[str, Points]:
    """n of the points inside the region, a part of them where the residual is large."""
    like, residuals = next(system.solution.parameters()), in_pieces(system)
    generator = torch.Generator().manual_seed(seed)
    of = lambda name: lambda p: residuals({name: p.to(like)})[name]
    found = dict(points)
    for name, term in system.terms.items():
        p = points[name]
        if not term.where.interior or p.number <= n or isinstance(term.where, Cloud):
            continue
        found[name] = p.part(slice(0, n)) if term.coupled else resampled(p, n, PART, of(name), generator)
    return found

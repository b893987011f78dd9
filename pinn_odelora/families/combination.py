"""Members as linear combinations of the stations' solutions, many at once.

    c = argmin ½‖r(g + Σ_j c_j φ_j)‖²

by Gauss–Newton from the nearest station, see ``basis``. The φ_j are linearly dependent up to their errors: with the
columns of J scaled to norm 1 a step is

    d = argmin ‖J d + r‖² + μ‖d‖² ,

from the triangular factor of [J -r; √μ 0], which does not square the condition number of J as JᵀJ would. One that does
not lower the loss is halved.

GPT-PINN (Chen and Koohy, 2024, arXiv 2303.14878) trains such coefficients, of a hidden layer whose neurons are
pretrained networks, by gradient descent; reduced bases find them by Newton's method on projected equations (Quarteroni,
Manzoni and Negri, 2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, linalg, nn

from pinn_odelora.families.basis import At, Basis, spread
from pinn_odelora.families.estimate import Unseen
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.ranges import Values
from pinn_odelora.families.stations import Station
from pinn_odelora.points import Points
from pinn_odelora.system import VALUE, values_of

DAMPING = 1e-24
"""μ, for columns of norm 1."""
TRIALS, SMALLEST = 12, 2.0**-5
"""Most evaluations, and the smallest part of a step that is tried."""
WORTH = 1e-2
"""A step that is predicted to lower the loss by less than this fraction is not taken."""

AT_ONCE = 2**15
"""Points of all members together; more members are found in several parts."""

Linearised = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""r (n, R) and ∂r/∂c (n, R, K) of some members: their numbers (n,) and c (n, K)."""


class Combined(NamedTuple):
    """Where the steps of all members ended.

    Attributes:
        coefficients: c, (members, K).
        loss: ½‖r‖², (members,).
        steps: of each, (members,).
    """

    coefficients: Tensor
    loss: Tensor
    steps: Tensor


def gauss_newton(linearised: Linearised, c: Tensor) -> Combined:
    """Minimise ½‖r‖² for every member, from c (members, K)."""
    c = c.clone()
    r, J = linearised(torch.arange(len(c), device=c.device), c)
    loss, (d, after) = _half_square(r), _step(r, J)
    part, steps = torch.ones_like(loss), torch.zeros(len(c), dtype=torch.long, device=c.device)
    for _ in range(TRIALS):
        left = torch.nonzero((after < (1 - WORTH) * loss) & (part >= SMALLEST)).flatten()
        if not len(left):
            break
        trial = c[left] + part[left, None] * d[left]
        r, J = linearised(left, trial)
        steps[left] += 1
        better = _half_square(r) < loss[left]
        won = left[better]
        part[left[~better]] /= 2
        c[won], loss[won], part[won] = trial[better], _half_square(r[better]), 1.0
        d[won], after[won] = _step(r[better], J[better])
    return Combined(c, loss, steps)


def _half_square(r: Tensor) -> Tensor:
    return r.square().sum(dim=1) / 2


def _step(r: Tensor, J: Tensor) -> tuple[Tensor, Tensor]:
    """d (n, K), and ½‖Jd + r‖² + ½μ‖d‖², (n,), which it is predicted to leave."""
    n, _, K = J.shape
    size = linalg.vector_norm(J, dim=1).clamp(min=torch.finfo(J.dtype).tiny)
    damped = DAMPING**0.5 * torch.eye(K, K + 1, dtype=J.dtype, device=J.device)
    rows = torch.cat([J / size[:, None], -r[..., None]], dim=2)
    R = linalg.qr(torch.cat([rows, damped.expand(n, -1, -1)], dim=1), mode="r").R
    d = linalg.solve_triangular(R[:, :K, :K], R[:, :K, K:], upper=True)[..., 0] / size
    return d, R[:, K, K].square() / 2


class CombinedNetwork(nn.Module):
    """N = Σ_j c_j N_j, (N, inputs) -> (N, fields).

    Args:
        nets: N_j; they may be those of other combinations, and are not to be trained.
        coefficients: c, (K,).
    """

    def __init__(self, nets: Sequence[nn.Module], coefficients: Tensor) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("coefficients", coefficients)

    def forward(self, x: Tensor) -> Tensor:
        return sum(c * net(x) for c, net in zip(self.coefficients, self.nets, strict=True))


class Combination(NamedTuple):
    """One member.

    Attributes:
        coefficients: c, (K,).
        network: their sum of the stations' networks.
        loss: ½‖r‖² at the points of the steps.
        steps: of Gauss–Newton.
        residuals: at the points of the estimate.
        u: at the probes, its fields in the units of the network, (probes, fields).
    """

    coefficients: Tensor
    network: CombinedNetwork
    loss: float
    steps: int
    residuals: Unseen
    u: Tensor


class Combinations:
    """The combinations of a family's stations.

    Args:
        parametric: the residual system of the family.
        points: of the steps, by term.
        unseen: of the estimate.
        device: where they are found.

    Attributes:
        reason: why there are none; empty where there are.
    """

    def __init__(
        self,
        parametric: Parametric,
        points: Mapping[str, Points],
        unseen: Unseen,
        device: torch.device | str = "cpu",
    ) -> None:
        self.parametric, self.device = parametric, torch.device(device)
        self.steps, *self.unseen = (Basis(parametric, p, device=device) for p in (points, *unseen))
        values = lambda problem: values_of(problem, parametric.net)
        self.probes = Basis(parametric, {VALUE: parametric.probes}, values, device)
        self.stations: list[Station] = []
        self.nets: list[nn.Module] = []
        coupled = [name for name, term in parametric.system.terms.items() if term.coupled]
        self.reason = f"residual {coupled[0]!r} reads several points at once" if coupled else ""
        if parametric.solution.reads_network:
            self.reason = "its ansatz takes the network, in which it need not be linear"
        self._cutoff: Tensor | None = None

    def take(self, stations: Sequence[Station]) -> None:
        """Bring everything up to date with the stations, of which the network then holds one."""
        for k, station in enumerate(stations):
            if k < len(self.stations) and self.stations[k].weights is station.weights:
                continue
            self.parametric.set(station.values)
            self.nets[k : k + 1] = [self.parametric.network(station.weights).requires_grad_(False)]
            self._compare_cutoffs()
            for basis in () if self.reason else (self.steps, *self.unseen, self.probes):
                basis.put(k)
            self.stations[k : k + 1] = [station]

    def _compare_cutoffs(self) -> None:
        """m must be the same for all members: their sum has one."""
        problem = self.parametric.problem
        if problem.conditions == "hard" and not self.parametric.solution.reads_network:
            _, m = problem.ansatz(self.parametric.probes)
            if self._cutoff is not None and not torch.allclose(m, self._cutoff, rtol=1e-9, atol=0):
                self.reason = f"the factor m of its ansatz depends on {' and '.join(self.parametric.names)}"
            self._cutoff = m.detach().clone()

    def find(self, values: Sequence[Values], starts: Sequence[int]) -> list[Combination]:
        """Members at these parameters, each from a station."""
        together = max(1, AT_ONCE // self.steps.number) if len(values) > 1 and self.batched else 1
        found: list[Combination] = []
        for i in range(0, len(values), together):
            found += self._find(values[i : i + together], starts[i : i + together])
        return found

    def _find(self, values: Sequence[Values], starts: Sequence[int]) -> list[Combination]:
        at = lambda some: self._at([values[i] for i in some])
        everyone = range(len(values))
        start = torch.eye(len(self.stations), dtype=torch.float64, device=self.device)[list(starts)]
        found = gauss_newton(lambda some, c: self.steps.linearised(at(some.tolist()), c), start)
        unseen = (basis.residuals(at(everyone), found.coefficients).cpu() for basis in self.unseen)
        u = self.probes.residuals(at(everyone), found.coefficients) * math.sqrt(self.parametric.probes.number / 2)
        fields = len(self.parametric.problem.fields)
        return [
            Combination(c, self.network(c), float(loss), int(steps), Unseen(*r), u.view(fields, -1).mT.cpu())
            for c, loss, steps, u, *r in zip(found.coefficients.cpu(), found.loss, found.steps, u, *unseen, strict=True)
        ]

    def _at(self, values: Sequence[Values]) -> At:
        """The equation at the parameters of some members; those of a single one are numbers in it."""
        if len(values) == 1:
            self.parametric.set(values[0])
            return lambda number: self.parametric.problem
        columns = {name: torch.tensor([v[name] for v in values], dtype=torch.float64) for name in self.parametric.names}
        return spread(self.parametric.problem, {name: x.to(self.device) for name, x in columns.items()})

    @cached_property
    def batched(self) -> bool:
        """Whether the equation takes a column for each parameter, compared at two stations."""
        values = [station.values for station in (self.stations[0], self.stations[-1])]
        c = torch.eye(len(self.stations), dtype=torch.float64, device=self.device)[[0, -1]]
        try:
            both = self.unseen[0].residuals(self._at(values), c)
        except Exception:  # An equation written for numbers can fail on columns in any way.
            return False
        each = torch.cat([self.unseen[0].residuals(self._at([v]), x[None]) for v, x in zip(values, c, strict=True)])
        return both.shape == each.shape and torch.allclose(both, each, rtol=1e-9, atol=1e-12 * float(each.abs().max()))

    def network(self, coefficients: Tensor) -> CombinedNetwork:
        """N of a combination."""
        return CombinedNetwork(self.nets, coefficients)

"""Where problem, network and points meet: residuals, and the loss  L = Σ_k w_k · mean_i |r_k(x_i)|²."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pinn_odelora.checks.evaluation import check_functions
from pinn_odelora.checks.problem import check_problem
from pinn_odelora.derivatives import SAMPLE, Engine, lifted, rehearse
from pinn_odelora.derivatives.jets import LastingJets, alike
from pinn_odelora.distributed import ALONE, Processes
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import sobol, stream
from pinn_odelora.nets.scaled import field_units, terms_in_own_units
from pinn_odelora.points import Points
from pinn_odelora.units import of_order_one
from pinn_odelora.unknown_fields import extended

VALUE = "value"
"""The name of the term whose residual is u itself."""


class Solution(nn.Module):
    """The solution that a network represents: u(p) = g(p) + m(p) · N(e(p)), Points -> (N, fields).

    e is the problem's embedding of the coordinates, (g, m) its ansatz for hard conditions, which may also be a function
    u(p) = a(p, N ∘ e) of points and network; with soft conditions u(p) = N(e(p)).

    Args:
        problem: equation and conditions.
        net: N, from (N, inputs) to (N, fields).
        unknown: parameters of the problem that are trained together with the network, from the values that they have
            in ``problem``. The ``problem`` of the solution holds them as tensors; by the name of the tensor ``bounds``
            has what they must stay above, and ``sizes`` the first guesses of those that have no bound and are not of
            order one, which they are measured in.
        unknown_fields: the networks of unknown fields that are trained, too; in residuals the others are their guess.
    """

    def __init__(
        self,
        problem: Problem,
        net: nn.Module,
        unknown: Sequence[str] = (),
        unknown_fields: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.unknown_fields = nn.ModuleDict(unknown_fields or {})
        start = {name: torch.tensor(float(getattr(problem, name)), dtype=torch.float64) for name in unknown}
        self.coefficients = nn.ParameterDict({name: nn.Parameter(x) for name, x in start.items()})
        self.problem = dataclasses.replace(problem, **dict(self.coefficients)) if unknown else problem
        self.reads_network = problem.conditions == "hard" and problem.reads_network
        declared = problem.parameters()
        self.bounds = {
            f"coefficients.{name}": declared[name].above for name in unknown if math.isfinite(declared[name].above)
        }
        guesses = {f"coefficients.{name}": abs(x.item()) for name, x in start.items()}
        self.sizes = {k: x for k, x in guesses.items() if k not in self.bounds and not of_order_one(x)}

    def forward(self, p: Points) -> Tensor:
        if self.reads_network:
            # Not lifted: without jet rules the whole solution is differentiated by nested reverse mode.
            return self.problem.ansatz(p, lambda q: self._network(alike(q, p)))
        N = self._network(p)
        if self.problem.conditions == "soft":
            return N
        g, m = self._of_coordinates(self.problem.ansatz, p)
        return g + m * N

    def _network(self, p: Points) -> Tensor:
        return self.net(self._of_coordinates(self.problem.embed, p))

    def _of_coordinates(self, function: Callable[[Points], Any], p: Points) -> Any:
        """Once for all evaluations at the same points, unless a coefficient in it may have changed."""
        if self.coefficients or not isinstance(p, LastingJets):
            return lifted(function, p)
        return p.kept(function, torch.no_grad()(lambda: lifted(function, p)))


def values_of(problem: Problem, net: nn.Module) -> dict[str, Term]:
    """The term whose residual is the solution, over the whole region, its fields in the units of the network."""
    units = field_units(net, problem.fields)
    return {VALUE: Term(problem.region, lambda f: tuple(unit.of(f.derivative(k, "")) for k, unit in units.items()))}


class Loss(NamedTuple):
    """L and its terms w_k · mean_i |r_k(x_i)|², each a scalar tensor."""

    total: Tensor
    terms: dict[str, Tensor]


class System:
    """The residual system of a problem under a solution.

    How the derivatives of a term are found is decided once, by a dry run at a few points of the system's own: it
    depends on neither the points of a step nor whether weights require gradients at that moment.

    Args:
        problem: equation, conditions and weights.
        solution: the map Points -> (N, fields) whose residuals are asked for.
        extra: further terms, for instance measurements.
        derivatives: ``auto``, ``jets`` or ``autograd``, see ``derivatives.rehearsal``.

    Raises:
        InputError: if a few points show something wrong with the problem, see ``checks``.

    Attributes:
        processes: those that share the points of an evaluation; one alone, unless somebody has put others here.
    """

    def __init__(
        self,
        problem: Problem,
        solution: Callable[[Points], Tensor],
        extra: Mapping[str, Term] | None = None,
        derivatives: str = "auto",
    ) -> None:
        self.problem = problem
        self.solution = solution
        declared = problem.unknown_fields()
        self.evaluated = extended(solution, declared) if declared else solution
        self.extra = dict(extra or {})
        self.terms = terms_in_own_units({**problem.loss_terms(), **self.extra}, getattr(solution, "net", None))
        self.derivatives = derivatives
        self.processes: Processes = ALONE
        self._engines: dict[str, Engine] = {}
        self._components: dict[str, int] = {}
        check_problem(problem, self.terms, self._like)

    def refused(self, points: Mapping[str, Points]) -> str:
        """What is wrong with the problem at these points, whatever the network: one sentence, or nothing."""
        try:
            with torch.enable_grad():
                check_functions(self.problem, {name: self.terms[name] for name in points}, points)
        except InputError as refused:
            return str(refused)
        return ""

    def engine(self, name: str) -> Engine:
        """How the derivatives of term ``name`` are found.

        Raises:
            InputError: if the engine that was asked for cannot, or a row of the residual reads other points undeclared.
        """
        if name not in self._engines:
            term = self.terms[name]
            with _tracked(self.solution):
                self._engines[name] = rehearse(
                    name,
                    term.rows,
                    self.evaluated,
                    self.sample(name),
                    self.problem.readable,
                    self.problem.coords,
                    engine=self.derivatives,
                    coupled=term.coupled,
                )
        return self._engines[name]

    def sample(self, name: str) -> Points:
        """A few points of a term, always the same, where and as the solution is evaluated."""
        drawn = self.terms[name].where.sample(SAMPLE, lambda n, d: sobol(n, d, seed=stream("rehearsal")))
        few = Points({key: x[:SAMPLE] for key, x in drawn.items()})
        return few if self._like is None else few.to(self._like)

    @property
    def _like(self) -> Tensor | None:
        """A tensor that has dtype and device of the solution."""
        return next(self.solution.parameters(), None) if isinstance(self.solution, nn.Module) else None

    def components(self, name: str) -> int:
        """How many residuals term ``name`` has at a point."""
        if name not in self._components:
            self._components[name] = self.engine(name).residual(self.sample(name)).shape[1]
        return self._components[name]

    def residuals(self, points: Mapping[str, Points]) -> dict[str, Tensor]:
        """r_k at the points of every term k that is given, (N_k, components), unweighted."""
        return {name: self.engine(name).residual(points[name]) for name in self.terms if name in points}

    def share(self, name: str, number: int) -> slice:
        """Which of the points of a term this process evaluates: all of them where a residual reads other points."""
        return slice(0, number) if self.terms[name].coupled else self.processes.part(number)

    def residual_vector(self, points: Mapping[str, Points]) -> Tensor:
        """r with L = ½‖r‖², (R,): √(2 w_k / N_k) · r_k(x_i), term by term and component by component."""
        return torch.cat([self.weighted(name, r).mT.flatten() for name, r in self.residuals(points).items()])

    def weighted(self, name: str, r: Tensor, number: int | None = None) -> Tensor:
        """√(2 w / N) · r for the residual of a term at N points, or at some of ``number`` points."""
        return math.sqrt(2 * self.terms[name].weight / (number or len(r))) * r

    def loss(self, points: Mapping[str, Points]) -> Loss:
        """The loss at one set of points for each term."""
        return self.loss_of(self.residuals(points))

    def loss_of(self, residuals: Mapping[str, Tensor]) -> Loss:
        """The loss from the residual of each term, (N_k, components)."""
        terms = {name: self.terms[name].weight * r.square().sum(dim=1).mean() for name, r in residuals.items()}
        return Loss(sum(terms.values()), terms)


class Values(System):
    """The system whose residual is the solution, see ``values_of``.

    Args:
        problem, solution, derivatives: as of a system.
    """

    def __init__(self, problem: Problem, solution: Solution, derivatives: str = "auto") -> None:
        super().__init__(problem, solution, derivatives=derivatives)
        self.terms = values_of(problem, solution.net)


@contextmanager
def _tracked(solution: Callable[[Points], Tensor]) -> Iterator[None]:
    """All parameters with gradients: a function with a backward pass of its own shows only by them."""
    parameters = [*solution.parameters()] if isinstance(solution, nn.Module) else []
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, required in zip(parameters, before, strict=True):
            p.requires_grad_(required)


def draw_points(
    terms: Mapping[str, Term], interior: int, boundary: int, seed: int, draw: int = 0, purpose: str = "training"
) -> dict[str, Points]:
    """Points for every term, float64: ``interior`` for terms of full dimension, ``boundary`` for the others.

    Each term has its own Sobol sequence, and so has each purpose: points for one are never those for another, whatever
    the seeds. The same (seed, draw, purpose) gives the same points.
    """
    samples = {}
    for k, (name, term) in enumerate(terms.items()):
        n = interior if term.where.interior else boundary
        own = stream(purpose, seed, k)
        samples[name] = term.where.sample(n, lambda n, d, own=own: sobol(n, d, seed=own, draw=draw))
    return samples

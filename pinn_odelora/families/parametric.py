"""One residual system for all members of a family:  r(θ; μ),  with the parameters μ of the equation as tensors.

θ is what is trained: the balanced factors (A, B) of each adapted layer, and the last layer. The equation is read once,
with μ as tensors whose values are set before an evaluation, so that neither the plan of its derivatives nor the checks
of its Jacobian are repeated from one member to the next.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError
from pinn_odelora.families.ranges import Values
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import sobol, stream
from pinn_odelora.gradient import residual_vector_of
from pinn_odelora.linearisation import Coordinates, Linearisation
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.settings import ADAPTIVE, AUTO, LoRA
from pinn_odelora.lowrank.start import named
from pinn_odelora.lowrank.targets import check_rank, linear_targets, put_factors, thaw
from pinn_odelora.lowrank.wiring import Wiring
from pinn_odelora.manifolds.variables import Variable, frames_of, variable
from pinn_odelora.nets import check_network, copied, few_inputs
from pinn_odelora.nets.scaled import in_field_units
from pinn_odelora.objective import Objective
from pinn_odelora.optim.groups import pairs_of, parameters, single_tensors
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.unknown_fields import check_none

RANK = 4
"""The rank where none is asked for: with so few coordinates a batch of a few thousand points over-determines them, so
that members follow the equation and not the points."""
PROBES = 256
"""Points at which two members are compared as functions."""
Weights = Mapping[str, Tensor]
"""θ by the names of the adapted network's parameters."""


class Parametric:
    """The residual system of a family, with the network that represents whichever member is placed in it.

    Args:
        net: the pretrained network, which is copied.
        problem: the equation; its parameters of the family take other values.
        names: of these parameters.
        lora: adapted layers and rank; ``auto`` is ``RANK``, or the largest rank that a layer can have.
        seed: of starting factors that are random.
        derivatives: ``auto``, ``jets`` or ``autograd``.

    Raises:
        InputError: if network and problem do not fit, or the rank is adaptive.
    """

    def __init__(
        self,
        net: nn.Module,
        problem: Problem,
        names: tuple[str, ...],
        lora: LoRA | None = None,
        seed: int = 0,
        derivatives: str = "auto",
    ) -> None:
        check_none(problem.unknown_fields(), "a family")
        self.base = check_network(copied(net).cpu(), problem)
        self.digest = digest(self.base)
        self.posed = problem
        self.names = names
        self.lora = lora or LoRA()
        self.net = copy.deepcopy(self.base)
        wiring = Wiring.of(self.net, inputs := few_inputs(problem))
        targets = linear_targets(self.net, self.lora.targets, wiring)
        self.rank = _rank(self.lora, targets)
        start = named(self.lora.start, self.lora.start_size)
        self.layers: dict[str, LowRankLinear] = put_factors(
            self.net, targets, self.rank, self.lora.scale_at, start, torch.Generator().manual_seed(seed), inputs=inputs
        )
        thaw(self.net, self.lora.also, wiring.ends)
        self.trained = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        self.solution = Solution(problem, self.net, names)
        for coefficient in self.solution.coefficients.values():
            coefficient.requires_grad_(False)
        self.problem = self.solution.problem
        self.system = System(self.problem, self.solution, derivatives=derivatives)
        self.groups = [
            group | {"above": None, "size": None} for group in (*pairs_of(self.net), *single_tensors(self.solution))
        ]
        self.objective = self.new_objective()
        self.residual_vector = residual_vector_of(self.system)
        self.tensors_of = self._tensors_of()
        self.components = {name: self.system.components(name) for name in self.system.terms}
        self.probes = problem.region.sample(PROBES, lambda n, d: sobol(n, d, seed=stream("family probes")))
        self.start = self.weights()

    def _tensors_of(self) -> dict[str, tuple[str, ...]]:
        """By the variables of a Jacobian, in its order, the names of their tensors: (A, B) of an adapted layer."""
        names = {id(p): name for name, p in self.trained.items()}
        layers, others = self.objective.variables
        tensors = {name: x.factors if name in self.layers else (x.weight,) for name, x in layers.items()}
        tensors |= {name: (x,) for name, x in others.items()}
        return {variable: tuple(names[id(x)] for x in own) for variable, own in tensors.items()}

    def new_objective(self) -> Objective:
        """A loss with nothing remembered, for the steps of one member."""
        return Objective(self.system, parameters(self.groups), self.layers)

    @property
    def dimension(self) -> int:
        """P, the coordinates of the manifold."""
        pairs = sum(x.rank * (sum(x.weight.shape) - x.rank) for x in self.layers.values())
        factors = {id(p) for x in self.layers.values() for p in x.factors}
        return pairs + sum(p.numel() for p in self.trained.values() if id(p) not in factors)

    @property
    def residuals_at_a_point(self) -> tuple[int, int]:
        """Of all terms of full dimension together, one at least, and of all conditions."""
        terms, n = self.system.terms, self.components
        inner = sum(n[name] for name, term in terms.items() if term.where.interior)
        return max(inner, 1), sum(n.values()) - inner

    def problem_at(self, values: Values) -> Problem:
        """The equation with numbers for its parameters."""
        return dataclasses.replace(self.posed, **values)

    @torch.no_grad()
    def place(self, weights: Weights, values: Values | None = None) -> None:
        """Put a member into the network, and its parameters into the equation."""
        for name, p in self.trained.items():
            p.copy_(weights[name])
        self.set(values or {})

    @torch.no_grad()
    def set(self, values: Values) -> None:
        """Give the parameters of the equation these values."""
        for name, value in values.items():
            self.solution.coefficients[name].fill_(value)

    def free(self, p: Points) -> Tensor:
        """m N at points, what the network adds to the ansatz, (N, fields)."""
        if self.problem.conditions == "soft":
            return self.solution(p)
        g, _ = self.problem.ansatz(p)
        return self.solution(p) - g

    def network(self, weights: Weights) -> nn.Module:
        """The adapted network of a member, a copy of its own; the member is in this one afterwards."""
        self.place(weights)
        return copy.deepcopy(self.net)

    def weights(self) -> dict[str, Tensor]:
        """Copies of θ as it is."""
        return {name: p.detach().clone(memory_format=torch.contiguous_format) for name, p in self.trained.items()}

    def moved(self, weights: Weights, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """θ + dθ, with dθ by layer, (dA, dB) of an adapted one, or by tensor, as the variables of a Jacobian."""
        found = dict(weights)
        for key, part in parts.items():
            names = self.tensors_of[key]
            for name, change in zip(names, part.split([self.trained[n].numel() for n in names]), strict=True):
                found[name] = weights[name] + change.view_as(weights[name])
        return found

    def columns(self, around: Linearisation, metric: Literal["product", "factors"]) -> Tensor:
        """A Jacobian in coordinates at the member in the network, (R, P), float64.

        Args:
            around: with the variables of ``objective.sweep``.
            metric: for pairs, ``product`` (coordinates of the manifold) or ``factors``.
        """
        return Coordinates(around, frames_of(self.groups, metric)).dense()

    def variables(self, around: Linearisation, metric: Literal["product", "factors"]) -> dict[str, Variable]:
        """The variables in the order of the columns."""
        found = {group["name"]: variable(group, metric) for group in self.groups}
        return {name: found[name] for name in (*around.layers, *around.others)}

    @torch.no_grad()
    def function(self) -> Tensor:
        """u at the probes, its fields in the units of the network, (points, fields)."""
        return in_field_units(self.net, self.solution(self.probes))

    def points(self, residuals: int, seed: int, purpose: str) -> dict[str, Points]:
        """Evenly drawn points of about so many residuals, float64; inner points are four fifths where there are
        conditions, too.
        """
        inner, outer = self.residuals_at_a_point
        interior = max(1, round(residuals * (0.8 if outer else 1.0) / inner))
        boundary = max(1, round(residuals * 0.2 / max(outer, 1)))
        return draw_points(self.system.terms, interior, boundary, seed, purpose=purpose)


def _rank(lora: LoRA, targets: Mapping[str, nn.Linear]) -> int:
    if lora.rank == ADAPTIVE:
        raise InputError("The adapters of a family have one rank, so rank must be a whole number or auto.")
    if lora.rank == AUTO:
        return min(RANK, max(min(layer.weight.shape) for layer in targets.values()))
    check_rank(lora.rank, targets)
    return int(lora.rank)


def digest(net: nn.Module) -> str:
    """A digest of a network's weights and their names, 16 hexadecimal digits: what a saved family belongs to."""
    found = hashlib.sha256()
    for name, x in sorted(net.state_dict().items()):
        found.update(f"{name} {tuple(x.shape)}".encode())
        found.update(x.detach().cpu().double().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def fresh(points: Mapping[str, Points]) -> dict[str, Points]:
    """The same columns without what was kept with them for other parameters of the equation."""
    return {name: Points(dict(p)) for name, p in points.items()}

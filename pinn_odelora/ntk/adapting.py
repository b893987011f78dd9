"""Adapt the linearised model of an equation, and look at the network itself at the same δ.

    found = adapt_linearised(net, problem, rank=4)
    found.loss, found.rel_l2                        of the linearised model
    found.network_loss, found.network_rel_l2        of the network with the weights W0 + δ

What lies between the two is what the linearisation leaves out. The points are drawn once. Without decay the factors
start as those of an adaptation, and δ = s (B A − B₀A₀) starts at zero; with decay δ = s B A, from a zero or orthonormal
start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pinn_odelora.budget import Budget
from pinn_odelora.diagnostics import errors, test_points
from pinn_odelora.errors import RefusedValueError
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.loop import StepRecord
from pinn_odelora.lowrank.settings import ADAPTIVE, OF_GRADIENT, LoRA
from pinn_odelora.lowrank.start import Start, named
from pinn_odelora.lowrank.targets import check_rank, linear_targets
from pinn_odelora.lowrank.wiring import Wiring
from pinn_odelora.metrics import relative_l2
from pinn_odelora.nets import check_network, copied, few_inputs
from pinn_odelora.nets.scaled import in_field_units, own_name
from pinn_odelora.ntk.linearise import linearised
from pinn_odelora.ntk.model import Delta, ranks
from pinn_odelora.ntk.training import LinearisedRun, check_method
from pinn_odelora.optim.methods import Method, odelora
from pinn_odelora.rules import number, whole
from pinn_odelora.selection.initial_rank import RANKS
from pinn_odelora.system import Solution, System


@dataclass(frozen=True)
class LinearisedResult:
    """The linearised model where it ended, and the network there.

    Attributes:
        net: the network with the weights W0 + δ.
        delta: δ by layer, (m, n).
        loss_before, loss, network_loss: ½‖r‖² at δ = 0, of the linearised model, and of the network; without decay.
        rel_l2_before, rel_l2, network_rel_l2: relative L2 error at test points, of the same; NaN without a reference.
        ranks: of δ by layer, singular values above 1e-3 of the largest one.
        rows: R, the number of residuals.
        records: of all steps.
        failure: why it ended early; empty if it did not.
    """

    net: nn.Module
    delta: Delta
    loss_before: float
    loss: float
    network_loss: float
    rel_l2_before: float
    rel_l2: float
    network_rel_l2: float
    ranks: dict[str, int]
    rows: int
    records: list[StepRecord]
    failure: str = ""

    @property
    def summary(self) -> dict[str, Any]:
        """All numbers, as ``summary.json`` has them."""
        names = ("loss_before", "loss", "network_loss", "rel_l2_before", "rel_l2", "network_rel_l2", "rows", "failure")
        last = self.records[-1] if self.records else None
        return {
            "regime": "linearised",
            **{name: getattr(self, name) for name in names},
            "ranks": self.ranks,
            "steps": len(self.records),
            "gradient_evals": last.gradient_evals if last else 0,
            "seconds": last.seconds if last else 0.0,
        }

    def __repr__(self) -> str:
        errors = (
            f"relative L2 {self.rel_l2_before:.2e} -> {self.rel_l2:.2e}, of the network there "
            f"{self.network_rel_l2:.2e}; "
        )
        return (
            f"linearised: {'' if math.isnan(self.rel_l2) else errors}loss {self.loss_before:.2e} -> {self.loss:.2e}, "
            f"of the network {self.network_loss:.2e}; {len(self.records)} steps"
        )


def check_settings(net: nn.Module, problem: Problem, method: Method, lora: LoRA, decay: float) -> None:
    """Refuse what the linearised regime does not have, before anything is trained; nothing is changed.

    Raises:
        InputError: one sentence.
    """
    number(least=0).check("decay", decay)
    check_method(None, method, decay)
    if lora.rank == ADAPTIVE:
        raise RefusedValueError("rank", ADAPTIVE, "a whole number or auto for the linearised model")
    if lora.start in OF_GRADIENT:
        raise RefusedValueError("start", lora.start, "a start of the weights alone for the linearised model, as pissa")
    if decay and lora.start not in ("zero", "orthonormal"):
        raise RefusedValueError("start", lora.start, "zero or orthonormal with decay, which acts on δ = s B A itself")
    net = check_network(copied(net), problem)
    wiring = Wiring.of(net, few_inputs(problem))
    targets = linear_targets(net, lora.targets, wiring)
    if method.trains == "factors" and lora.rank != "auto":
        check_rank(lora.rank, targets)


def adapt_linearised(
    net: nn.Module,
    problem: Problem,
    *,
    method: Method | None = None,
    lora: LoRA | None = None,
    interior: int = 1000,
    boundary: int = 200,
    budget: Budget | None = None,
    decay: float = 0.0,
    seed: int = 0,
    test: int = 512,
    derivatives: str = "auto",
    observe: Callable[[StepRecord], None] = lambda record: None,
) -> LinearisedResult:
    """Adapt f(W0) + ⟨J, δ⟩ to an equation by any method, and measure the network at the same δ.

    Args:
        net: the pretrained network, (N, inputs) -> (N, fields); it is not changed.
        problem: the equation to adapt to.
        method: what is trained and how; ``odelora(LinearlyImplicit())`` if absent.
        lora: which layers move, and by factors of which rank; ``also`` has no effect, since only adapted layers move.
        interior, boundary: points for each term that fills the domain, and for each of the others.
        budget: when to stop; 200 steps if absent.
        decay: λ ≥ 0, weight decay on both factors.
        seed: of factors and points.
        test: points at which errors are measured.
        derivatives: ``auto``, ``jets`` or ``autograd``.
        observe: is given the record of every step.

    Raises:
        InputError: one sentence on what does not fit.
    """
    method, lora = method or odelora(LinearlyImplicit()), lora or LoRA()
    check_settings(net, problem, method, lora, decay)
    whole(1).check("test", test)
    net = check_network(copied(net), problem)
    drawn = {"targets": lora.targets, "interior": interior, "boundary": boundary, "seed": seed}
    model = linearised(net, problem, **drawn, derivatives=derivatives)
    weights = {name: net.get_submodule(name).weight.detach().clone() for name in model.shapes}
    run = _run(model, weights, method, lora, budget or Budget(steps=200), decay, seed)
    records = []
    for record in run:
        records.append(record)
        observe(record)
    delta = run.delta()
    before, inside = _errors(problem, net, delta, test, derivatives)
    for name, W in weights.items():
        net.get_submodule(name).weight.data = W + delta[name]
    # The same points: their residuals are those at δ = 0 of the model around the new weights.
    there = linearised(net, problem, **drawn, derivatives=derivatives)
    return LinearisedResult(
        net,
        delta,
        float(model.value(model.zero())),
        float(model.value(delta)),
        float(there.value(there.zero())),
        before,
        inside,
        errors(problem, Solution(problem, net), test)["error/rel_l2"],
        {own_name(net, name): r for name, r in ranks(delta, 1e-3).items()},
        model.rows,
        records,
        run.failure or "",
    )


def _run(
    model: Any,
    weights: Mapping[str, Tensor],
    method: Method,
    lora: LoRA,
    budget: Budget,
    decay: float,
    seed: int,
) -> LinearisedRun:
    """Factors that start beside the network's own weights, as in an adaptation; or δ itself."""
    if method.trains == "weights":
        return LinearisedRun(model, method, budget=budget)
    rank = min(RANKS[0], max(min(shape) for shape in model.shapes.values())) if lora.rank == "auto" else lora.rank
    generator = torch.Generator().manual_seed(seed)
    start: Start = named(lora.start, lora.start_size)
    ranks = {name: min(rank, *W.shape) for name, W in weights.items()}
    factors = {name: start(W, ranks[name], lora.scale_at(ranks[name]), generator) for name, W in weights.items()}
    return LinearisedRun(
        model,
        method,
        rank=rank,
        scale=lora.scale_at,
        decay=decay,
        start=factors,
        subtracted=decay == 0,
        budget=budget,
    )


@torch.no_grad()
def _errors(problem: Problem, net: nn.Module, delta: Delta, test: int, derivatives: str) -> tuple[float, float]:
    """Relative L2 errors of u at δ = 0 and of its linearisation u + ⟨∂u/∂W, δ⟩ at δ, at the test points of a run."""
    points = test_points(problem, test)
    reference = problem.known_reference(points)
    system = System(problem, Solution(problem, net), derivatives=derivatives)
    # u itself in the place of the residuals; with this weight a row is a value.
    values = lambda f: tuple(f.derivative(name, "") for name in problem.fields)
    system.terms = {"u": Term(Cloud(points), values, weight=points.number / 2)}
    layers = {name: net.get_submodule(name) for name in delta}
    around = Linearisation(Sweep(system, layers), {"u": points})
    shaped = lambda u: u.unflatten(0, (len(problem.fields), points.number)).mT
    before, after = shaped(around.r), shaped(around.r + around.matvec(delta))
    reference = None if reference is None else in_field_units(net, reference)
    before, after = (relative_l2(in_field_units(net, u), reference) for u in (before, after))
    return before, after

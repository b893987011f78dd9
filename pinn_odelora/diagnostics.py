"""What is measured of a network that is being adapted, under the same names for every method.

The update of layer l is D_l = s(B A), its product, when factors are trained, and W_l - W0_l when all weights are. Its
effective rank is exp(H(σ / Σσ)), H the entropy of the normalised singular values (Roy and Vetterli, 2007).
The alignment of a step is the cosine between the change ΔW of all adapted weights and -G, the descent direction of
full fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, linalg, nn

from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import sobol, stream
from pinn_odelora.kernel import ALL, Spectrum, spectra
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.log import Log
from pinn_odelora.loop import Row, StepRecord, Training
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.manifolds.factors import Factors, balance_defect
from pinn_odelora.manifolds.variables import frames_of
from pinn_odelora.metrics import max_error, relative_l2, relative_l2_by_field
from pinn_odelora.nets.scaled import in_field_units, own_name
from pinn_odelora.points import Points
from pinn_odelora.system import System, draw_points

Layers = Mapping[str, nn.Linear | LowRankLinear]

BY_FIELD = "error/rel_l2/"
"""The beginning of the names of errors of single fields."""
SHOWN = 8
"""How many singular values of a layer are logged."""
LOGGED = (1, 10, 100)
"""Which eigenvalues of a kernel are logged, and how far its eigenvectors are counted in an alignment."""
PARTIAL = ("lora/", "integrator/", "flow/", "kernel/")
"""Sections of a row that some methods have only a part of."""
FINER = 16
"""How many times more test points the errors before and after a run have than those of its history."""


def errors(problem: Problem, solution: nn.Module, n: int) -> dict[str, float]:
    """Relative L2 and largest error at n points that do not depend on the run."""
    p = test_points(problem, n).to(next(solution.parameters()))
    with torch.no_grad():
        prediction, reference = solution(p), problem.known_reference(p)
    return _errors(problem, solution, prediction, reference)


def _errors(problem: Problem, solution: nn.Module, prediction: Tensor, reference: Tensor | None) -> Row:
    """Of all fields together, and of each where there are several; relative ones with the fields in their units."""
    u, known = (None if x is None else in_field_units(solution, x) for x in (prediction, reference))
    by_field = relative_l2_by_field(u, known, problem.fields)
    return {
        "error/rel_l2": relative_l2(u, known),
        "error/max": max_error(prediction, reference),
        **{f"{BY_FIELD}{name}": x for name, x in by_field.items()},
    }


def test_points(problem: Problem, n: int) -> Points:
    """The same n points of the region for every run, float64."""
    return problem.region.sample(n, lambda n, d: sobol(n, d, seed=stream("test")))


def weights(layers: Layers) -> dict[str, Tensor]:
    """Copies of the effective weights by layer name, (m, n) each."""
    return {name: layer.weight.detach().clone() for name, layer in layers.items()}


class Core(NamedTuple):
    """What the r × r cores of a pair say: singular values of s·BA, A and B, (r,) each, and ‖BᵀB - AAᵀ‖."""

    product: Tensor
    A: Tensor
    B: Tensor
    balance: Tensor


def cores(layers: Layers) -> dict[str, Core]:
    """The core of every pair, from thin factorisations B = Q_B R_B, Aᵀ = Q_A R_A; pairs of one shape in one batch."""
    pairs = {name: layer for name, layer in layers.items() if isinstance(layer, LowRankLinear)}
    shapes: dict[tuple, list[str]] = {}
    for name, layer in pairs.items():
        shapes.setdefault((layer.A.shape, layer.B.shape, layer.scale), []).append(name)
    found = {}
    for (*_, scale), names in shapes.items():
        R_B = linalg.qr(torch.stack([pairs[name].B for name in names]).double(), mode="r").R
        R_A = linalg.qr(torch.stack([pairs[name].A for name in names]).double().mT, mode="r").R
        sigma = linalg.svdvals(torch.stack([scale * R_B @ R_A.mT, R_A, R_B]))
        balance = balance_defect(Factors(R_A.mT, R_B))
        found |= {name: Core(*sigma[:, i], balance[i]) for i, name in enumerate(names)}
    return {name: found[name] for name in pairs}


def effective_rank(sigma: Tensor) -> float:
    """exp of the entropy of σ/Σσ; 0 for a zero matrix."""
    values = [x for x in sigma.tolist() if x > 0]
    total = sum(values)
    return math.exp(-sum(x / total * math.log(x / total) for x in values)) if values else 0.0


@torch.no_grad()
def low_rank(layers: Layers, pretrained: Mapping[str, Tensor]) -> dict[str, float]:
    """Singular values, effective rank (mean over layers) and Frobenius norm of the updates; and of the factors the
    balance defect and the condition numbers of AAᵀ and BᵀB, the worst over the layers, and the ranks, NaN where there
    are none.
    """
    pairs = cores(layers)
    sigma = {
        name: pairs[name].product if name in pairs else linalg.svdvals((layer.weight - pretrained[name]).double())
        for name, layer in layers.items()
    }
    ranks = [effective_rank(v) for v in sigma.values()]
    return {
        "lora/balance": max((float(core.balance) for core in pairs.values()), default=math.nan),
        "lora/cond_A": max((_gram_condition(core.A) for core in pairs.values()), default=math.nan),
        "lora/cond_B": max((_gram_condition(core.B) for core in pairs.values()), default=math.nan),
        "lora/effective_rank": sum(ranks) / len(ranks) if ranks else math.nan,
        "lora/norm": norm_of(list(sigma.values())),
        "lora/rank": sum(len(core.product) for core in pairs.values()) / len(pairs) if pairs else math.nan,
        **{f"lora/{name}/rank": len(pairs[name].product) if name in pairs else math.nan for name in layers},
        **{
            f"lora/{name}/singular_value_{i + 1}": x
            for name, v in sigma.items()
            for i, x in enumerate(v[:SHOWN].tolist())
        },
    }


def _gram_condition(sigma: Tensor) -> float:
    return float((sigma[0] / sigma[-1]) ** 2) if sigma[-1] > 0 else math.inf


def alignment(before: Mapping[str, Tensor], after: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> float:
    """cos(ΔW, -G) over all adapted weights together, NaN when either is zero or there are none."""
    if not gradient:
        return math.nan
    change = torch.cat([(after[name] - before[name]).flatten() for name in gradient])
    G = torch.cat([g.flatten() for g in gradient.values()])
    scale = float(linalg.vector_norm(change) * linalg.vector_norm(G))
    return -float(change @ G) / scale if scale > 0 else math.nan


def norm_of(tensors: list[Tensor]) -> float:
    """The Euclidean norm of several tensors together."""
    return math.sqrt(sum(float(x.double().square().sum()) for x in tensors))


def multipliers(found: Mapping[str, float]) -> Row:
    """The row of λ_k."""
    return {f"weighting/{name}": x for name, x in found.items()}


def applicable(row: Row) -> Row:
    """A row without what its method does not have, which is NaN; losses are kept, whatever they are."""
    return {name: x for name, x in row.items() if not (name.startswith(PARTIAL) and math.isnan(x))}


class Reference:
    """What a solution is compared with: reference values at test points, and a held-out set of points for the loss.

    Args:
        system: the residual system; its solution is measured.
        log: how many points.
    """

    def __init__(self, system: System, log: Log) -> None:
        self.system = system
        self.test = test_points(system.problem, log.test)
        unseen = {name: term.unseen for name, term in system.terms.items()}
        self.heldout = draw_points(unseen, log.heldout, max(log.heldout // 5, 1), seed=0, purpose="held-out")
        self.values = system.problem.known_reference(self.test)

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.test = self.test.to(device, dtype)
        self.values = None if self.values is None else self.values.to(device, dtype)
        self.heldout = {name: p.to(device, dtype) for name, p in self.heldout.items()}

    @torch.no_grad()
    def errors(self) -> Row:
        """Relative L2 and largest error of the solution at the test points; nothing without a reference."""
        if self.values is None:
            return {}
        prediction = self.system.solution(self.test)
        return _errors(self.system.problem, self.system.solution, prediction, self.values)

    def loss(self) -> float:
        """The loss on the held-out points."""
        return sum(self.losses().values())

    def losses(self) -> dict[str, float]:
        """Its terms w_k · mean|r_k|², without the graph that derivatives by reverse mode need of the weights."""
        trained = [p for p in self.system.solution.parameters() if p.requires_grad]
        for p in trained:
            p.requires_grad_(False)
        try:
            with torch.no_grad():
                return {name: float(x) for name, x in self.system.loss(self.heldout).terms.items()}
        finally:
            for p in trained:
                p.requires_grad_(True)


@dataclass(frozen=True)
class Kernels:
    """The spectra of the neural tangent kernel of a run, in the coordinates of its method.

    The kernel is that of the problem's own loss, whatever multipliers the terms have.

    Args:
        sweep: evaluates the residuals and their Jacobian.
        groups: parameter groups of all that is trained, see ``Method.groups``.
        metric: of pairs, see ``Method.metric``.
    """

    sweep: Sweep
    groups: Sequence[Mapping[str, Any]]
    metric: Literal["product", "factors"]

    def spectra(self, points: Mapping[str, Points], leading: int | None = None) -> Mapping[str, Spectrum]:
        """By term, and of all terms together, at the parameters as they are; see ``kernel.spectra``."""
        return spectra(Linearisation(self.sweep, points), frames_of(self.groups, self.metric), leading)


def kernel_row(found: Mapping[str, Spectrum]) -> Row:
    """What is logged of spectra by name: of the whole kernel, and of the kernel of each term if there are several."""
    row: Row = {}
    for name, spectrum in found.items():
        prefix = "kernel" if name == ALL else f"kernel/{name}"
        alignment = spectrum.alignment
        row |= {
            f"{prefix}/trace": spectrum.trace,
            f"{prefix}/condition": spectrum.condition,
            **{f"{prefix}/eigenvalue_{k}": _nth(spectrum.values, k) for k in LOGGED},
            **{f"{prefix}/alignment_{k}": _nth(alignment, k) for k in LOGGED},
        }
    return row


def _nth(values: Tensor, k: int) -> float:
    """The k-th value; NaN where there are fewer."""
    return float(values[k - 1]) if k <= len(values) else math.nan


class Diagnostics:
    """Measures a run at every ``every``-th step; an ``Observer`` of the loop.

    Args:
        reference: what the solution is compared with.
        layers: the layers that are adapted, by name.
        every: steps between two rows.
        kernels: the kernel of the run, where its spectrum is to be measured.
    """

    def __init__(self, reference: Reference, layers: Layers, every: int, kernels: Kernels | None = None) -> None:
        self.reference = reference
        self.layers = dict(layers)
        self.every = every
        self.kernels = kernels
        self.pretrained = weights(self.layers)
        self._weights: dict[str, Tensor] = {}
        self._spectrum: Spectrum | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        self.reference.to(device, dtype)
        self.pretrained = {name: W.to(device) for name, W in self.pretrained.items()}

    def before(self, training: Training) -> Row | None:
        if training.progress.step % self.every:
            return None
        row = self.state(training)
        self._weights = weights(self.layers)
        return row

    def after(self, training: Training, record: StepRecord, row: Row) -> Row:
        before, after, first = self._weights, weights(self.layers), training.objective.first
        report = record.report
        solver = report.solver
        return applicable(
            row
            | self._effective_dimension(training, report.h)
            | {
                "cost/batch_size": record.batch_size,
                "loss": record.loss,
                **{f"loss/{name}": value for name, value in record.terms.items()},
                **multipliers(record.multipliers),
                "gradient/norm": norm_of(first.gradients),
                "update/norm": norm_of([after[name] - before[name] for name in before]),
                "flow/alignment": alignment(before, after, first.weights),
                "integrator/h": report.h,
                "integrator/rejected": math.nan if training.method.integrator is None else float(report.rejected),
                "integrator/bits": math.nan if solver is None else float(solver.bits),
                "integrator/fallback": math.nan if solver is None else float(solver.fallback),
                "lora/discarded": math.nan if report.discarded is None else report.discarded,
            }
        )

    def state(self, training: Training) -> Row:
        """What can be measured of the iterate that the run would return."""
        iterate = self.reference.loss()
        kernel = self._kernel()
        with training.objective.restored(training.returned()):
            return self._returned(training) | {"stability/iterate_loss": iterate} | kernel

    def _kernel(self) -> Row:
        if self.kernels is None:
            return {}
        found = self.kernels.spectra(self.reference.heldout)
        self._spectrum = found[ALL]
        return kernel_row(found)

    def _effective_dimension(self, training: Training, h: float) -> Row:
        """d(1/h) of the kernel where the step started, its lower bound; NaN for a method without an integrator."""
        if self.kernels is None:
            return {}
        flow = training.method.integrator is not None and h > 0
        return {"kernel/effective_dimension": self._spectrum.effective_dimension(1 / h)[0] if flow else math.nan}

    def last(self, training: Training) -> Row:
        """The last row: the iterate that the run returns, its loss on a batch of the largest size."""
        objective, sampler = training.objective, training.sampler
        here = sampler.draw(training.progress.step, sampler.largest).to(objective.parameters[0].device)
        loss = objective.system.loss_of(objective.uncounted(sampler.chosen(here, objective.uncounted).points))
        terms = {f"loss/{name}": float(x) for name, x in loss.terms.items()}
        batch = {"cost/batch_size": sampler.largest, "loss": float(loss.total)}
        return applicable(self.state(training) | batch | terms | multipliers(objective.multipliers))

    def _returned(self, training: Training) -> Row:
        heldout = self.reference.loss()
        p = training.progress
        rise = heldout / p.heldout_loss - 1 if p.heldout_loss > 0 else 0.0
        p.largest_rise = max(p.largest_rise, rise)
        p.heldout_loss = heldout
        if math.isnan(p.first_heldout_loss):
            p.first_heldout_loss = heldout
        solution = self.reference.system.solution
        lora = low_rank(self.layers, self.pretrained) | ({} if training.ranks is None else training.ranks.row())
        return {
            "step": p.step,
            "cost/gradient_evals": p.gradient_evals,
            "cost/seconds": p.seconds,
            "cost/batch_size": training.batch_size.size,
            "stability/heldout_loss": heldout,
            "stability/rose": float(rise > 0),
            "stability/largest_rise": p.largest_rise,
            **self.reference.errors(),
            **{f"lora/{own_name(solution.net, name.removeprefix('lora/'))}": x for name, x in lora.items()},
            **{f"coefficient/{name}": x.item() for name, x in solution.coefficients.items()},
        }

"""The one call: adapt a pretrained network to a problem, step by step or at once.

    result = adapt(net, problem)                 a network and an equation in, a solution and its history out
    for record in steps(net, problem): ...       the same, with a look at every step

Neither files nor Hydra, Lightning or W&B are needed; ``train.py`` iterates over the same ``Adaptation``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pinn_odelora import chosen, loop
from pinn_odelora.budget import Budget, Progress
from pinn_odelora.checks.evaluation import check_reference
from pinn_odelora.confidence import Interval, coefficient_intervals
from pinn_odelora.diagnostics import FINER, Diagnostics, Kernels, Reference, errors
from pinn_odelora.distributed import Processes
from pinn_odelora.error_estimate import ErrorEstimate, error_estimate
from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.errors import unknown as no_such
from pinn_odelora.field_networks import TERM, field_networks, smoothing_terms
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.kernel import Spectrum
from pinn_odelora.linalg.plan import Plan
from pinn_odelora.log import Log
from pinn_odelora.loop import Row, StepRecord, Training
from pinn_odelora.lowrank.layer import LowRankLinear, merged
from pinn_odelora.lowrank.settings import ADAPTIVE, AUTO, KEPT, OF_GRADIENT, SINGULAR, LoRA
from pinn_odelora.lowrank.start import named
from pinn_odelora.lowrank.targets import check_rank, linear_targets, put_factors, ranks_at, thaw
from pinn_odelora.lowrank.wiring import Wiring, linear_layers
from pinn_odelora.measurements import measured_term
from pinn_odelora.misfit import Misfit, misfits, misfits_of_term
from pinn_odelora.nets import check_network, copied, few_inputs
from pinn_odelora.nets.scaled import own_name
from pinn_odelora.objective import Objective
from pinn_odelora.optim.methods import Method, odelora
from pinn_odelora.points import Points
from pinn_odelora.result import Result
from pinn_odelora.rules import instance_of, null, one_of, whole
from pinn_odelora.runs import saved_state
from pinn_odelora.sampling.batch_size import drawn_residuals, sufficient_size
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.selection.initial_rank import RANKS, initial_rank
from pinn_odelora.selection.rank import AdaptiveRank, RankAdaptation
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.threads import threads
from pinn_odelora.torch_residuals import Function, torch_problem
from pinn_odelora.wall import check_ahead
from pinn_odelora.weighting.loss_weights import LossWeights
from pinn_odelora.weighting.settings import KINDS, Weighting

DTYPES = {32: torch.float32, 64: torch.float64}
Data = str | Path | Term | Mapping[str, ArrayLike]
"""Measured values: a file, columns by name, or a term of the loss."""


class Adaptation:
    """A network on its way to another problem: iterate over it for the records of its steps, then ask for ``result()``.

    Invalid input raises here, before anything is trained; the network is first changed when the iteration starts. An
    iteration that was left can be taken up again, and ``state_dict`` continues it elsewhere.

    Args:
        net: the pretrained network, (N, inputs) -> (N, fields); it is put in float64 and changed in place.
        problem: the equation to adapt to; its unknown parameters have their first guess.
        rank: short for ``lora=LoRA(rank=…)``.
        lora: which layers are adapted, and by factors of which rank.
        method: what is trained and how; ``odelora(LinearlyImplicit())`` if absent.
        points: the points of the steps.
        budget: when to stop.
        weighting: multipliers of the terms of the loss that are renewed on the way; a kind, ``ntk`` or ``gradnorm``,
            is short for ``Weighting(kind)``, and the weights of the problem alone are ``fixed``.
        data: measured values that enter the loss.
        data_weight: w of their term.
        unknown: parameters of the problem that are found from the data.
        seed: of the starting factors and the points.
        precision: 32 or 64 bits for network, points and factors.
        derivatives: ``auto``, ``jets`` or ``autograd``.
        log: how often, and on how many points, the run is measured.
        threads: CPU threads for steps and their end; None leaves them as they are.

    Raises:
        InputError: one sentence on what does not fit.
    """

    def __init__(
        self,
        net: nn.Module,
        problem: Problem,
        *,
        rank: int | str | None = None,
        lora: LoRA | None = None,
        method: Method | None = None,
        points: Sampling | None = None,
        budget: Budget | None = None,
        weighting: Weighting | str = "fixed",
        data: Data | None = None,
        data_weight: float = 1.0,
        unknown: Sequence[str] = (),
        seed: int = 0,
        precision: Literal[32, 64] = 64,
        derivatives: str = "auto",
        log: Log | None = None,
        threads: int | None = None,
    ) -> None:
        _check_kinds(problem=problem, lora=lora, method=method, points=points, budget=budget, log=log)
        if rank is not None and lora is not None:
            raise InputError("rank and lora are both given, but rank is short for lora=LoRA(rank=...): give one.")
        self.seed = whole(0, 2**32 - 1).check("seed", seed)
        self.precision = one_of(*DTYPES).check("precision", precision)
        self.threads = (whole(1) | null).check("threads", threads)
        self.method = method or odelora(LinearlyImplicit())
        self.points = points or Sampling()
        self.budget = budget or Budget(gradient_evals=500)
        check_ahead(self.budget.wall)
        self.log = log or Log()
        self.weighting = weighting if isinstance(weighting, Weighting) else _weighting(weighting)
        self.lora = lora or (LoRA() if rank is None else LoRA(rank=rank))
        self.unknown = _unknown(unknown, problem)
        self.data = data
        self.data_weight = data_weight
        self.net = check_network(net, problem)
        extra = {} if data is None else {"data": measured_term(data, problem, data_weight)}
        networks = field_networks(problem)
        extra |= smoothing_terms(problem, networks)
        self.solution = Solution(problem, self.net, self.unknown, networks)
        self.problem = self.solution.problem
        self.system = System(self.problem, self.solution, extra, derivatives)
        check_reference(self.problem)
        self._check_method()
        self.wiring = Wiring.of(self.net, few_inputs(problem))
        self.targets = self._targets()
        self.components = {name: self.system.components(name) for name in self.system.terms}
        self.rank = self._rank()
        self.ranks = ranks_at(self.rank, self.targets) if self.method.trains == "factors" else {}
        if self.sought:
            self._check_unknown()
        self.history: list[Row] = []
        self.intervals: dict[str, Interval] = {}
        self.losses_before: dict[str, float] = {}
        self.losses: dict[str, float] = {}
        self.estimate = ErrorEstimate(reason="none was asked for")
        self.misfits: dict[str, Misfit] = {}
        self._training: Training | None = None
        self._saved: Mapping[str, Any] | None = None
        self._concluded = False
        self._error_before: float | None = None

    # Checks.

    def _check_method(self) -> None:
        if self.lora.rank == ADAPTIVE and self.method.trains == "factors" and self.method.integrator is None:
            allowed = f"a number with {self.method.name}, which keeps a memory for every entry of the factors"
            raise RefusedValueError(
                "rank", ADAPTIVE, f"{allowed}; odelora, lora_gd, scaled_gd and lora_pro adapt the rank"
            )
        if self.sought and not self.method.linearises:
            raise InputError(
                f"{self._first_sought} is unknown, but only an implicit scheme can find it: choose odelora, lora_gd or "
                "full_implicit with linearly_implicit or ros2."
            )
        if self.weighting.kind != "fixed" and self.method.one_loss:
            allowed = f"fixed with {self.method.name}, which keeps the curvature of one loss"
            raise RefusedValueError("weighting", self.weighting.kind, allowed)
        if not self.method.layer.is_product:
            needs = {"weighting": self.weighting.kind != "fixed", "log.kernel": self.log.kernel}
            if asked := [name for name, given in needs.items() if given]:
                raise InputError(
                    f"{asked[0]} needs a linearisation, which layers of {self.method.name} do not have: leave it out."
                )
        h = None if self.method.integrator is None else self.method.integrator.h
        singular = self.lora.start in SINGULAR and self.method.trains == "factors"
        if singular and self.method.full_rank and h is None:
            raise InputError(
                f"start is {self.lora.start}, where the flow is singular and no step size can be found: give h, or "
                "start from factors of full rank, orthonormal or pissa."
            )

    def _targets(self) -> dict[str, nn.Linear]:
        """The layers that are adapted, or measured where all weights are trained."""
        patterns = self.lora.targets
        if self.method.trains == "weights" and not linear_layers(self.net):
            return {}  # of other layers nothing is measured
        if self.method.trains == "weights" and patterns is None and not self.wiring.hidden:
            # Nothing is put in, so a network without hidden layers is as good: all its layers are measured then.
            patterns = "*"
        return linear_targets(self.net, patterns, self.wiring)

    def _rank(self) -> int:
        """r at the start, of the layers that can have it; where there are no factors it is of no account."""
        if self.method.trains == "weights":
            return RANKS[0]
        rule = self.adaptive
        rank = self.lora.rank if rule is None else rule.start
        if rank == AUTO:
            interior, boundary = self.points.interior, self.points.boundary
            drawn = drawn_residuals(self.system.terms, self.components, interior, boundary)
            ends = {name for word in self.wiring.ends for name in self._thawed(word)}
            beside = sum(p.numel() for name in ends for p in self.net.get_submodule(name).parameters())
            return initial_rank(self.targets, beside, sufficient_size(drawn, interior))
        check_rank(rank, self.targets, "rank" if rule is None else "adaptive.start")
        return int(rank)

    def _thawed(self, word: str) -> list[str]:
        """The first or the last layers, by that word, that are trained whole beside the factors."""
        return [name for name in self.wiring.ends[word] if word in self.lora.also and name not in self.targets]

    @property
    def adaptive(self) -> AdaptiveRank | None:
        """How the rank of factors follows the gradient; None where it stays, and where there are none."""
        if self.method.trains != "factors" or self.lora.rank != ADAPTIVE:
            return None
        return self.lora.adaptive or AdaptiveRank()

    @property
    def sought(self) -> dict[str, Tensor]:
        """What is unknown in the equation: parameters, and fields by the last tensor of their networks."""
        fields = {name: [*network.parameters()][-1] for name, network in self.solution.unknown_fields.items()}
        return dict(self.solution.coefficients) | fields

    @property
    def _first_sought(self) -> str:
        return next(iter(self.sought))

    def _check_unknown(self) -> None:
        """A parameter or a field that no residual depends on cannot be found; nor can one without measurements."""
        if not any(term.measured for term in self.system.terms.values()):
            raise InputError(
                f"{self._first_sought} is unknown, but there are no measurements to find it from: give data, or a term "
                "of the problem with measured=True."
            )
        few = {name: self.system.sample(name) for name in self.system.terms if not name.startswith(TERM)}
        with torch.enable_grad():
            total = sum(r.square().sum() for r in self.system.residuals(few).values())
            found = torch.autograd.grad(total, [*self.sought.values()], allow_unused=True)
        for name, g in zip(self.sought, found, strict=True):
            if g is None or (name in self.solution.unknown_fields and not bool(g.any())):
                raise InputError(f"{name} is unknown, but no residual of this problem depends on it.")

    @property
    def chosen(self) -> str:
        """Two lines: which layers are adapted, at which rank, and how derivatives are found."""
        engines = {name: self.system.engine(name) for name in self.system.terms}
        if self.method.linearises:
            engines = {name: engine.by_rows for name, engine in engines.items()}
        return f"{self._layers_chosen()}\n{chosen.derivatives_line(engines)}"

    def _layers_chosen(self) -> str:
        if self.method.trains == "weights":
            return chosen.weights_line(self.net)
        own = lambda name: own_name(self.net, name)
        whole = chosen.whole_layers([*map(own, self._thawed("first"))], "input")
        whole += chosen.whole_layers([*map(own, self._thawed("last"))], "output")
        whole += ["all biases"] * ("biases" in self.lora.also)
        targets, ranks = ({own(name): x for name, x in part.items()} for part in (self.targets, self.ranks))
        wiring = replace(self.wiring, unused=tuple(map(own, self.wiring.unused)))
        return chosen.layers_line(targets, ranks, self.rank, whole, wiring, self.adaptive is not None)

    # The run.

    @property
    def training(self) -> Training:
        """What the steps change; made at the first request, when factors are put into the network."""
        if self._training is None:
            self._training = self._start()
        return self._training

    def _start(self) -> Training:
        _ = self.error_before  # of the network before it is changed
        self.before = {name: x.detach().cpu().clone() for name, x in self.net.state_dict().items()}
        begun = time.perf_counter()
        layers = self._layers()
        seconds = time.perf_counter() - begun
        self.net.to(DTYPES[self.precision])
        self.solution.unknown_fields.to(DTYPES[self.precision])
        like = next(self.net.parameters())
        groups = self.method.groups(self.solution)
        weights = {name: term.weight for name, term in self.system.terms.items()}
        loss_weights = LossWeights(self.weighting, weights, groups, self.method.metric, self.method.linearises)
        parameters = [p for group in groups for p in group["params"]]
        objective = Objective(self.system, parameters, layers, loss_weights)
        self.groups = groups
        self.kernels = Kernels(objective.sweep, groups, self.method.metric)
        measured = self.kernels if self.log.kernel else None
        self.diagnostics = Diagnostics(Reference(self.system, self.log), layers, self.log.every, measured)
        self.diagnostics.to(like.device, like.dtype)
        self.losses_before = self.diagnostics.reference.losses()
        asked = int(self.method.trains == "factors" and self.lora.start in OF_GRADIENT)
        objective.count = asked
        return Training(
            objective,
            self.method,
            self.method.optimizer(groups),
            Sampler(self.system.terms, self.points, self.components, self.seed, DTYPES[self.precision]),
            None if self.adaptive is None else RankAdaptation(self.adaptive, layers),
            Progress(gradient_evals=asked, seconds=seconds if asked else 0.0),
        )

    def _layers(self) -> dict[str, nn.Linear | LowRankLinear]:
        """The adapted layers, with factors put beside them when the method trains factors."""
        if self.method.trains == "weights":
            return self.targets
        start = named(self.lora.start, self.lora.start_size)
        generator = torch.Generator().manual_seed(self.seed)
        scale, layer = self.lora.scale_at, self.method.layer
        gradients = self._gradients() if self.lora.start in OF_GRADIENT else None
        settings = {"gradients": gradients, "subtracted": self.lora.start not in KEPT, "layer": layer}
        inputs = few_inputs(self.problem)
        layers = put_factors(self.net, self.targets, self.rank, scale, start, generator, inputs=inputs, **settings)
        thaw(self.net, self.lora.also, self.wiring.ends)
        return layers

    def _gradients(self) -> dict[str, Tensor]:
        """∂L/∂W of every layer to be adapted, as the network is, at points that no step has."""
        weights = [layer.weight.requires_grad_(True) for layer in self.targets.values()]
        sampled = draw_points(self.system.terms, self.points.interior, self.points.boundary, self.seed, purpose="start")
        with threads(self.threads), torch.enable_grad():
            found = torch.autograd.grad(self.system.loss(sampled).total, weights, materialize_grads=True)
        return dict(zip(self.targets, found, strict=True))

    def to(self, device: str | torch.device) -> Adaptation:
        """Network, points and what is measured on a device; before the first step."""
        _, device = self.training, torch.device(device)
        self.solution.to(device)
        self.diagnostics.to(device, next(self.net.parameters()).dtype)
        return self

    def share(self, processes: Processes) -> None:
        """Evaluate each point in one of these processes, which take all steps together; ``ALONE`` ends that."""
        self.system.processes = processes
        self.training.clock, self.training.agreed = processes.clock, processes.any

    def __iter__(self) -> Iterator[StepRecord]:
        records = loop.steps(self.training, self.budget, self.diagnostics)
        while (record := self._next(records)) is not None:
            if record.measured:
                self.history.append(record.measured)
            yield record

    def _next(self, records: Iterator[StepRecord]) -> StepRecord | None:
        with threads(self.threads):
            return next(records, None)

    def conclude(self) -> None:
        """End the run: the network is the iterate that it returns, and the last row of the history describes it."""
        if self._concluded:
            return
        training = self.training
        with threads(self.threads):
            loop.conclude(training)
            self.history.append(self.diagnostics.last(training))
            reference = self.diagnostics.reference
            self.losses = reference.losses()
            if self.solution.coefficients and training.failure is None:
                self.intervals = self._intervals()
            if reference.values is None if self.log.estimate is None else self.log.estimate:
                self.estimate = error_estimate(self.system, self.seed, most=training.sampler.largest)
        self._concluded = True

    def _intervals(self) -> dict[str, Interval]:
        training = self.training
        sampler, objective = training.sampler, training.objective
        here = sampler.draw(training.progress.step, sampler.largest).to(objective.parameters[0].device)
        points = sampler.chosen(here, objective.uncounted).points
        self.misfits = self._misfits(points)
        if not all(x.fitted for x in self.misfits.values()):
            return {}
        return coefficient_intervals(objective.sweep, self.groups, points, multipliers=objective.multipliers)

    def _misfits(self, points: Mapping[str, Points]) -> dict[str, Misfit]:
        """Of the measured fields, and of the other measured terms."""
        found = misfits(self.problem, self.solution, points["data"]) if "data" in points else {}
        fields = bool(found)
        for name, term in self.system.terms.items():
            if term.measured and not (name == "data" and fields):
                of_term = misfits_of_term(self.system, name, points[name])
                found |= {f"term {key}" if key in found else key: x for key, x in of_term.items()}
        return found

    def kernel_spectra(self, interior: int = 250, leading: int | None = None) -> Mapping[str, Spectrum]:
        """The spectrum of the neural tangent kernel of each term, and under ``all`` that of all terms together.

            run = steps(net, problem)
            before = run.kernel_spectra()["all"]
            result = run.result()
            after = run.kernel_spectra()["all"]
            after.values, after.condition, after.alignment, after.effective_dimension(1e-3)

        It is that of the network as it is, in the coordinates of the method, at points that no step has; with up to
        2,000 rows it is complete.

        Args:
            interior: points of terms of full dimension; those of other terms are a fifth as many.
            leading: eigenpairs, see ``kernel.Kernel``; 64 where there are too many for all.

        Raises:
            InputError: if a number is not a whole one of at least 1.
        """
        interior = whole(1).check("interior", interior)
        parameters = self.training.objective.parameters
        drawn = draw_points(self.system.terms, interior, max(interior // 5, 1), self.seed, purpose="kernel")
        with threads(self.threads):
            return self.kernels.spectra({name: p.to(parameters[0]) for name, p in drawn.items()}, leading)

    def plan(self) -> Plan | None:
        """The linear algebra of steps of the largest batch and rank, smaller ones may take another form; None where no
        system is solved.
        """
        training = self.training
        if not self.method.linearises:
            return None
        sampler = training.sampler
        sizes = {name: p.number for name, p in self._largest_points().items()}
        residuals = sum(sizes[name] * self.components[name] for name in sampler.terms)
        return training.optimizer.plan(residuals, None if self.adaptive is None else self.adaptive.max)

    def _largest_points(self) -> Mapping[str, Any]:
        sampler = self.training.sampler
        nothing = lambda candidates: {name: torch.zeros(p.number, 1) for name, p in candidates.items()}
        return sampler.chosen(sampler.draw(0), nothing).points

    def result(self) -> Result:
        """What the run returns; it ends here, wherever it is."""
        self.conclude()
        self.solution.to("cpu")
        self.diagnostics.to(torch.device("cpu"), DTYPES[self.precision])
        return Result(self, errors(self.problem, self.solution, FINER * self.log.test))

    @property
    def error_before(self) -> float:
        """Relative L2 error of the pretrained network on this problem; NaN without a reference."""
        if self._error_before is None:
            self._error_before = self._error()
        return self._error_before

    @error_before.setter
    def error_before(self, error: float) -> None:
        self._error_before = error

    def _error(self) -> float:
        return errors(self.problem, self.solution, FINER * self.log.test)["error/rel_l2"]

    # Saved and continued.

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser and policies, as plain tensors and numbers, with the settings of the run and a digest."""
        saved = {
            "solution": self.solution.state_dict(),
            "optimizer": self.training.optimizer.state_dict(),
            "training": self.training.state_dict(),
            "history": self.history,
            "error_before": self.error_before,
        }
        # What torch gives are the tensors themselves, which the next step changes.
        saved = copy.deepcopy(saved)
        saved_state.seal(saved, self)
        return saved

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of a run of the same settings, with the same bits on a CPU.

        Raises:
            InputError: naming what differs, if it is the state of another run, or has changed.
        """
        training, own = self.training, self.solution.state_dict()
        refused = lambda said: InputError(f"The state to continue from {said}.")
        saved_state.check(state, self, saved_state.PLAIN, own, refused)
        state = copy.deepcopy(dict(state))  # torch keeps the tensors that it loads into an optimiser
        self.solution.load_state_dict(state["solution"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.load_state_dict(state["training"])
        self.history = state["history"]
        self._error_before = state["error_before"]


KINDS_OF_ARGUMENTS = {
    "problem": instance_of(Problem, "Burgers(nu=0.02)"),
    "lora": instance_of(LoRA, "LoRA(rank=8)") | null,
    "method": instance_of(Method, "methods.lora_adam()") | null,
    "points": instance_of(Sampling, "Sampling(interior=500)") | null,
    "budget": instance_of(Budget, "Budget(seconds=10)") | null,
    "log": instance_of(Log, "Log(every=10)") | null,
}


def _check_kinds(**given: Any) -> None:
    """Refuse what is no object of its class, such as a name, a number or a class itself."""
    for name, value in given.items():
        KINDS_OF_ARGUMENTS[name].check(name, value)


def _weighting(kind: str) -> Weighting:
    """The default settings of a kind, refused by the name of the argument."""
    return Weighting(one_of(*KINDS).check("weighting", kind))


def _unknown(names: str | Sequence[str], problem: Problem) -> tuple[str, ...]:
    """The parameters that are to be found; a single name stands for itself.

    Raises:
        InputError: if one is no parameter of the problem, or no real number.
    """
    allowed = [name for name, p in problem.parameters().items() if not (p.integer or p.choices)]
    given = (names,) if isinstance(names, str) else tuple(names)
    for name in given:
        if name not in allowed:
            raise no_such(f"coefficient of {type(problem).__name__} in unknown:", name, allowed)
    return given


def steps(
    net: nn.Module,
    problem: Problem | None = None,
    *,
    residuals: Function | Mapping[str, Function] | None = None,
    device: str = "auto",
    threads: int | None = 1,
    **settings: Any,
) -> Adaptation:
    """The steps of an adaptation, to look at one after the other; ``net`` itself is not changed.

        run = steps(net, problem, rank=8)
        for record in run:
            print(record.step, record.loss, record.report.h)
        result = run.result()

    Args:
        net: the pretrained network, (N, inputs) -> (N, fields), or ``result.net`` of another adaptation, whose adapter
            becomes a part of the weights.
        problem: the equation to adapt to.
        residuals: in its place, functions written for plain torch; ``points`` are then where they must vanish, see
            ``torch_problem``.
        device: where to compute; ``auto`` is a CUDA device where there is one.
        threads: CPU threads for the work of the run, and no longer; one is fastest for networks of the usual
            size. None leaves them as they are.
        settings: as of ``Adaptation``.

    Raises:
        InputError: one sentence on what does not fit, before anything is trained.
    """
    if (problem is None) == (residuals is None):
        raise InputError("Give either a problem, or residuals and their points.")
    if residuals is not None:
        if "points" not in settings:
            raise InputError("residuals need points, (N, d) of them: points=torch.rand(1000, 2).")
        problem = torch_problem(net, residuals, settings.pop("points"))
    net = copied(net)
    adaptation = Adaptation(
        merged(net).cpu() if isinstance(net, nn.Module) else net, problem, threads=threads, **settings
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return adaptation if torch.device(device).type == "cpu" else adaptation.to(device)


def adapt(
    net: nn.Module,
    problem: Problem | None = None,
    *,
    residuals: Function | Mapping[str, Function] | None = None,
    device: str = "auto",
    threads: int | None = 1,
    **settings: Any,
) -> Result:
    """Adapt a pretrained network to a problem by training low-rank factors of its weights along an ODE.

        result = adapt(net, Burgers(nu=0.02), rank=8, budget=Budget(seconds=10))
        u = result.solution
        u(x, t)

    Args:
        net: the pretrained network, (N, inputs) -> (N, fields), which is not changed, or ``result.net`` of another
            adaptation, whose adapter becomes a part of the weights.
        problem: the equation to adapt to.
        residuals: in its place, functions written for plain torch; ``points`` are then where they must vanish, see
            ``torch_problem``.
        device: where to compute; ``auto`` is a CUDA device where there is one.
        threads: CPU threads for the work of the run, and no longer; one is fastest for networks of the usual
            size. None leaves them as they are.
        settings: as of ``Adaptation``.

    Returns:
        The adapted solution with its history. Numbers that stopped being finite end the run early and stand in
        ``failure``; the solution is then the last good one.

    Raises:
        InputError: one sentence on what does not fit, before anything is trained.
    """
    run = steps(net, problem, residuals=residuals, device=device, threads=threads, **settings)
    for _ in run:
        pass
    return run.result()

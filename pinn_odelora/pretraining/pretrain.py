"""The pretrained network: the user's own, or one trained here at the source parameter and kept for the next run.

Training here is Adam and then natural gradient or L-BFGS, on all weights, float64; see ``pretraining.stages``.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import nn

from pinn_odelora import manifest
from pinn_odelora.budget import Budget
from pinn_odelora.checkpoints import Weights, load_network, save_network
from pinn_odelora.checks import constants
from pinn_odelora.checks.evaluation import check_reference
from pinn_odelora.error_estimate import error_estimate
from pinn_odelora.errors import DomainError, InputError, OutOfTimeError, UnwritableError
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import sobol, stream
from pinn_odelora.gradient import residual_vector_of
from pinn_odelora.loop import Training
from pinn_odelora.measurements import measured_term
from pinn_odelora.metrics import relative_l2
from pinn_odelora.nets import MLP, Scaled, check_network, copied, in_units
from pinn_odelora.nets.scaled import in_field_units
from pinn_odelora.pretraining import cache, following, stages
from pinn_odelora.rules import check, instance_of, null, number, one_of, whole
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.threads import threads as limited

log = logging.getLogger(__name__)
SECOND_STAGES = ("auto", "natural_gradient", "lbfgs")
CHECKPOINT = "check net.* (activation, inputs), problem.conditions and pretrain.source against how it was trained."
OWN = "train it for longer where it did not stop by itself (pretrain.natural_gradient_steps, pretrain.lbfgs_evals), or "
OWN += "choose a wider net, other weights to begin with (pretrain.seed) or a source that is easier (pretrain.source)."
ADAM_POINTS = 1000
"""Points of Adam for terms of full dimension at most: it only finds the neighbourhood."""
WRONG = 0.1
"""A relative error at the source parameter that points to a wrong network or problem."""


class Pretrained(NamedTuple):
    """What is known of a pretrained network at the source parameter.

    ``rel_l2``: relative error there; ``loss``: its loss there; ``seconds``: time its training took, NaN for a network
    of the user's own; ``origin``: ``checkpoint``, ``cache`` or ``trained``.
    """

    rel_l2: float
    loss: float
    seconds: float
    origin: str


@dataclass(frozen=True)
class Pretraining:
    """How a network is trained at the source parameter.

    Args:
        adam_steps: steps of Adam, its learning rate falling from ``adam_lr`` to zero by a cosine.
        second_stage: what follows: ``natural_gradient``, ``lbfgs``, or ``auto``, the first where the network has the
            structure for it and the memory suffices, and the other otherwise.
        natural_gradient_steps: steps of natural gradient at most.
        lbfgs_evals: gradient evaluations of L-BFGS at most, line searches included.
        target: relative L2 error that ends it before; without a reference, or with one that is less accurate, the
            estimated one, see ``error_estimate``.
        interior, boundary: points for terms of full dimension, and for the others; natural gradient takes at most
            ``interior`` residuals of all terms and components together, Adam at most 1,000 points. For errors below
            1e-6 ``interior`` should be more than twice the number of weights: natural gradient leaves its small batches
            where they bring it no further.
        seed: of the initial weights and the points.
        scales: whether units are found for what the problem does not declare (``scaling.find``).

    Raises:
        InputError: for a number out of its range, or an unknown second stage.
    """

    adam_steps: int = 100
    adam_lr: float = 5e-3
    second_stage: Literal["auto", "natural_gradient", "lbfgs"] = "auto"
    natural_gradient_steps: int = 300
    lbfgs_evals: int = 10_000
    target: float = 1e-4
    interior: int = 1000
    boundary: int = 200
    seed: int = 0
    scales: bool = True

    def __post_init__(self) -> None:
        positive = number(above=0)
        check(self, adam_steps=whole(0), adam_lr=positive, second_stage=one_of(*SECOND_STAGES), target=positive)
        check(self, natural_gradient_steps=whole(0), lbfgs_evals=whole(0), interior=whole(1), boundary=whole(1))
        check(self, seed=whole(0, 2**32 - 1), scales=one_of(True, False))

    def run(self, system: System, say: Callable[[str], None] = log.info, wall: float | None = None) -> None:
        """Train the network of a system in place, with a message now and then.

        Args:
            system: its solution is trained.
            say: takes messages.
            wall: seconds since the start of the process at which it ends unfinished, see ``Budget.wall``.

        Raises:
            InputError: if Adam leaves the finite numbers.
            OutOfTimeError: if the time on the wall is over before.
        """
        check_reference(system.problem)
        free = free_constants(system)
        if free:
            say(f"{constants.said(free)}.")
        points = (self.interior, self.boundary, self.seed)
        few = (min(self.interior, ADAM_POINTS), self.boundary, self.seed)
        first = stages.adam(system, *few, self.adam_steps, self.adam_lr, say, wall)
        _check_time(first)
        if first.failure is not None:
            refused = system.refused(first.objective.batch.points)
            advice = "" if refused or isinstance(first.failure, DomainError) else " Choose a smaller adam_lr."
            raise InputError(f"Pretraining by Adam failed: {refused or first.failure}{advice}")
        # An error that a constant can make as large as it likes tells nothing of the training, and nothing of the
        # target that of a reference which is less accurate itself.
        blind = free or system.problem.accuracy > max(self.target, Problem.accuracy)
        error = (lambda: math.nan) if blind else unseen_error(system, self.seed)
        unseen = without_reference(system, self.seed)
        done = self.second_stage != "lbfgs" and self._natural_gradient(system, error, say, unseen, wall)
        if not done and self.lbfgs_evals:
            stage = stages.lbfgs(system, *points)
            budget = Budget(gradient_evals=self.lbfgs_evals, wall=wall)
            following.follow(stage, budget, self.lbfgs_evals, error, self.target, say, unseen)
            _check_time(stage.training)
        system.solution.zero_grad(set_to_none=True)

    def _natural_gradient(
        self,
        system: System,
        error: Callable[[], float],
        say: Callable[[str], None],
        unseen: following.Unseen,
        wall: float | None,
    ) -> bool:
        """Whether it was the stage to take, and has not ended in numbers that are not finite."""
        if not self.natural_gradient_steps:
            return True
        stage = stages.natural_gradient(system, self.interior, self.boundary, self.seed)
        if self.second_stage == "auto" and (reason := stages.unsuitable(stage)):
            say(f"L-BFGS follows, since {reason}.")
            return False
        budget = Budget(steps=self.natural_gradient_steps, wall=wall)
        following.follow(stage, budget, self.natural_gradient_steps, error, self.target, say, unseen)
        _check_time(stage.training)
        if stage.training.failure is not None:
            say(f"Natural gradient ends: {stage.training.failure}")
            return self.second_stage == "natural_gradient"
        return True


def _check_time(training: Training) -> None:
    if training.paused:
        raise OutOfTimeError


@torch.enable_grad()
def pretrain(
    problem: Problem,
    net: nn.Module | None = None,
    *,
    settings: Pretraining | None = None,
    data: str | Path | Mapping[str, ArrayLike] | Term | None = None,
    cache: str | Path | None = None,
    threads: int | None = 1,
    say: Callable[[str], None] = log.info,
) -> nn.Module:
    """A network that solves a problem: the start for adapting it to others.

        net = pretrain(Burgers(nu=0.05))

    Args:
        problem: the equation at the parameters to start from; its terms for the target only are left out.
        net: the network to train, which is not changed; an ``MLP`` of four hidden layers of 40 units if absent.
        settings: how it is trained.
        data: measured values of the problem to adapt to, which tell the sizes of fields; see ``adapt``.
        cache: folder of networks trained before, in which this one is looked for and kept; None keeps nothing.
        threads: CPU threads meanwhile; one is fastest for networks of the usual size. None leaves them alone.
        say: takes messages on the way.

    Returns:
        The trained network, float64, on the device of ``net``.

    Raises:
        InputError: if the network does not fit the problem, all its weights are frozen, or training left the finite
            numbers.
    """
    instance_of(Problem, "Burgers(nu=0.05)").check("problem", problem)
    (instance_of(Pretraining, "Pretraining(target=1e-3)") | null).check("settings", settings)
    settings = settings or Pretraining()
    if net is None:
        generator = torch.Generator().manual_seed(settings.seed)
        net = MLP(problem.inputs, len(problem.fields), generator=generator)
    net, problem = copied(net), problem.as_source()
    if settings.scales:
        net = in_units(net, problem, None if data is None else measured_term(data, problem))
    net = check_network(net, problem)
    if not any(p.requires_grad for p in net.parameters()):
        raise InputError("All weights of the network are frozen (requires_grad is False): there are none to pretrain.")
    if isinstance(net, Scaled):
        say(str(net.scales))
    system = System(problem, Solution(problem, net))
    with limited(threads):
        if cache is None:
            settings.run(system, say)
        else:
            pretrained(system, settings, kept=Path(cache), say=say)
    return net


def unseen_error(system: System, seed: int) -> Callable[[], float]:
    """Relative L2 error at points that nothing is trained on, as a function of the network as it is, with the fields in
    its units; NaN without a reference.
    """
    p = system.problem.region.sample(2048, lambda n, d: sobol(n, d, seed=stream("pretraining error", seed)))
    p = p.to(next(system.solution.parameters()))
    reference, net = system.problem.known_reference(p), system.solution.net
    reference = None if reference is None else in_field_units(net, reference)

    @torch.no_grad()
    def error() -> float:
        return relative_l2(in_field_units(net, system.solution(p)), reference)

    return error


def free_constants(system: System) -> tuple[str, ...]:
    """The fields to which a constant can be added without a change of the loss."""
    return constants.free_constants(system.problem, system.terms, next(system.solution.parameters()))


def without_reference(system: System, seed: int) -> following.Unseen:
    """What tells how far training is where there is no reference, as functions of the network as it is."""
    terms = {name: term.unseen for name, term in system.terms.items()}
    points = draw_points(terms, 256, 51, seed, purpose="pretraining loss")
    points = {name: p.to(next(system.solution.parameters())) for name, p in points.items()}
    residuals = residual_vector_of(system)
    return following.Unseen(
        lambda: float(residuals(points).square().sum()) / 2, lambda: error_estimate(system, seed).rel_l2
    )


def pretrained(
    system: System,
    settings: Pretraining,
    checkpoint: Weights | None = None,
    kept: Path | None = None,
    say: Callable[[str], None] = log.info,
    wall: float | None = None,
) -> Pretrained:
    """Put pretrained weights into the network of a system: from a checkpoint, from the cache, or by training.

    Args:
        system: of the problem at its source parameter; its network, float64, is changed in place.
        settings: how it is trained if it has to be.
        checkpoint: the user's own weights.
        kept: folder of the cache; the default is the user's cache folder.
        say: takes messages on the way.
        wall: see ``Pretraining.run``.

    Raises:
        InputError: if the checkpoint does not fit the network, or training gave no finite network.
        OutOfTimeError: if the time on the wall is over before.
    """
    problem, net = system.problem, system.solution.net
    if checkpoint is not None:
        checkpoint.load(net)
        return _assess(system, settings, math.nan, "checkpoint", say)
    key = cache.key(problem, net, settings)
    place = None if key is None else cache.place(kept, key)
    file = None if place is None else place / f"{type(problem).__name__.lower()}-{key}.safetensors"
    if file is not None and (seconds := _cached(net, file, say)) is not None:
        return _assess(system, settings, seconds, "cache", say)
    kept_for = "the result is not kept" if file is None else "the result is kept for the next run"
    if key is not None and file is None:
        kept_for += (
            " for the next run: there is no home folder that can be written; PINN_ODELORA_CACHE may name another"
        )
    say(f"Pretraining {type(problem).__name__} at the source parameter; {kept_for}.")
    start = time.perf_counter()
    settings.run(system, say, wall)
    seconds = time.perf_counter() - start
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        raise InputError("Pretraining ended in NaN or infinite weights; choose a smaller pretrain.adam_lr.")
    if file is not None:
        _keep(net, problem, file, seconds, say)
    return _assess(system, settings, seconds, "trained", say)


def _cached(net: nn.Module, file: Path, say: Callable[[str], None]) -> float | None:
    """Give a network the weights of an entry of the cache; the seconds that they took, None where there is no entry.

    One that is damaged is none, and is trained and written again.
    """
    facts = file.with_suffix(".json")
    if not (file.exists() and facts.exists()):
        return None
    try:
        entry = manifest.read(facts)
        seconds = number(least=0).check("seconds", entry.facts.get("seconds"))
        if file.name not in entry.files:
            raise InputError(f"{facts} has no digest of {file.name}.")
        manifest.check(facts, file.name)
        load_network(net, file)
        return float(seconds)
    except InputError as error:
        say(f"A pretrained network in the cache is damaged, and is trained again: {error}")
        return None


def _keep(net: nn.Module, problem: Problem, file: Path, seconds: float, say: Callable[[str], None]) -> None:
    """An entry of the cache: the network, and then its digest with the facts, without which it is none."""
    try:
        save_network(net, file, {"problem": repr(problem)})
        manifest.write(file.with_suffix(".json"), [file.name], {"seconds": seconds})
    except UnwritableError as error:  # What took so long to train is not lost for that.
        say(f"{str(error).rstrip('.')}; the network is not kept for the next run.")


def _assess(
    system: System, settings: Pretraining, seconds: float, origin: str, say: Callable[[str], None]
) -> Pretrained:
    """Error and loss at the source parameter: shapes alone do not show a wrong activation or a wrong problem."""
    error = unseen_error(system, settings.seed)()
    points = draw_points(system.terms, 1000, 200, settings.seed, purpose="pretraining loss")
    points = {name: p.to(next(system.solution.parameters())) for name, p in points.items()}
    with torch.no_grad():
        loss = float(system.loss(points).total)
    about = error
    known = "" if math.isnan(error) else f"relative L2 {error:.2e}, "
    if math.isnan(error) and origin == "trained":
        estimate = error_estimate(system, settings.seed)
        if (guess := estimate.rel_l2) is not None:
            about, known = guess, f"relative L2 error about {guess:.0e}, "
        elif estimate.uncertain:
            known = "error uncertain, "
    say(f"Pretrained network ({origin}): {known}loss {loss:.2e} at the source parameter.")
    if about > WRONG:
        free = free_constants(system)
        advice = f"{constants.said(free)}." if free else CHECKPOINT if origin == "checkpoint" else OWN
        say(
            f"WARNING: the pretrained network misses the solution at the source parameter by {100 * about:.0f} %; "
            + advice
        )
    return Pretrained(error, loss, seconds, origin)

"""The pretrained network: the user's own, or one trained here at the source parameter and kept for the next run.

Training here is Adam and then natural gradient or L-BFGS, on all weights, float64; see ``phases``.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from pinn_odelora.checkpoints import load_network, save_network
from pinn_odelora.errors import InputError, NonFiniteError, unknown
from pinn_odelora.formulation import Problem
from pinn_odelora.geometry import sobol
from pinn_odelora.metrics import relative_l2
from pinn_odelora.pretraining import cache
from pinn_odelora.pretraining import stages as phases
from pinn_odelora.system import Solution, System, draw_points

FINISHES = ("auto", "implicit", "lbfgs")


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
        finish: what follows: ``implicit``, which is natural gradient, ``lbfgs``, or ``auto``, the first where the
            network has the structure for it and the memory suffices, and the other otherwise.
        implicit_steps: steps of natural gradient at most.
        lbfgs_evals: gradient evaluations of L-BFGS at most, line searches included.
        target: relative L2 error that ends it before, where the problem has a reference.
        interior, boundary: points for terms of full dimension, and for the others; natural gradient takes at most
            ``interior`` rows of all terms and components together.
        seed: of the initial weights and the points.

    Raises:
        InputError: for an unknown ``finish``.
    """

    adam_steps: int = 100
    adam_lr: float = 5e-3
    finish: Literal["auto", "implicit", "lbfgs"] = "auto"
    implicit_steps: int = 300
    lbfgs_evals: int = 10_000
    target: float = 1e-4
    interior: int = 1000
    boundary: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.finish not in FINISHES:
            raise unknown("pretrain.finish", self.finish, FINISHES)

    def run(self, problem: Problem, net: nn.Module, report: Callable[[str], None]) -> None:
        """Train ``net`` in place on the problem, with a report now and then."""
        system = System(problem, Solution(problem, net))
        points = draw_points(system.terms, self.interior, self.boundary, self.seed)
        points = {name: p.to(next(net.parameters())) for name, p in points.items()}
        phases.adam(system, points, self.adam_steps, self.adam_lr, report)
        error = unseen_error(system, self.seed)
        done = self.finish != "lbfgs" and self._natural_gradient(system, error, report)
        if not done and self.lbfgs_evals:
            phases.follow(phases.quasi_newton(system, points), self.lbfgs_evals, error, self.target, report)
        net.zero_grad(set_to_none=True)

    def _natural_gradient(self, system: System, error: Callable[[], float], report: Callable[[str], None]) -> bool:
        """Whether it was the phase to take, and has not ended in numbers that are not finite."""
        if not self.implicit_steps:
            return True
        natural = phases.natural_gradient(system, self.interior, self.boundary, self.seed)
        if self.finish == "auto" and (reason := natural.unsuitable()):
            report(f"L-BFGS follows, since {reason}.")
            return False
        try:
            phases.follow(natural.phase, self.implicit_steps, error, self.target, report)
        except NonFiniteError as failure:
            natural.restore()
            report(f"Natural gradient ends: {failure}")
            return self.finish == "implicit"
        return True


def unseen_error(system: System, seed: int) -> Callable[[], float]:
    """Relative L2 error at points that nothing is trained on, as a function of the network as it is; NaN without a
    reference.
    """
    p = system.problem.region.sample(2048, lambda n, d: sobol(n, d, seed=seed + 1))
    p = p.to(next(system.solution.parameters()))
    reference = system.problem.reference(p)

    @torch.no_grad()
    def error() -> float:
        return relative_l2(system.solution(p), reference)

    return error


def pretrained(
    problem: Problem,
    net: nn.Module,
    settings: Pretraining,
    checkpoint: str | None = None,
    kept: Path | None = None,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Pretrained:
    """Put pretrained weights into ``net``: from a checkpoint, from the cache, or by training.

    Args:
        problem: the problem at its source parameter.
        net: the network, float64, changed in place.
        settings: how it is trained if it has to be.
        checkpoint: the user's own weights.
        kept: folder of the cache; the default is the user's cache folder.

    Raises:
        InputError: if the checkpoint does not fit the network, or training gave no finite network.
    """
    if checkpoint is not None:
        load_network(net, checkpoint)
        return _assess(problem, net, settings, float("nan"), "checkpoint", report)
    key = cache.key(problem, net, settings)
    file = (kept or cache.folder()) / f"{type(problem).__name__.lower()}-{key}.safetensors"
    facts = file.with_suffix(".json")
    if key and file.exists() and facts.exists():
        load_network(net, file)
        return _assess(problem, net, settings, json.loads(facts.read_text())["seconds"], "cache", report)
    kept_for = "the result is kept for the next run" if key else "the result is not kept"
    report(f"Pretraining {type(problem).__name__} at the source parameter; {kept_for}.")
    start = time.perf_counter()
    settings.run(problem, net, report)
    seconds = time.perf_counter() - start
    if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
        raise InputError("Pretraining ended in NaN or infinite weights; choose a smaller pretrain.adam_lr.")
    if key:
        file.parent.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps({"seconds": seconds}))
        save_network(net, file, {"problem": repr(problem)})
    return _assess(problem, net, settings, seconds, "trained", report)


def _assess(
    problem: Problem,
    net: nn.Module,
    settings: Pretraining,
    seconds: float,
    origin: str,
    report: Callable[[str], None],
) -> Pretrained:
    """Error and loss at the source parameter: shapes alone do not show a wrong activation or a wrong problem."""
    system = System(problem, Solution(problem, net))
    error = unseen_error(system, settings.seed)()
    points = draw_points(system.terms, 1000, 200, settings.seed + 1)
    points = {name: p.to(next(net.parameters())) for name, p in points.items()}
    loss = float(system.loss(points).total.detach())
    report(f"Pretrained network ({origin}): relative L2 {error:.2e}, loss {loss:.2e} at the source parameter.")
    if error > 0.1:
        report(
            f"WARNING: the pretrained network misses the solution at the source parameter by {100 * error:.0f} %; "
            "check net.* (activation, inputs), problem.conditions and pretrain.source against how it was trained."
        )
    return Pretrained(error, loss, seconds, origin)

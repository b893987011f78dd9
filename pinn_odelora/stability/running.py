"""One run of the study: the public call, looked at where it has cost so much.

At a mark the iterate is the last one that was reached within that cost: a step under way does not count. Beside it is
measured what the run would have returned there, which differs where a run returns its best iterate. Measuring costs a
run neither evaluations nor seconds, and seconds are those of the CPU.

A run whose held-out loss is ``HOPELESS`` times that of the start, or not finite, when half of its budget is spent, is
broken off, and what would have followed has no value.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import pinn_odelora
from pinn_odelora.adaptation import Adaptation, steps
from pinn_odelora.budget import Budget
from pinn_odelora.checkpoints import load_network, save_network
from pinn_odelora.diagnostics import cores
from pinn_odelora.errors import InputError
from pinn_odelora.log import Log
from pinn_odelora.loop import Training
from pinn_odelora.lowrank.settings import LoRA
from pinn_odelora.nets import MLP
from pinn_odelora.objective import Snapshot
from pinn_odelora.pretraining.pretrain import pretrain
from pinn_odelora.registry import problem_class
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.stability.methods import METHODS
from pinn_odelora.stability.plan import Case

MARKS = 30
"""At equal costs along a run, besides the start."""
HOPELESS = 1e4
"""Large, since a loss a thousand times that of the start a fifth of the way has been seen to end below it."""
TEST, HELDOUT = 1024, 512
"""Points at which errors and held-out losses are taken."""
NEVER = 10**9


class Mark(NamedTuple):
    """What a run had reached at a cost: of the iterate and of what the run would have returned, the held-out loss and
    the relative L2 error; of the iterate, the largest condition numbers of S_A and S_B and the largest balance defect
    over the layers.
    """

    cost: float
    heldout: float
    error: float
    heldout_returned: float
    error_returned: float
    condition_a: float
    condition_b: float
    balance: float


LOST = (math.nan,) * (len(Mark._fields) - 1)


def network(problem: str, folder: Path) -> nn.Module:
    """The pretrained network of a problem: from the folder, or trained and left there."""
    cls = problem_class(problem)
    file = folder / f"{problem}.safetensors"
    fresh = MLP(cls().inputs, len(cls().fields), generator=torch.Generator().manual_seed(0)).double()
    if file.is_file():
        load_network(fresh, file)
        return fresh
    net = pretrain(cls().at_source(), fresh)
    save_network(net, file, {"problem": problem})
    return net


def adaptation(case: Case, net: nn.Module) -> Adaptation:
    """The steps of a case, from its network.

    Raises:
        InputError: if the method refuses the settings.
    """
    budget = Budget(gradient_evals=case.evaluations, seconds=case.seconds)
    run = steps(
        net,
        problem_class(case.problem)(),
        device="cpu",
        lora=LoRA(rank=case.rank, start=case.start),
        method=METHODS[case.method].make(case.step),
        points=points(case),
        budget=budget,
        seed=case.seed,
        precision=case.precision,
        log=Log(every=NEVER, heldout=HELDOUT, test=TEST),
    )
    run.error_before = math.nan  # the first mark has it
    return run


def points(case: Case) -> Sampling:
    """Those of the case; by default residual-based ones for implicit schemes, and even ones for others."""
    if case.points == "default":
        implicit = METHODS[case.method].make(case.step).linearises
        return Sampling() if implicit else Sampling.even()
    fresh = case.points == "fresh"
    return Sampling(fresh, case.residuals, case.residuals // 5, 0.0, case.residuals, None, best_iterate=fresh)


def perform(case: Case, net: nn.Module, clock: Callable[[], float] = time.thread_time) -> dict[str, Any]:
    """Make a run; its marks and how it ended, as plain values.

    Args:
        case: which.
        net: pretrained at the source of the problem; it is not changed.
        clock: seconds of work; by default the CPU time of this thread.
    """
    try:
        run = adaptation(case, net)
        run.training.clock = clock
    except InputError as refused:
        return {**_named(case), "marks": [], "failure": str(refused), **_NOTHING}
    found = followed(run, costs(case), by_seconds=case.evaluations is None)
    training = run.training
    return {
        **_named(case),
        "marks": [list(mark) for mark in found.marks],
        "failure": found.failure,
        "broken_off": found.broken_off,
        "stalled": training.stalled,
        "steps": training.progress.step,
        "evaluations_spent": training.progress.gradient_evals,
        "seconds_spent": training.progress.seconds,
    }


_NOTHING = {"broken_off": False, "stalled": False, "steps": 0, "evaluations_spent": 0, "seconds_spent": 0.0}


def _named(case: Case) -> dict[str, Any]:
    versions = {"version": pinn_odelora.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return {**case.as_dict(), **versions}


def costs(case: Case) -> list[float]:
    """Where a run is looked at, the start apart."""
    whole = case.seconds if case.evaluations is None else case.evaluations
    return [whole * k / MARKS for k in range(1, MARKS + 1)]


class Followed(NamedTuple):
    """A run: its marks, the start first; why it ended, where its numbers failed; whether it was broken off."""

    marks: list[Mark]
    failure: str
    broken_off: bool


def followed(run: Adaptation, at: Sequence[float], by_seconds: bool = False) -> Followed:
    """The run, looked at where it has cost so much."""
    training, left, failure = run.training, list(at), ""
    there = _here(training)
    found = [_measured(run, 0.0, there)]
    try:
        for record in run:
            spent = record.seconds if by_seconds else record.gradient_evals
            while left and spent > left[0]:
                found.append(_measured(run, left.pop(0), there))
            if not left or hopeless(found, len(at)):
                break
            there = _here(training)
    except torch.linalg.LinAlgError as error:  # in a measurement, of numbers that have grown too large
        failure = str(error).partition("\n")[0]
    failure = failure or str(training.failure or "")
    broken_off = hopeless(found, len(at))
    lost = broken_off or failure
    rest = [Mark(cost, *LOST) if lost else _measured(run, cost, there) for cost in left]
    return Followed([*found, *rest], failure, broken_off)


def hopeless(marks: Sequence[Mark], number: int) -> bool:
    """Whether the last mark of so many is late enough, and its held-out loss too large, to go on."""
    return len(marks) > number / 2 and not marks[-1].heldout <= HOPELESS * marks[0].heldout


def _here(training: Training) -> tuple[Snapshot, Snapshot | None]:
    """The iterate, and what the run would return if that is another one."""
    return training.objective.snapshot(), training.best.snapshot if training.returns_best else None


def _measured(run: Adaptation, cost: float, there: tuple[Snapshot, Snapshot | None]) -> Mark:
    iterate, best = there
    heldout, error = _values(run, iterate)
    with run.training.objective.restored(iterate):
        shape = _shape(run.training.objective.layers)
    returned = (heldout, error) if best is None else _values(run, best)
    return Mark(cost, heldout, error, *returned, *shape)


def _values(run: Adaptation, there: Snapshot) -> tuple[float, float]:
    reference = run.diagnostics.reference
    with run.training.objective.restored(there):
        return reference.loss(), reference.errors()["error/rel_l2"]


@torch.no_grad()
def _shape(layers: Mapping[str, nn.Module]) -> tuple[float, float, float]:
    """The largest condition numbers of S_A and S_B, and the largest ‖BᵀB - AAᵀ‖."""
    found = cores(layers).values()
    largest = lambda values: max(values, default=math.nan)
    condition = lambda sigma: float((sigma[0] / sigma[-1]) ** 2) if sigma[-1] > 0 else math.inf
    return (
        largest(condition(core.A) for core in found),
        largest(condition(core.B) for core in found),
        largest(float(core.balance) for core in found),
    )

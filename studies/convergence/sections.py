"""The runs of the study, section by section: plain records, from which tables, verdicts and figures are made.

``local``      at exact rank from ``near``: the rate against κ
``time``       the same with small steps: the rate per unit of flow time, which is the flow's own
``curvature``  regression from ``near``: the rate against the condition of the objective
``starts``     from far away, at exact and over-specified rank: evaluations to a relative error of 1e-6
``excess``     over-specified rank in the long run: a line in log error over steps, or a power of the steps
``peak``       from ever smaller starts: the largest error on the way

Step sizes are swept from the largest down on seeds that are not reported, by the mean decrease of log error over an
evaluation of the worst seed, until two in a row are worse than the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from convergence.rates import fitted, power
from convergence.running import Path, run
from convergence.setups import CONTENDERS, Contender, Setup
from convergence.starts import STARTS
from convergence.theory import modes, rate

Record = dict[str, Any]
TARGET = 1e-6
"""The relative error to which evaluations are counted."""
ALL = tuple(CONTENDERS)
FIXED = tuple(name for name in ALL if name != "implicit_default")
GLOBAL = tuple(name for name in ALL if name not in ("implicit", "rk4_manifold"))
TIMED = {"euler": 0.05, "rk4": 0.2, "implicit": 0.1, "lora_gd": 0.05}
"""Step sizes of the section ``time``."""
PEAK_STEP = 0.2
"""The step size of the section ``peak``, one for all, so that the powers of h in what is seen stay fixed."""
GENTLE = 0.07
"""A second, small step of gradient descent in the section ``excess``: its own error unbalances the factors by O(h)."""
SHOWN = 200
"""Points of a curve that is kept for the figure."""


@dataclass(frozen=True)
class Plan:
    """How much is run; the conditions of ``starts`` by problem."""

    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    sweep_seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    far_sweep_seeds: tuple[int, ...] = (101, 102, 103, 104, 105)
    far_sweep_evaluations: int = 250
    problems: tuple[str, ...] = ("sensing", "regression")
    contenders: tuple[str, ...] = FIXED
    conditions: tuple[float, ...] = (1.0, 1e1, 1e2, 1e3, 1e4)
    slow_evaluations: int = 800
    time_problems: tuple[str, ...] = ("sensing", "regression")
    time_conditions: tuple[float, ...] = (1.0, 1e2, 1e4)
    time_evaluations: int = 240
    curvatures: tuple[float, ...] = (1e1, 1e2, 1e3)
    starts: tuple[str, ...] = STARTS
    start_contenders: tuple[str, ...] = GLOBAL
    start_conditions: tuple[tuple[str, tuple[float, ...]], ...] = (
        ("sensing", (1.0, 1e2, 1e4)),
        ("regression", (1e2,)),
    )
    start_evaluations: int = 400
    excess_contenders: tuple[str, ...] = ("euler", "euler_manifold", "scaled_gd", "lora_gd")
    excess_evaluations: int = 3000
    excess_conditions: tuple[float, ...] = (1.0, 1e2, 1e4)
    sizes: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    peak_contenders: tuple[str, ...] = ("euler", "rk4", "scaled_gd", "euler_manifold", "implicit_default", "lora_gd")
    peak_evaluations: int = 400


FULL = Plan()
QUICK = Plan(
    seeds=(1, 2, 3),
    sweep_seeds=(101, 102),
    far_sweep_seeds=(101,),
    conditions=(1.0, 1e2),
    contenders=("euler", "euler_manifold", "implicit", "lora_gd"),
    slow_evaluations=400,
    time_problems=("sensing",),
    time_conditions=(1.0, 1e2),
    curvatures=(1e1, 1e2),
    starts=("tiny",),
    start_contenders=("euler", "euler_manifold", "implicit_default", "lora_gd"),
    start_conditions=(("sensing", (1e2,)),),
    excess_contenders=("euler", "lora_gd"),
    excess_evaluations=700,
    excess_conditions=(1.0,),
    sizes=(1e-2, 1e-4, 1e-6),
    peak_contenders=("euler", "euler_manifold", "implicit_default"),
    peak_evaluations=40,
)


class Task(NamedTuple):
    """What is the same for all seeds."""

    contender: Contender
    start: str | float
    evaluations: int
    until: float = 0.0


def swept(task: Task, seeds: tuple[int, ...], setup: Callable[[int], Setup], evaluations: int) -> float | None:
    """The step size with the fastest decrease on the worst of the seeds."""
    steps = task.contender.sweep(setup(0))
    best, score, worse = steps[0], -math.inf, 0
    for h in reversed(steps) if len(steps) > 1 else ():
        found = math.inf
        for seed in seeds:
            if found > score:  # else it cannot become the best any more
                path = run(setup(seed), task.start, task.contender, h, evaluations, task.until)
                found = min(found, path.mean_rate)
        best, score, worse = (h, found, 0) if found > score else (best, score, worse + 1)
        if worse == 2 and score > -math.inf:
            break
    return best


def record(section: str, task: Task, setup: Setup, h: float | None) -> tuple[Record, Path]:
    """One run as a record."""
    path = run(setup, task.start, task.contender, h, task.evaluations, task.until)
    linear = None if path.failure else fitted(path.errors, setup.smallest)
    steps, spent = len(path.errors) - 1, path.evaluations[-1]
    return {
        "section": section,
        "contender": task.contender.name,
        "start": task.start,
        **asdict(setup),
        "h": h,
        "rate": linear.slope if linear else None,
        "explained": linear.explained if linear else None,
        "evaluations_a_step": spent / max(steps, 1),
        "evaluations": spent,
        "to_target": path.reached(TARGET),
        "first": path.errors[0],
        "last": path.errors[-1],
        "peak": max(path.errors),
        "failure": path.failure,
    }, path


def local(plan: Plan) -> Iterator[Record]:
    for problem in plan.problems:
        for name in plan.contenders:
            for condition in plan.conditions:
                yield from _near("local", plan, CONTENDERS[name], problem=problem, condition=condition)


def curvature(plan: Plan) -> Iterator[Record]:
    for name in ("euler", "implicit"):
        for bent in plan.curvatures:
            yield from _near("curvature", plan, CONTENDERS[name], problem="regression", condition=10.0, curvature=bent)


def _near(section: str, plan: Plan, contender: Contender, **facts: Any) -> Iterator[Record]:
    """From ``near``, with the rate that theory gives for the swept step size."""
    setup = lambda seed: Setup(seed=seed, **facts)
    slow = contender.spectrum == "factors" or "curvature" in facts
    task = Task(contender, "near", plan.slow_evaluations if slow else 300, 1e-13)
    h = swept(task, plan.sweep_seeds, setup, 80 * math.isqrt(contender.stages))
    for seed in plan.seeds:
        found, path = record(section, task, setup(seed), h)
        predicted = rate(modes(setup(seed), contender.spectrum).eigenvalues, contender, h)
        yield found | {"predicted": predicted} | _curve(path, seed == plan.seeds[0] and section == "local")


def time(plan: Plan) -> Iterator[Record]:
    for problem in plan.time_problems:
        for name, h in TIMED.items():
            for condition in plan.time_conditions:
                for seed in plan.seeds:
                    setup, contender = Setup(problem=problem, condition=condition, seed=seed), CONTENDERS[name]
                    found, _ = record("time", Task(contender, "near", plan.time_evaluations, 1e-13), setup, h)
                    spectrum = modes(setup, contender.spectrum).eigenvalues
                    theory = {"predicted": rate(spectrum, contender, h), "slowest": float(spectrum[0])}
                    yield found | theory


def starts(plan: Plan) -> Iterator[Record]:
    for problem, conditions in plan.start_conditions:
        for excess in (0, 1):
            for start in plan.starts:
                for name in plan.start_contenders:
                    yield from _from_afar(plan, problem, conditions, excess, start, CONTENDERS[name])


def _from_afar(
    plan: Plan, problem: str, conditions: tuple[float, ...], excess: int, start: str, contender: Contender
) -> Iterator[Record]:
    """One step size for all κ, swept at κ = 100."""
    task = Task(contender, start, plan.start_evaluations, TARGET / 100)
    at = lambda condition: lambda seed: Setup(problem=problem, condition=condition, seed=seed, excess=excess)
    h = swept(task, plan.far_sweep_seeds, at(1e2), plan.far_sweep_evaluations)
    for condition in conditions:
        for seed in plan.seeds:
            found, path = record("starts", task, at(condition)(seed), h)
            yield found | _curve(path, seed == plan.seeds[0] and condition == 1e2)


def excess(plan: Plan) -> Iterator[Record]:
    for name in plan.excess_contenders:
        contender = CONTENDERS[name]
        slow = contender.spectrum == "factors"
        # The small singular values that are too many bring rounding in before 1e-13.
        task = Task(contender, "orthonormal", plan.excess_evaluations if slow else 1000, 1e-12)
        best = swept(task, plan.far_sweep_seeds, lambda seed: Setup(seed=seed, excess=1), plan.far_sweep_evaluations)
        for h in (best, GENTLE) if slow else (best,):
            for condition in plan.excess_conditions[: 1 if slow else None]:
                for seed in plan.seeds:
                    found, path = record("excess", task, Setup(condition=condition, seed=seed, excess=1), h)
                    found["power"] = power(path.errors) if path.failure is None else None
                    yield found | _curve(path, seed == plan.seeds[0] and condition == 1.0)


def peak(plan: Plan) -> Iterator[Record]:
    for name in plan.peak_contenders:
        h = None if name == "implicit_default" else PEAK_STEP
        for size in plan.sizes:
            task = Task(CONTENDERS[name], size, plan.peak_evaluations, TARGET / 100)
            for seed in plan.seeds:
                yield record("peak", task, Setup(condition=10.0, seed=seed), h)[0]


def _curve(path: Path, kept: bool) -> Record:
    """A few points of the run, for the figure."""
    if not kept:
        return {}
    stride = max(1, len(path.errors) // SHOWN)
    return {"curve": [[n, float(f"{e:.4g}")] for n, e in [*zip(path.evaluations, path.errors, strict=True)][::stride]]}


SECTIONS = {section.__name__: section for section in (local, time, curvature, starts, excess, peak)}

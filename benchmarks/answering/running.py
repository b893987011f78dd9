"""One run: a family with its answers, or a rival.

Seconds are CPU seconds of the process, which has one thread. Measuring errors is not timed; the error estimate of an
answer is. Networks and families are kept beside the runs, for the rivals that begin with them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

import pinn_odelora as po
from answering.cases import Case
from answering.plan import ADAPTER, FAMILY, TOLERANCE, Job, Plan, Run, family_run, offline, target_of
from answering.roster import PREPARERS, SOLVERS, Start, station_solutions
from answering.trace import error_at
from pinn_odelora.checkpoints import load_network, save_network
from pinn_odelora.files import write_json
from pinn_odelora.lowrank.layer import adapters
from pinn_odelora.system import Solution

PRETRAINING = {"target": 3e-5}
KEPT_TOLERANCE = 1e-4
"""That is to be kept by the answers that are asked for with one."""


@contextmanager
def cpu_clock() -> Iterator[None]:
    """Budgets in seconds are CPU seconds inside, so that what else the machine does makes no family poorer.

    To be entered before ``po.family`` is first used: its module takes the clock when it is imported.
    """
    wall = time.perf_counter
    time.perf_counter = time.process_time
    try:
        yield
    finally:
        time.perf_counter = wall


def timed(make: Callable[[], Any]) -> tuple[Any, float]:
    """A result and the CPU seconds that it took."""
    start = time.process_time()
    made = make()
    return made, time.process_time() - start


def pretrained(case: Case, seed: int, folder: Path) -> tuple[nn.Module, float]:
    """The network at the source, from the folder or trained, and the seconds that it took when it was trained."""
    file = folder / "kept" / f"{case.name}-{seed}.safetensors"
    net, facts = case.net(seed), file.with_suffix(".json")
    if facts.exists():
        load_network(net, file)
        return net, json.loads(facts.read_text())["seconds"]
    settings = po.Pretraining(seed=seed, **PRETRAINING)
    net, seconds = timed(lambda: po.pretrain(case.at(case.source), net, settings=settings))
    save_network(net, file)
    write_json(facts, {"seconds": seconds})
    return net, seconds


def family_of(case: Case, seed: int, folder: Path, plan: Plan) -> tuple[Any, nn.Module, dict[str, float]]:
    """The family, from the folder or made, the pretrained network, and the seconds that both took when made."""
    net, pretraining = pretrained(case, seed, folder)
    file = folder / "kept" / f"{case.name}-{seed}-{plan.offline:g}s.family.safetensors"
    facts, problem = file.with_suffix(".json"), case.at(case.source)
    if facts.exists():
        seconds = json.loads(facts.read_text())["seconds"]
        return po.load_family(file, net, problem), net, _costs(pretraining, seconds)
    ends = {case.parameter: (case.source, case.end)}
    asked = {"tolerance": case.median, "seconds": plan.offline, "scale": case.scale, "seed": seed}
    make = lambda: po.family(net, problem, **asked, **ends)
    family, seconds = timed(make)
    family.save(file)
    write_json(facts, {"seconds": seconds})
    return family, net, _costs(pretraining, seconds)


def _costs(pretraining: float, stations: float) -> dict[str, float]:
    return {"pretraining_seconds": pretraining, "offline_seconds": stations}


def run(job: Job, folder: Path, plan: Plan) -> Run:
    """Make a run.

    Raises:
        LookupError: for a rival or a tolerance without the run of the family.
    """
    if job.what == FAMILY:
        return family_with_answers(job.case, job.seed, folder, plan)
    family = family_run(job, folder)
    if family is None:
        raise LookupError(f"{job.file} needs the run of the family of {job.case.name} with seed {job.seed}.")
    if job.what == TOLERANCE:
        made, _, _ = family_of(job.case, job.seed, folder, plan)
        found = answered(job.case, made, plan.kept, tolerance=KEPT_TOLERANCE)
        return {"offline": offline(family), "tolerance": KEPT_TOLERANCE, "answers": found}
    made = lambda: family_of(job.case, job.seed, folder, plan)[0]
    if job.what == ADAPTER:
        return {"offline": offline(family), "answers": answered(job.case, made(), plan.parameters, form="adapter")}
    start = Start(lambda: pretrained(job.case, job.seed, folder)[0], made, offline(family))
    if job.what in PREPARERS:
        return prepared(job, plan, start)
    value = job.case.values(plan.parameters)[job.target]
    trace = SOLVERS[job.what].solve(job.case, value, job.seed, target_of(job, family), plan.cap, start)
    return {"value": value, **trace.record()}


def family_with_answers(case: Case, seed: int, folder: Path, plan: Plan) -> Run:
    """Pretraining, stations and answers."""
    family, net, costs = family_of(case, seed, folder, plan)
    source = case.at(case.source)
    solutions = station_solutions(case, family)
    errors = [error_at(solution.problem)(solution) for solution in solutions]
    values = [station.values[case.parameter] for station in family.stations]
    stations = [{"value": value, "error": error} for value, error in zip(values, errors, strict=True)]
    return {
        **costs,
        "asked": plan.offline,
        "pretraining_error": error_at(source)(Solution(source, net)),
        "stations": stations,
        "answers": answered(case, family, plan.parameters),
        "together": together(case, family, plan.parameters),
    }


def together(case: Case, family: Any, number: int) -> float:
    """Seconds of an answer where all are found at once."""
    _, seconds = timed(lambda: family.answers(**{case.parameter: case.values(number)}))
    return seconds / number


def answered(case: Case, family: Any, number: int, **settings: Any) -> list[dict[str, float]]:
    """The answers at the first parameters of the case; one before them, which is not kept, warms everything up.

    What a family forms at its stations while they are solved, one from a file forms before the first answer.
    """
    values = case.values(number)
    family.prepare()
    family(**{case.parameter: values[-1]}, **settings)
    found = []
    for value in values:
        u, seconds = timed(lambda value=value: family(**{case.parameter: value}, **settings))
        problem = case.at(value)
        ranks = [layer.rank for layer in adapters(u.net).values()]
        found.append(
            {
                "value": value,
                "seconds": seconds,
                "error": error_at(problem)(Solution(problem, u.net)),
                "estimate": u.error,
                "steps": u.steps,
                "corrections": u.corrections,
                "form": u.form,
                "rank": max(ranks, default=0),
            }
        )
    return found


def prepared(job: Job, plan: Plan, start: Start) -> Run:
    """Somebody who prepares, and the answers."""
    answer, seconds = timed(lambda: PREPARERS[job.what].prepare(job.case, job.seed, start))
    found = []
    for value in job.case.values(plan.parameters):
        u, online = timed(lambda value=value: answer(value))
        found.append({"value": value, "seconds": online, "error": error_at(job.case.at(value))(u)})
    return {"offline": start.seconds, "prepared_seconds": seconds, "answers": found}

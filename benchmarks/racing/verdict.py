"""The targets of the race, and what the runs say to each: met, short, or so far not short but incomplete.

A figure is a median over the seeds that have run; it can be short before all have, and met only after.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

from racing.cases import CASES, Case
from racing.contenders import CONTENDERS, NATURAL, NATURAL_EVEN, OURS, RIVALS
from racing.results import Results

ERRORS = (
    ("burgers", 3, 1e-4),
    ("burgers", 10, 1e-5),
    ("burgers", 30, 5e-6),
    ("burgers_wide", 15, 5e-5),
    ("burgers_sharp", 10, 2e-3),
    ("burgers_sharp", 30, 3e-4),
)
"""Case, seconds, and the relative L2 error that is reached in the median over seeds."""
JUDGED = 10
"""Seconds at which contenders are compared."""
EVERYWHERE, TYPICALLY = 10, 20
"""How many times the best rival's error is ours, at least: on every case, and in the median over cases."""
AT_FLOOR = 3
"""A rival whose error is within this factor of its own long run's has nowhere to go."""
WIDE_LEAD = 10
"""How many times ours the error of the full-weight natural gradient is on wide networks, at least."""
LARGEST_RISE = 0.20
"""Of the held-out loss between two looks, at most."""

State = Literal["met", "short", "incomplete"]


class Verdict(NamedTuple):
    """A target in words, what was found, and whether that is enough."""

    target: str
    found: str
    state: State


def verdicts(results: Results, cases: Mapping[str, Case] = CASES) -> list[Verdict]:
    """All of them, in the order of the targets."""
    return [
        *(_error(results, cases[name], seconds, target) for name, seconds, target in ERRORS if name in cases),
        *_leads(results, cases.values()),
        *(_natural(results, case, name) for name in (NATURAL_EVEN, NATURAL) for case in cases.values()),
        *_steadiness(results, cases.values()),
    ]


def best_rival(results: Results, case: str, seconds: float = JUDGED) -> tuple[str, float] | None:
    """The rival with the smallest median error, and that error; None while one of them has not run."""
    return best_of(results, case, RIVALS, seconds)


def best_of(results: Results, case: str, names: Iterable[str], seconds: float = JUDGED) -> tuple[str, float] | None:
    """The contender with the smallest median error of those that race on a case, and that error; None while one of them
    has not run.
    """
    errors = {name: results.error(case, name, seconds) for name in racing_on(case, names)}
    if None in errors.values() or not errors:
        return None
    name = min(errors, key=lambda name: errors[name].median)
    return name, errors[name].median


def racing_on(case: str, names: Iterable[str] = RIVALS) -> list[str]:
    """Those of the contenders that race on a case."""
    return [name for name in names if CONTENDERS[name].races_on(case)]


def at_floor(results: Results, case: str, rival: str, error: float) -> bool:
    """Whether the rival's own long run is hardly better."""
    end = results.floor(case, rival)
    return end is not None and error <= AT_FLOOR * end


def _state(enough: bool, complete: bool) -> State:
    return "short" if not enough else "met" if complete else "incomplete"


def _complete(results: Results, case: Case, seconds: float, *names: str) -> bool:
    """Whether all seeds of the case have run so far."""
    return all(set(case.seeds) <= results.errors(case.name, name, seconds).keys() for name in names)


def _error(results: Results, case: Case, seconds: float, target: float) -> Verdict:
    said = f"{case.name}: at most {target:.0e} after {seconds:g} s"
    found = results.error(case.name, OURS, seconds)
    if found is None:
        return Verdict(said, "not run", "incomplete")
    complete = _complete(results, case, seconds, OURS)
    return Verdict(said, f"{found.median:.2e}", _state(found.median <= target, complete))


def _leads(results: Results, cases: Iterable[Case]) -> list[Verdict]:
    judged, ratios = [], []
    for case in cases:
        said = f"{case.name}: at most 1/{EVERYWHERE} of the best rival after {JUDGED} s"
        ours, rival = results.error(case.name, OURS, JUDGED), best_rival(results, case.name)
        if ours is None or rival is None:
            judged.append(Verdict(said, "not run", "incomplete"))
            continue
        name, error = rival
        ratio, complete = error / ours.median, _complete(results, case, JUDGED, OURS, *racing_on(case.name))
        found = f"{name} {ratio:.3g} times ours, {error:.2e}"
        if at_floor(results, case.name, name, error):
            judged.append(Verdict(said, f"{found}, which is at the floor: not counted", _state(True, complete)))
        else:
            ratios.append(ratio)
            judged.append(Verdict(said, found, _state(ratio >= EVERYWHERE, complete)))
    said = f"at most 1/{TYPICALLY} of the best rival in the median over cases"
    if not ratios:
        return [*judged, Verdict(said, "not run", "incomplete")]
    middle, complete = statistics.median(ratios), all(verdict.state != "incomplete" for verdict in judged)
    return [
        *judged,
        Verdict(said, f"{middle:.3g} times ours over {len(ratios)} cases", _state(middle >= TYPICALLY, complete)),
    ]


def _natural(results: Results, case: Case, name: str) -> Verdict:
    lead = WIDE_LEAD if case.width > 40 else 1
    said = f"{case.name}: {name} " + (f"at least {lead} times worse" if lead > 1 else "not better")
    ours, theirs = (results.error(case.name, contender, JUDGED) for contender in (OURS, name))
    if ours is None or theirs is None:
        return Verdict(said, "not run", "incomplete")
    ratio, complete = theirs.median / ours.median, _complete(results, case, JUDGED, OURS, name)
    return Verdict(said, f"{ratio:.3g} times ours, {theirs.median:.2e}", _state(ratio >= lead, complete))


def _steadiness(results: Results, cases: Collection[Case]) -> list[Verdict]:
    said = "no run of the defaults diverges", f"the held-out loss of the defaults rises by at most {LARGEST_RISE:.0%}"
    runs = [run for case in cases for run in results.of(case.name, OURS)]
    if not runs:
        return [Verdict(target, "not run", "incomplete") for target in said]
    complete = all(_complete(results, case, results.seconds, OURS) for case in cases)
    diverged, worst = sum(run["diverged"] for run in runs), max(runs, key=lambda run: run["largest_rise"])
    rise = f"{worst['largest_rise']:.0%} ({worst['case']}, seed {worst['seed']})"
    iterates = max(run.get("largest_rise_of_iterates", run["largest_rise"]) for run in runs)
    rise += f"; that of the iterates by {iterates:.0%}"
    return [
        Verdict(said[0], f"{diverged} of {len(runs)}", _state(diverged == 0, complete)),
        Verdict(said[1], rise, _state(worst["largest_rise"] <= LARGEST_RISE, complete)),
    ]

"""The targets of the families, and what the runs say to each: met, short, or so far not short but incomplete.

A figure can be short before all runs are there, and met only after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from racing.verdict import State, Verdict

from answering.cases import CASES, Case
from answering.plan import FAMILY, TOLERANCE, Plan, Run
from answering.results import Figures, Results
from answering.roster import ADAPTATION, NATURAL

OFFLINE = 60.0
"""CPU seconds of the stations."""
RANK = 16
ESTIMATED, KEPT = 0.9, 0.95
"""Parts of the answers whose estimate is near their error, and that keep a tolerance."""
TIMES = {NATURAL: 50, ADAPTATION: 20}
"""How many times quicker than from scratch and than one adaptation to the same error, medians."""
WORDS = {NATURAL: "from scratch", ADAPTATION: "one adaptation"}


def verdicts(results: Results, plan: Plan) -> list[Verdict]:
    """All of them, case by case."""
    return [verdict for name in plan.cases for verdict in of_case(results, CASES[name], plan)]


def short(judged: list[Verdict]) -> list[str]:
    """The targets that are missed, in words."""
    return [f"{verdict.target}: {verdict.found}" for verdict in judged if verdict.state == "short"]


def of_case(results: Results, case: Case, plan: Plan) -> Iterator[Verdict]:
    """The targets of one family."""
    found, whole = results.figures(case.name), complete(results, case, FAMILY, plan.seeds)

    def judge(target: str, say: Callable[[Figures], str], enough: Callable[[Figures], bool]) -> Verdict:
        if found is None:
            return Verdict(f"{case.name}: {target}", "not run", "incomplete")
        return Verdict(f"{case.name}: {target}", say(found), state(enough(found), whole))

    yield judge(
        f"an answer in {case.seconds:g} s at most", lambda f: f"{f.seconds:.3f} s", lambda f: f.seconds <= case.seconds
    )
    yield judge(
        f"median error {case.median:.0e} at most", lambda f: f"{f.median:.1e}", lambda f: f.median <= case.median
    )
    yield judge(f"worst error {case.worst:.0e} at most", lambda f: f"{f.worst:.1e}", lambda f: f.worst <= case.worst)
    yield judge(f"stations in {OFFLINE:g} s", lambda f: f"{f.offline:.0f} s", lambda f: f.offline <= OFFLINE)
    yield judge(f"rank {RANK} at most", lambda f: f"{f.rank}", lambda f: f.rank <= RANK)
    yield judge(
        f"estimate within a factor of 3 in {ESTIMATED:.0%}",
        lambda f: f"{f.estimated:.0%}",
        lambda f: f.estimated >= ESTIMATED,
    )
    yield kept(results, case, plan)
    for solver, times in TIMES.items():
        if solver in plan.rivals:
            yield quicker(results, case, plan, solver, times)


def kept(results: Results, case: Case, plan: Plan) -> Verdict:
    """Answers that were asked for with a tolerance."""
    target, found = f"{case.name}: tolerance 1e-4 kept in {KEPT:.0%}", results.figures(case.name)
    if found is None or found.kept is None:
        return Verdict(target, "not run", "incomplete")
    whole = complete(results, case, TOLERANCE, plan.seeds)
    return Verdict(target, f"{found.kept:.0%}", state(found.kept >= KEPT, whole))


def quicker(results: Results, case: Case, plan: Plan, solver: str, times: int) -> Verdict:
    """Than a solver to the same error; runs that did not reach it make the figure a lower bound."""
    target = f"{case.name}: {times} times quicker than {WORDS[solver]}"
    found = results.contest(case.name, solver)
    if found is None:
        return Verdict(target, "not run", "incomplete")
    least = (
        "" if found.reached == found.runs else f"at least, {found.runs - found.reached} of {found.runs} not in time, "
    )
    seeds = [seed for seed in plan.rival_seeds if seed in plan.seeds]
    whole = found.runs >= plan.targets * len(seeds)
    return Verdict(target, f"{least}{found.times:.0f} times", state(found.times >= times, whole))


def complete(results: Results, case: Case, what: str, seeds: tuple[int, ...]) -> bool:
    """Whether a run of every seed is there."""
    there: list[Run] = results.of(case.name, what)
    return set(seeds) <= {run["seed"] for run in there}


def state(enough: bool, whole: bool) -> State:
    """Of a target."""
    return "short" if not enough else "met" if whole else "incomplete"

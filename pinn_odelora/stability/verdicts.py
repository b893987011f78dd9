"""Each claim, judged by the data: holds, does not hold, or undecided; and the targets of the default settings.

The source (Gao and Tan, 2026, arXiv 2602.07479), as far as its abstract tells, claims that its dynamics, discretised
"including Euler and Runge–Kutta", are better than existing baselines on physics-informed networks, especially in the
stability of training. Here stability is the measures of ``CLAIMS``. Ours are judged as this package has it by default;
where that differs, by the linearly implicit scheme with the rank and the points of all others, since the default brings
its own; and by the schemes that the abstract names, Euler's and RK4, the better one of them in the measure at hand. The
rival is the best one in the measure at hand. All methods have equally many step sizes here (``shared``).

Of ours minus the rival's, problem by problem and seed by seed, the mean is taken with its 95 % interval
(``measures.bootstrap``). A claim holds if the whole interval is on the better side of zero, does not hold if it is on
the other, and is undecided if zero is inside or there are values for fewer than four problems.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from pinn_odelora.stability.measures import (
    HALF,
    Interval,
    Run,
    Study,
    along,
    bootstrap,
    counted_error,
    diverged,
    end_error,
    returned,
    rises,
    works,
    worst_over_best,
)
from pinn_odelora.stability.methods import METHODS, OURS
from pinn_odelora.stability.plan import FULL

IMPLICIT = "odelora_implicit"
EXPLICIT = ("odelora_euler", "odelora_rk4")
FEWEST = 4
"""Problems that a verdict needs: three means have the same sign by chance once in four times."""
Values = Mapping[str, Mapping[int, float]]
"""By problem and seed."""
Outcome = Literal["holds", "does not hold", "undecided", "not run"]


class Claim(NamedTuple):
    """A claim, its measure with the unit, whose values are ours by default, and whether larger ones are better."""

    text: str
    unit: str
    measure: Callable[[Study, str, str, int], float | None]
    ours: str
    larger: bool = False


class Verdict(NamedTuple):
    """Who is judged against whom, the difference with its interval, on how many problems ours is ahead and of how many,
    and what follows.
    """

    claim: Claim
    ours: str
    rival: str
    difference: Interval | None
    ahead: int
    problems: int
    outcome: Outcome


def shared(study: Study) -> Study:
    """The study without the step sizes that some methods have besides those of all."""
    return Study(run for run in study.rows if not _besides(run))


def _besides(run: Run) -> bool:
    if run["step"] is None or run["method"] not in FULL.beyond:
        return False
    return run["step"] > METHODS[run["method"]].middle * 10 ** (FULL.places[-1] + FULL.spacing / 2)


def rivals(study: Study) -> list[str]:
    """Those of the methods that are not ours, as far as they were run."""
    return [name for name in study.methods if name in METHODS and METHODS[name].family != "ours"]


def decades_wide(study: Study, problem: str, method: str, seed: int) -> float | None:
    found = study.width(problem, method, seed)
    return None if found is None else found.decades


def decades_halving(study: Study, problem: str, method: str, seed: int) -> float | None:
    found = study.width(problem, method, seed, HALF)
    return None if found is None else found.decades


def share_diverged(study: Study, problem: str, method: str, seed: int) -> float | None:
    runs = [run for run in study.of(problem, method, seed=seed) if run["step"] is not None]
    return statistics.fmean(map(diverged, runs)) if runs else None


def default_run(study: Study, problem: str, method: str, seed: int) -> Run | None:
    """The run with the step size of a user who gives none."""
    found = study.of(problem, method, step=METHODS[method].default, seed=seed)
    return found[0] if found else None


def best_run(study: Study, problem: str, method: str, seed: int) -> Run | None:
    """The run with the step size that is the best over all seeds."""
    found = study.of(problem, method, step=study.best_step(problem, method), seed=seed)
    return found[0] if found else None


def timed_run(study: Study, problem: str, method: str, seed: int) -> Run | None:
    found = study.of(problem, method, "timed", seed=seed)
    return found[0] if found else None


def default_rises(study: Study, problem: str, method: str, seed: int) -> float | None:
    run = default_run(study, problem, method, seed)
    return None if run is None else rises(along(run, "heldout")).share


def returned_rises(study: Study, problem: str, method: str, seed: int) -> float | None:
    run = default_run(study, problem, method, seed)
    return None if run is None else rises(returned(run, "heldout")).share


def _decades(
    find: Callable[[Study, str, str, int], Run | None],
) -> Callable[[Study, str, str, int], float | None]:
    """log10 of e_end of the run that is found, at most that of e_0."""

    def measure(study: Study, problem: str, method: str, seed: int) -> float | None:
        run = find(study, problem, method, seed)
        error = None if run is None else counted_error(run)
        return None if error is None else math.log10(max(error, 1e-16))

    return measure


default_error, best_error, timed_error = _decades(default_run), _decades(best_run), _decades(timed_run)


def spread_of_seeds(study: Study, problem: str, method: str, seed: int) -> float | None:
    """log10 of the largest over the smallest error at the default step size; of the first seed's turn alone."""
    errors = [x for s in study.seeds if (x := default_error(study, problem, method, s)) is not None]
    return max(errors) - min(errors) if len(errors) > 1 and seed == study.seeds[0] else None


def condition(study: Study, problem: str, method: str, seed: int) -> float | None:
    """log10 of the largest condition number of a Gram matrix along the run with the best step size."""
    run = best_run(study, problem, method, seed)
    if run is None or run["peak_condition_a"] is None:
        return None
    return math.log10(max(run["peak_condition_a"], run["peak_condition_b"]))


CLAIMS = (
    Claim("more step sizes work", "decades of step sizes", decades_wide, IMPLICIT, larger=True),
    Claim("more step sizes halve the error", "decades of step sizes", decades_halving, IMPLICIT, larger=True),
    Claim("fewer step sizes diverge", "share of the runs", share_diverged, IMPLICIT),
    Claim("the held-out loss of the iterates rises less often", "share of the marks", default_rises, OURS),
    Claim("the held-out loss of what is returned rises less often", "share of the marks", returned_rises, OURS),
    Claim("seeds matter less", "decades between the worst and the best seed", spread_of_seeds, OURS),
    Claim("the factors stay better conditioned", "decades of the condition number", condition, IMPLICIT),
    Claim("the error without tuning is smaller", "decades of the error", default_error, OURS),
    Claim("the error at the best step size is smaller", "decades of the error", best_error, IMPLICIT),
    Claim("the error after equal seconds, without tuning, is smaller", "decades of the error", timed_error, OURS),
)


def verdicts(study: Study) -> list[Verdict]:
    """Every claim for each of ours, by the step sizes that all methods have."""
    equal = shared(study)
    return [judge(equal, claim, ours) for claim in CLAIMS for ours in _judged(claim)]


def _judged(claim: Claim) -> list[Sequence[str]]:
    """The default; the linearly implicit scheme, whose runs by seconds are those of the default; the explicit ones."""
    scheme = [] if claim.ours == IMPLICIT or claim.measure is timed_error else [[IMPLICIT]]
    return [[claim.ours], *scheme, EXPLICIT]


def values(study: Study, claim: Claim, method: str) -> Values:
    """By problem and seed; what was not run is left out."""
    found = {
        problem: {seed: claim.measure(study, problem, method, seed) for seed in study.seeds}
        for problem in study.problems
    }
    return {p: {seed: x for seed, x in own.items() if x is not None} for p, own in found.items()}


def judge(study: Study, claim: Claim, ours: Sequence[str]) -> Verdict:
    """The best of ours against the best of the rivals."""
    mine, theirs = _best(study, claim, ours), _best(study, claim, rivals(study))
    if mine is None or theirs is None:
        return Verdict(claim, mine or ours[0], theirs or "", None, 0, 0, "not run")
    a, b = values(study, claim, mine), values(study, claim, theirs)
    paired = {p: [a[p][s] - b[p][s] for s in sorted(a[p].keys() & b[p].keys())] for p in a}
    difference, means = bootstrap(paired), [statistics.fmean(own) for own in paired.values() if own]
    ahead = sum(x > 0 if claim.larger else x < 0 for x in means)
    few = 0 < len(means) < FEWEST
    found = "undecided" if few else outcome(difference, claim.larger)
    return Verdict(claim, mine, theirs, difference, ahead, len(means), found)


def outcome(difference: Interval | None, larger: bool) -> Outcome:
    """Of ours minus the rival's, where larger values or smaller ones are better."""
    if difference is None:
        return "not run"
    below, above = difference.high < 0, difference.low > 0
    if not (below or above):
        return "undecided"
    return "holds" if above == larger else "does not hold"


def _best(study: Study, claim: Claim, methods: Iterable[str]) -> str | None:
    """The method with the best mean over problems."""
    found = {name: mean(values(study, claim, name)) for name in methods}
    found = {name: x for name, x in found.items() if x is not None}
    return (max if claim.larger else min)(found, key=found.__getitem__, default=None)


def mean(found: Values) -> float | None:
    """Over problems, of the means over seeds."""
    means = [statistics.fmean(own.values()) for own in found.values() if own]
    return statistics.fmean(means) if means else None


class Target(NamedTuple):
    """A target in words, what was found, and whether that is enough."""

    target: str
    found: str
    state: Literal["met", "short", "incomplete"]


WIDE = 4.0
NARROW = 3.0


def targets(study: Study, problems: Sequence[str], seeds: Sequence[int]) -> list[Target]:
    """Of the default settings, and of the linearly implicit scheme.

    Args:
        study: what was run.
        problems, seeds: all that belong to it.
    """
    runs = study.all_of(OURS)
    every = len(runs) == len(problems) * len(seeds)
    timed = study.all_of(OURS, "timed")
    both = every and len(timed) == len(problems) * len(seeds)
    lost, failed = sum(map(diverged, [*runs, *timed])), [run for run in runs if not works(run)]
    where = "".join(f"; not on {run['problem']}, seed {run['seed']}" for run in failed)
    return [
        _target("default settings: no run diverges", f"{lost} of {len(runs) + len(timed)}", lost == 0, both),
        _target(
            "default settings: a tenth of the error on every problem, with every seed",
            f"{len(runs) - len(failed)} of {len(runs)}{where}",
            not failed,
            every,
        ),
        _width(study, problems, seeds),
        _spread(study, problems, seeds),
    ]


def _target(said: str, found: str, enough: bool, complete: bool) -> Target:
    return Target(said, found, "short" if not enough else "met" if complete else "incomplete")


def _width(study: Study, problems: Sequence[str], seeds: Sequence[int]) -> Target:
    """Of the medians over seeds the smallest over problems."""
    said = f"linearly implicit: at least {WIDE:g} decades of step sizes work on every problem"
    found = {p: [w.decades for w in study.widths(p, IMPLICIT)] for p in problems}
    medians = {p: statistics.median(own) for p, own in found.items() if own}
    told = ", ".join(f"{p} {x:.1f}" for p, x in medians.items()) or "not run"
    complete = all(len(own) == len(seeds) for own in found.values())
    # A median of some seeds can still rise.
    enough = min(medians.values(), default=WIDE) >= WIDE - 1e-9 or not complete
    return _target(said, told, enough, complete)


def _spread(study: Study, problems: Sequence[str], seeds: Sequence[int]) -> Target:
    said = f"default settings: worst over best seed at most {NARROW:g} at equal seconds, on every problem"
    found = {p: [end_error(run) for run in study.of(p, OURS, "timed")] for p in problems}
    ratios = {p: worst_over_best(own) for p, own in found.items() if own}
    told = ", ".join(f"{p} {x:.2f}" for p, x in ratios.items()) or "not run"
    complete = all(len(own) == len(seeds) for own in found.values())
    return _target(said, told, max(ratios.values(), default=0.0) <= NARROW, complete)

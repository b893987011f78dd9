"""The tables of the study, each computed from its runs: a method or a problem a row, cells as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pinn_odelora.stability.measures import (
    HALF,
    REACHED,
    Interval,
    Run,
    Study,
    along,
    bootstrap,
    diverged,
    end_error,
    returned,
    rises,
    works,
    worst_over_best,
)
from pinn_odelora.stability.methods import METHODS, OURS
from pinn_odelora.stability.plan import RANK, RESIDUALS, SLICED_METHODS
from pinn_odelora.stability.verdicts import (
    EXPLICIT,
    IMPLICIT,
    Target,
    Verdict,
    best_error,
    best_run,
    condition,
    decades_halving,
    decades_wide,
    default_error,
    default_rises,
    default_run,
    rivals,
    share_diverged,
    spread_of_seeds,
    timed_error,
)

Row = Sequence[str]
Measure = Callable[[Study, str, str, int], float | None]


def table(head: Row, rows: Iterable[Row]) -> list[str]:
    rows = [*rows]
    if not rows:
        return []
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def named(study: Study) -> list[str]:
    """The methods that were run, in the order of the list."""
    return [name for name in METHODS if name in study.methods]


def of_targets(judged: Sequence[Target]) -> list[str]:
    return table(("target", "found", ""), judged)


def of_verdicts(judged: Sequence[Verdict]) -> list[str]:
    rows = ((v.claim.text, v.ours, v.rival, _difference(v), _ahead(v), f"**{v.outcome}**") for v in judged)
    return table(("claim", "ours", "best rival", "difference", "ahead", "verdict"), rows)


def _ahead(verdict: Verdict) -> str:
    return f"{verdict.ahead} of {verdict.problems}" if verdict.problems else ""


def _difference(verdict: Verdict) -> str:
    return "" if verdict.difference is None else f"{_interval(verdict.difference, '+.2f')} {verdict.claim.unit}"


def _interval(x: Interval | None, form: str = ".2f") -> str:
    return "" if x is None else f"{x.value:{form}} [{x.low:{form}}, {x.high:{form}}]"


class Compared(NamedTuple):
    """A measure of which smaller values are better, whose values are ours, and how a value is written."""

    what: str
    measure: Measure
    ours: str
    shown: Callable[[float], str] = lambda x: f"{10**x:.1e}"


def _narrow(measure: Measure) -> Callable[..., float | None]:
    return lambda *at: None if (x := measure(*at)) is None else -x


COMPARED = (
    Compared("error without tuning", default_error, OURS),
    Compared("error without tuning", default_error, IMPLICIT),
    *(Compared("error at the best step size", best_error, name) for name in (IMPLICIT, *EXPLICIT, "odelora_rkc2")),
    Compared("error at equal seconds", timed_error, OURS),
    Compared("step sizes that work", _narrow(decades_wide), IMPLICIT, lambda x: f"{abs(x):.1f} decades"),
    Compared("step sizes that halve the error", _narrow(decades_halving), IMPLICIT, lambda x: f"{abs(x):.1f} decades"),
    Compared("step sizes that diverge", share_diverged, IMPLICIT, "{:.2f}".format),
    Compared("rises of the iterates without tuning", default_rises, OURS, "{:.2f}".format),
    Compared("rises of the iterates without tuning", default_rises, IMPLICIT, "{:.2f}".format),
    Compared("worst over best seed without tuning", spread_of_seeds, OURS, lambda x: f"{10**x:.2g}"),
    Compared("condition number at the best step size", condition, IMPLICIT),
)


def of_losses(study: Study) -> list[str]:
    rows = []
    for compared in COMPARED:
        for problem in study.problems:
            mine = median(study, compared.measure, problem, compared.ours)
            found = ((median(study, compared.measure, problem, name), name) for name in rivals(study))
            ahead = sorted((x, name) for x, name in found if x is not None and mine is not None and x < mine)
            if ahead:
                values = (f"{name} {compared.shown(x)}" for x, name in ((mine, compared.ours), ahead[0]))
                others = ", ".join(name for _, name in ahead[1:]) or "-"
                rows.append((compared.what, problem, *values, others))
    return table(("measure", "problem", "ours", "the best", "also ahead"), rows) or ["Nowhere."]


def median(study: Study, measure: Measure, problem: str, method: str) -> float | None:
    found = [x for seed in study.seeds if (x := measure(study, problem, method, seed)) is not None]
    return statistics.median(found) if found else None


def of_widths(study: Study) -> list[str]:
    rows = []
    for name in named(study):
        widths = {p: study.widths(p, name) for p in study.problems}
        if not any(widths.values()):
            continue
        cells = []
        for problem, found in widths.items():
            open_ended = any(w.at_low or w.at_high for w in found)
            cells.append(f"{'≥ ' * open_ended}{statistics.median(w.decades for w in found):.1f}" if found else "")
            if found and not any(map(works, study.of(problem, name))):
                cells[-1] = "none"
        means = [_mean_width(study, name, part) for part in (REACHED, HALF)]
        rows.append((name, _range(study, name), *cells, *means))
    return table(("method", "step sizes", *study.problems, "mean", "mean, half of the error"), rows)


def _mean_width(study: Study, method: str, part: float) -> str:
    return _interval(bootstrap({p: [w.decades for w in study.widths(p, method, part)] for p in study.problems}))


def _range(study: Study, method: str) -> str:
    grid = next((grid for p in study.problems if (grid := study.grid(p, method))), [])
    return f"{grid[0]:.1e} to {grid[-1]:.1e}" if grid else ""


def of_divergence(study: Study) -> list[str]:
    rows = []
    for name in named(study):
        by_problem = {p: study.of(p, name) for p in study.problems}
        if not any(by_problem.values()):
            continue
        cells = [f"{sum(map(diverged, own))} of {len(own)}" for own in by_problem.values()]
        share = bootstrap({p: [float(diverged(run)) for run in own] for p, own in by_problem.items()})
        every = study.all_of(name)
        last = f"{sum(diverged(run, along) for run in every)} of {len(every)}"
        rows.append((name, *cells, _interval(share), last))
    return table(("method", *study.problems, "share", "last iterates"), rows)


def of_errors(study: Study) -> list[str]:
    rows = []
    for name in named(study):
        default = dict.fromkeys(study.problems, METHODS[name].default)
        rows.append((name, "default", *_errors_at(study, name, default)))
        if any(run["error_returned"] is not None for run in _runs(study, name, default_run)):
            rows.append((name, "default, last iterate", *_errors_at(study, name, default, along)))
        if best := {p: study.best_step(p, name) for p in study.problems if study.grid(p, name)}:
            rows.append((name, "best", *_errors_at(study, name, best)))
    return table(("method", "step size", *study.problems, "seconds"), rows)


def _errors_at(
    study: Study, method: str, steps: Mapping[str, float | None], find: Callable[[Run, str], list[float]] = returned
) -> list[str]:
    """A cell for each problem, and the seconds."""
    runs = {p: study.of(p, method, step=steps[p]) if p in steps else [] for p in study.problems}
    errors = {p: [end_error(run, find) for run in own] for p, own in runs.items()}
    cells = [f"{_spread(own)} ({_step(steps[p])})" if own else "" for p, own in errors.items()]
    seconds = [run["seconds_spent"] for own in runs.values() for run in own]
    return [*cells, f"{statistics.median(seconds):.1f}" if seconds else ""]


def _step(size: float | None) -> str:
    return "own" if size is None else f"{size:.2g}"


def _spread(errors: Sequence[float]) -> str:
    if not errors:
        return ""
    middle, low, high = (_number(f(errors)) for f in (statistics.median, min, max))
    return f"{middle} [{low}, {high}]"


def _number(x: float, form: str = ".1e") -> str:
    return f"{x:{form}}" if math.isfinite(x) else "∞"


def of_rises(study: Study) -> list[str]:
    rows = []
    for name in named(study):
        cells = []
        for find in (default_run, best_run):
            runs = _runs(study, name, find)
            for curves in ([along(run, "heldout") for run in runs], [returned(run, "heldout") for run in runs]):
                found = [rises(curve) for curve in curves]
                cells.append(_rise(found) if found else "")
        rows.append((name, *cells))
    head = ("default, iterates", "default, returned", "best, iterates", "best, returned")
    return table(("method", *head), rows)


def _rise(found: Sequence) -> str:
    largest = max(x.largest for x in found)
    return f"{statistics.fmean(x.share for x in found):.2f}, {_number(100 * largest, '.3g')} %"


def _runs(study: Study, method: str, find: Callable[[Study, str, str, int], Run | None]) -> list[Run]:
    found = (find(study, problem, method, seed) for problem in study.problems for seed in study.seeds)
    return [run for run in found if run is not None]


def of_timed(study: Study) -> list[str]:
    rows = []
    for name in named(study):
        found = {p: [end_error(run) for run in study.of(p, name, "timed")] for p in study.problems}
        if any(found.values()):
            worst = max(worst_over_best(own) for own in found.values() if own)
            rows.append((name, *(_spread(own) for own in found.values()), _number(worst, ".2g")))
    return table(("method", *study.problems, "worst over best seed"), rows)


VARIED = (
    ("rank 2", {"rank": "2"}),
    ("rank 4", {"rank": "4"}),
    ("rank 8", None),
    ("orthonormal", {"start": "orthonormal"}),
    ("zero", {"start": "zero"}),
    ("32 bits", {"precision": 32}),
    ("fixed points", {"points": "fixed"}),
    ("400 residuals", {"residuals": 400}),
)
"""What the columns have; the third is the main part, with the same step sizes and seeds."""


def of_slices(study: Study) -> list[str]:
    rows = []
    for problem in study.problems:
        for name in SLICED_METHODS:
            found = {label: _sliced(study, problem, name, varied) for label, varied in VARIED}
            if sum(x is not None for x in found.values()) < 2:
                continue
            ranks, starts = (_ratio([found[k] for k in keys]) for keys in (RANKS, STARTS))
            cells = ["" if x is None else _number(x) for x in found.values()]
            rows.append((problem, name, *cells, f"{ranks}, {starts}"))
    return table(("problem", "method", *(label for label, _ in VARIED), "ranks, starts"), rows)


RANKS, STARTS = ("rank 2", "rank 4", "rank 8"), ("rank 8", "orthonormal", "zero")


def _ratio(errors: Sequence[float | None]) -> str:
    known = [x for x in errors if x is not None]
    return _number(worst_over_best(known), ".2g") if len(known) > 1 else ""


def _sliced(study: Study, problem: str, method: str, varied: dict | None) -> float | None:
    """The smallest median error over the step sizes and seeds of the slices."""
    sliced = study.of(problem, method, "slice")
    steps, seeds = {run["step"] for run in sliced}, {run["seed"] for run in sliced}
    own = study.of(problem, method) if varied is None else study.of(problem, method, "slice", **_alone(varied))
    by_step: dict[float, list[float]] = {}
    for run in own:
        if run["step"] in steps and run["seed"] in seeds:
            by_step.setdefault(run["step"], []).append(end_error(run))
    return min(map(statistics.median, by_step.values()), default=None)


def _alone(varied: dict) -> dict:
    return {"rank": str(RANK), "start": "pissa", "precision": 64, "points": "fresh", "residuals": RESIDUALS} | varied


def of_shapes(study: Study) -> list[str]:
    rows = []
    for name in named(study):
        runs = [run for run in _runs(study, name, best_run) if run["peak_condition_a"] is not None]
        if not runs:
            continue
        conditions = [max(run["peak_condition_a"], run["peak_condition_b"]) for run in runs]
        defects = [run["peak_balance"] for run in runs]
        cells = [f"{f(x):.1e}" for x in (conditions, defects) for f in (statistics.median, max)]
        rows.append((name, *cells))
    return table(("method", "condition", "largest", "balance defect", "largest"), rows)

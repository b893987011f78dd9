"""What was predicted of the study, beside what was found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from pinn_odelora.stability.measures import Study, bootstrap, diverged
from pinn_odelora.stability.methods import METHODS, OURS
from pinn_odelora.stability.predictions import BEST_PUBLISHED, DIVERGED, SMALLEST, WIDTHS
from pinn_odelora.stability.tables import Measure, median, named, table
from pinn_odelora.stability.verdicts import EXPLICIT, best_error, default_error, timed_error


def of_all(study: Study) -> list[str]:
    """Both tables."""
    return [*_of_shares(study), "", *_of_further(study)]


def _of_shares(study: Study) -> list[str]:
    rows = []
    for name in named(study):
        per_seed = {p: [w.decades for w in study.widths(p, name)] for p in study.problems}
        wide, lost = bootstrap(per_seed), [float(diverged(run)) for run in study.all_of(name)]
        cells = (
            f"{WIDTHS[name]:.1f}" if name in WIDTHS else "",
            "" if wide is None else f"{wide.value:.1f}",
            f"{DIVERGED[name]:.2f}" if name in DIVERGED else "",
            f"{statistics.fmean(lost):.2f}" if lost else "",
        )
        rows.append((name, *cells))
    return table(("method", "width, predicted", "found", "share diverged, predicted", "found"), rows)


def _of_further(study: Study) -> list[str]:
    """The other predictions."""
    published = [name for name in named(study) if METHODS[name].family == "published"]
    rows = []
    for what, measure in (("default", default_error), ("best", best_error)):
        at = f"at the {what} step size"
        rows += [
            (f"smallest error {at}, and the second", ", ".join(SMALLEST), _first(study, measure, named(study), 2)),
            (f"best published optimiser {at}", BEST_PUBLISHED, _first(study, measure, published, 1)),
        ]
    lead = _ratios(study, lambda p: (_least(study, best_error, p, published), median(study, best_error, p, OURS)))
    explicit = _ratios(
        study, lambda p: (_least(study, best_error, p, EXPLICIT), median(study, best_error, p, "lora_adam"))
    )
    spread = _ratios(study, lambda p: (median(study, _timed_spread, p, OURS), 0.0))
    rows += [
        ("error of the best published optimiser over that of odelora, best step sizes", "above 10", lead),
        ("error of the better of Euler and RK4 over that of lora_adam, best step sizes", "above 1", explicit),
        ("worst over best seed of odelora at equal seconds", "up to 3, above on convection", spread),
    ]
    return table(("further predictions", "predicted", "found"), rows)


def _timed_spread(study: Study, problem: str, method: str, seed: int) -> float | None:
    """log10 of the largest over the smallest error at equal seconds."""
    errors = [x for s in study.seeds if (x := timed_error(study, problem, method, s)) is not None]
    return max(errors) - min(errors) if len(errors) > 1 else None


def _least(study: Study, measure: Measure, problem: str, methods: Iterable[str]) -> float | None:
    found = (median(study, measure, problem, name) for name in methods)
    return min((x for x in found if x is not None), default=None)


def _ratios(study: Study, find: Callable[[str], tuple[float | None, float | None]]) -> str:
    """By problem, from two logarithms."""
    found = {p: find(p) for p in study.problems}
    return ", ".join(f"{p} {10 ** (x - y):.2g}" for p, (x, y) in found.items() if x is not None and y is not None)


def _first(study: Study, measure: Measure, methods: Iterable[str], number: int) -> str:
    """By problem, the methods with the smallest median errors."""
    found = {}
    for problem in study.problems:
        medians = {name: median(study, measure, problem, name) for name in methods}
        known = {name: x for name, x in medians.items() if x is not None}
        found[problem] = ", ".join(sorted(known, key=known.__getitem__)[:number])
    return "; ".join(f"{problem}: {names}" for problem, names in found.items() if names)

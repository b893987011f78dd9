"""The page of the study, with its tables: every number on it is computed from the rows of ``runs.parquet``."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pinn_odelora.files import write_bytes, write_text
from pinn_odelora.stability import storage
from pinn_odelora.stability.figure import picture
from pinn_odelora.stability.measures import (
    Interval,
    Run,
    Study,
    along,
    bootstrap,
    diverged,
    end_error,
    returned,
    rises,
    worst_over_best,
)
from pinn_odelora.stability.methods import METHODS, OURS
from pinn_odelora.stability.plan import RANK, RESIDUALS, SLICED_METHODS, Form
from pinn_odelora.stability.predictions import BEST_AT_BEST, BEST_AT_DEFAULT, DIVERGED, WIDTHS
from pinn_odelora.stability.verdicts import (
    CLAIMS,
    Target,
    Verdict,
    best_error,
    best_run,
    decades_wide,
    default_error,
    default_run,
    mean,
    rivals,
    targets,
    timed_error,
    values,
    verdicts,
)

RUNS, PAGE, PICTURE = "runs.parquet", "README.md", "stability.png"
Row = Sequence[str]


def write(runs: Iterable[Run], form: Form, problems: Sequence[str], folder: Path) -> Study:
    """The rows, the page and the picture, into a folder that need not exist; the study as read back."""
    storage.write((storage.flat(run) for run in runs), folder / RUNS)
    study = Study(storage.read(folder / RUNS))
    write_text(folder / PAGE, page(study, form, problems))
    image = io.BytesIO()
    picture(study).savefig(image, format="png", dpi=90)
    write_bytes(folder / PICTURE, image.getvalue())
    return study


def page(study: Study, form: Form, problems: Sequence[str]) -> str:
    """The page as it is written."""
    return "\n".join(
        [
            *_head(study, form),
            *_section("Targets", _targets(targets(study, problems, form.seeds))),
            *_section("Verdicts", _verdicts(verdicts(study)), VERDICTS),
            *_section("Where ODELoRA loses", _losses(study), LOSSES),
            "## The stability picture",
            "",
            f"![Error against step size]({PICTURE})",
            "",
            PICTURED,
            "",
            *_section("Step sizes that work", _widths(study), WIDE),
            *_section("Runs that diverge", _diverged(study), SHARES),
            *_section("Errors", _errors(study), ERRORS),
            *_section("Rises of the held-out loss", _rises(study), RISES),
            *_section("Errors at equal seconds", _timed(study), _timed_words(form)),
            *_section("Ranks, starts, precision, points", _slices(study), SLICED),
            *_section("Conditioning and balance", _shapes(study), SHAPES),
            *_section("Predicted and found", _predicted(study), PREDICTED),
        ]
    )


VERDICTS = (
    "The source, of which only the abstract is known to us, claims that its dynamics, discretised by schemes "
    "including Euler's and Runge–Kutta, are better than existing baselines on physics-informed networks, especially in "
    "the stability of training. Each claim is judged for this package's default and for the better one of Euler's "
    "scheme and RK4, against the rival that is best in this measure. The difference is ours minus the rival's, with "
    "its 95 % interval over problems and seeds; a claim is undecided where zero is inside."
)
LOSSES = "Problems on which a rival has a smaller median error than ours in the same comparison."
PICTURED = (
    "The error of what a run returns after all its evaluations, median over seeds, with a band from the best seed to "
    "the worst. Grey lines: the error of the start, and a tenth of it (dotted). Dash-dotted: the default settings of "
    "this package, which choose their step size. Errors above 10, or without a value, are drawn at 10."
)
WIDE = (
    "Decades between the ends of the longest row of neighbouring step sizes that reach a tenth of the error at the "
    "start, median over seeds; ≥ where the row reaches an end of the grid. The mean has its 95 % interval. The "
    "linearly implicit scheme has larger step sizes besides, since the ones that work depend on the weights of "
    "residuals."
)
SHARES = "Of all step sizes and seeds: a failure, a refusal, or a held-out loss above that of the start at the end."
ERRORS = "Relative L2, median over seeds with the smallest and the largest; the step size or learning rate in brackets."
RISES = (
    "Between marks at equal evaluations: the share of marks at which the loss on the same held-out points is larger "
    "than at the one before, mean over problems and seeds, and the largest rise in %. Of the iterates, and of what the "
    "run would have returned there. For the default step size, and for the best one."
)
SLICED = (
    "The smallest median error over step sizes, one thing varied at a time from rank 8, the PiSSA start, 64 bits, and "
    f"{RESIDUALS:,} residuals at fresh points; the last column is the largest over the smallest error of the "
    "ranks 2, 4, 8 and of the starts."
)
SHAPES = (
    "Along runs with the best step size: the largest condition number of the Gram matrices AAᵀ and BᵀB of a layer and "
    "the largest ‖BᵀB − AAᵀ‖, at marks; median over problems and seeds, and largest."
)
PREDICTED = "Written down before the study was run, in `pinn_odelora/stability/predictions.py`, and what was found."


def _head(study: Study, form: Form) -> list[str]:
    return [
        "# The stability study",
        "",
        "Generated by `python -m pinn_odelora study stability`, which makes the runs that are missing first; "
        "[how to run and read it](../../guide/stability-study.md). "
        f"{len(study.rows)} runs on {', '.join(study.problems)}; seeds {', '.join(map(str, study.seeds))}; "
        f"{len(form.places)} step sizes over {form.places[-1] - form.places[0]:g} decades, {form.evaluations} gradient "
        "evaluations each, stages, trial steps and linearisations included. All methods adapt the same pretrained "
        f"networks from the same factors of rank {RANK}, with {RESIDUALS:,} residuals a batch, new ones at each step; "
        "`odelora` is "
        "the default of this package, with rank, points and step size of its own. Terms are defined in "
        "`pinn_odelora/stability/measures.py`.",
        "",
    ]


def _section(title: str, table: Sequence[str], text: str = "") -> list[str]:
    return [f"## {title}", "", *([text, ""] if text else []), *(table or ["Not run."]), ""]


def _table(head: Row, rows: Iterable[Row]) -> list[str]:
    rows = [*rows]
    if not rows:
        return []
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _named(study: Study) -> list[str]:
    """The methods that were run, in the order of the list."""
    return [name for name in METHODS if name in study.methods]


def _targets(judged: Sequence[Target]) -> list[str]:
    return _table(("target", "found", ""), judged)


def _verdicts(judged: Sequence[Verdict]) -> list[str]:
    rows = ((v.claim.text, v.ours, v.rival, _difference(v), f"**{v.outcome}**") for v in judged)
    return _table(("claim", "ours", "best rival", "difference", "verdict"), rows)


def _difference(verdict: Verdict) -> str:
    return "" if verdict.difference is None else f"{_interval(verdict.difference, '+.2f')} {verdict.claim.unit}"


def _interval(x: Interval | None, form: str = ".2f") -> str:
    return "" if x is None else f"{x.value:{form}} [{x.low:{form}}, {x.high:{form}}]"


COMPARED: tuple[tuple[str, Callable[[Study, str, str, int], float | None], str], ...] = (
    ("without tuning", default_error, OURS),
    ("best step size", best_error, "odelora_implicit"),
    ("best step size", best_error, "odelora_euler"),
    ("best step size", best_error, "odelora_rk4"),
    ("best step size", best_error, "odelora_rkc2"),
    ("equal seconds", timed_error, OURS),
    ("step sizes that work", lambda *at: None if (x := decades_wide(*at)) is None else -x, "odelora_implicit"),
)


def _losses(study: Study) -> list[str]:
    rows = []
    for what, measure, ours in COMPARED:
        for problem in study.problems:
            found = {name: _median(study, measure, problem, name) for name in (ours, *rivals(study))}
            mine = found.pop(ours)
            ahead = sorted((x, name) for name, x in found.items() if x is not None and mine is not None and x < mine)
            if ahead:
                shown = (lambda x: f"{-x:.1f} decades") if what.startswith("step") else (lambda x: f"{10**x:.1e}")
                others = ", ".join(name for _, name in ahead[1:]) or "-"
                rows.append((what, problem, f"{ours} {shown(mine)}", f"{ahead[0][1]} {shown(ahead[0][0])}", others))
    return _table(("comparison", "problem", "ours", "the best", "also ahead"), rows) or ["Nowhere."]


def _median(
    study: Study, measure: Callable[[Study, str, str, int], float | None], problem: str, method: str
) -> float | None:
    found = [x for seed in study.seeds if (x := measure(study, problem, method, seed)) is not None]
    return statistics.median(found) if found else None


def _widths(study: Study) -> list[str]:
    rows = []
    for name in _named(study):
        widths = {p: study.widths(p, name) for p in study.problems}
        if not any(widths.values()):
            continue
        cells = []
        for found in widths.values():
            open_ended = any(w.at_low or w.at_high for w in found)
            cells.append(f"{'≥ ' * open_ended}{statistics.median(w.decades for w in found):.1f}" if found else "")
        interval = bootstrap({p: [w.decades for w in own] for p, own in widths.items()})
        rows.append((name, _range(study, name), *cells, _interval(interval)))
    return _table(("method", "step sizes", *study.problems, "mean"), rows)


def _range(study: Study, method: str) -> str:
    grid = next((grid for p in study.problems if (grid := study.grid(p, method))), [])
    return f"{grid[0]:.1e} to {grid[-1]:.1e}" if grid else ""


def _diverged(study: Study) -> list[str]:
    rows = []
    for name in _named(study):
        by_problem = {p: study.of(p, name) for p in study.problems}
        if not any(by_problem.values()):
            continue
        cells = [f"{sum(map(diverged, own))} of {len(own)}" for own in by_problem.values()]
        share = bootstrap({p: [float(diverged(run)) for run in own] for p, own in by_problem.items()})
        rows.append((name, *cells, _interval(share)))
    return _table(("method", *study.problems, "share"), rows)


def _errors(study: Study) -> list[str]:
    rows = []
    for name in _named(study):
        for what, step in (("default", study.default_step), ("best", study.best_step)):
            if what == "best" and not any(study.grid(p, name) for p in study.problems):
                continue
            rows.append((name, what, *(_errors_at(study, p, name, step(p, name)) for p in study.problems)))
    return _table(("method", "step size", *study.problems), rows)


def _errors_at(study: Study, problem: str, method: str, step: float | None) -> str:
    errors = study.errors(problem, method, step)
    return f"{_spread(errors)} ({'own' if step is None else f'{step:.2g}'})" if errors else ""


def _spread(errors: Sequence[float]) -> str:
    if not errors:
        return ""
    middle, low, high = (_number(f(errors)) for f in (statistics.median, min, max))
    return f"{middle} [{low}, {high}]"


def _number(x: float, form: str = ".1e") -> str:
    return f"{x:{form}}" if math.isfinite(x) else "∞"


def _rises(study: Study) -> list[str]:
    rows = []
    for name in _named(study):
        cells = []
        for find in (default_run, best_run):
            runs = _runs(study, name, find)
            for curves in ([along(run, "heldout") for run in runs], [returned(run, "heldout") for run in runs]):
                found = [rises(curve) for curve in curves]
                cells.append(_rise(found) if found else "")
        rows.append((name, *cells))
    head = ("default, iterates", "default, returned", "best, iterates", "best, returned")
    return _table(("method", *head), rows)


def _rise(found: Sequence) -> str:
    largest = max(x.largest for x in found)
    return f"{statistics.fmean(x.share for x in found):.2f}, {_number(100 * largest, '.3g')} %"


def _runs(study: Study, method: str, find: Callable[[Study, str, str, int], Run | None]) -> list[Run]:
    found = (find(study, problem, method, seed) for problem in study.problems for seed in study.seeds)
    return [run for run in found if run is not None]


def _timed_words(form: Form) -> str:
    return (
        f"Relative L2 after {form.seconds:g} CPU seconds of one thread without tuning: the default step size, rank and "
        "points of each method. Median over seeds with the smallest and the largest; the last column is the largest "
        "over the smallest error of the seeds, on the problem where that is worst."
    )


def _timed(study: Study) -> list[str]:
    rows = []
    for name in _named(study):
        found = {p: [end_error(run) for run in study.of(p, name, "timed")] for p in study.problems}
        if any(found.values()):
            worst = max(worst_over_best(own) for own in found.values() if own)
            rows.append((name, *(_spread(own) for own in found.values()), _number(worst, ".2g")))
    return _table(("method", *study.problems, "worst over best seed"), rows)


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


def _slices(study: Study) -> list[str]:
    rows = []
    for problem in study.problems:
        for name in SLICED_METHODS:
            found = {label: _sliced(study, problem, name, varied) for label, varied in VARIED}
            if sum(x is not None for x in found.values()) < 2:
                continue
            ranks, starts = (_ratio([found[k] for k in keys]) for keys in (RANKS, STARTS))
            cells = ["" if x is None else _number(x) for x in found.values()]
            rows.append((problem, name, *cells, f"{ranks}, {starts}"))
    return _table(("problem", "method", *(label for label, _ in VARIED), "ranks, starts"), rows)


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


def _shapes(study: Study) -> list[str]:
    rows = []
    for name in _named(study):
        runs = [run for run in _runs(study, name, best_run) if run["peak_condition_a"] is not None]
        if not runs:
            continue
        conditions = [max(run["peak_condition_a"], run["peak_condition_b"]) for run in runs]
        defects = [run["peak_balance"] for run in runs]
        cells = [f"{f(x):.1e}" for x in (conditions, defects) for f in (statistics.median, max)]
        rows.append((name, *cells))
    return _table(("method", "condition", "largest", "balance defect", "largest"), rows)


def _predicted(study: Study) -> list[str]:
    rows = []
    for name in _named(study):
        wide, lost = mean(values(study, CLAIMS[0], name)), [float(diverged(run)) for run in study.all_of(name)]
        cells = (
            f"{WIDTHS[name]:.1f}" if name in WIDTHS else "",
            "" if wide is None else f"{wide:.1f}",
            f"{DIVERGED[name]:.2f}" if name in DIVERGED else "",
            f"{statistics.fmean(lost):.2f}" if lost else "",
        )
        rows.append((name, *cells))
    for what, measure, named in (
        ("default", default_error, BEST_AT_DEFAULT),
        ("best", best_error, BEST_AT_BEST),
    ):
        rows.append((f"smallest error at the {what} step size", named, _winner(study, measure), "", ""))
    head = ("method", "width, predicted", "found", "share diverged, predicted", "found")
    return _table(head, rows)


def _winner(study: Study, measure: Callable[[Study, str, str, int], float | None]) -> str:
    """By problem, the method with the smallest median error."""
    found = []
    for problem in study.problems:
        medians = {name: _median(study, measure, problem, name) for name in _named(study)}
        known = {name: x for name, x in medians.items() if x is not None}
        if known:
            found.append(f"{problem} {min(known, key=known.__getitem__)}")
    return ", ".join(found)

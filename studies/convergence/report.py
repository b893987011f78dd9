"""The page, the kept records and the figure of the study; and the statements on the console."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from convergence.rates import Interval, interval
from convergence.results import Results, diverged, largest_deviation, load, save
from convergence.setups import COLUMNS, FREEDOMS, MEASUREMENTS, RANK, ROWS
from convergence.theory import marchenko_pastur
from convergence.verdicts import CLAIMS, UNTESTABLE, Statement, shown, verdict
from pinn_odelora.runs.style import STYLE

COLOURS = {
    "euler": "#1f5fa8",
    "euler_manifold": "#5b9bd5",
    "rk4": "#2a7f62",
    "rk4_manifold": "#7fc8a9",
    "implicit": "#7b4fa3",
    "implicit_default": "#7b4fa3",
    "lora_gd": "#c0182a",
    "scaled_gd": "#e08214",
}
DASHED = ("euler_manifold", "rk4_manifold")


def console(found: Sequence[Statement]) -> None:
    made = Table(box=box.SIMPLE_HEAD)
    for column in ("claim", "expected", "found", ""):
        made.add_column(column)
    for s in found:
        made.add_row(s.claim, s.said, s.found, "holds" if s.holds else "SHORT")
    Console().print(made)


def write(results: Results, found: Sequence[Statement], facts: dict[str, Any], folder: Path, name: str) -> None:
    """``name``.json; ``name``.md and .png from what it keeps."""
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / f"{name}.json", facts | {"statements": [s._asdict() for s in found]}, results.records)
    kept = Results(load(folder / f"{name}.json")[1])
    (folder / f"{name}.md").write_text(page(kept, found, facts, name), encoding="utf-8")
    figure(kept).savefig(folder / f"{name}.png", dpi=110)


# The page.

OTHERWISE = (
    "We feared that at κ = 1e4 the factor chart would lose its way from far starts. It does not: evaluations to 1e-6 "
    "are about the same for all κ.",
    "Step sizes are swept on other seeds, and λ_d differs from seed to seed. Where the best step on those is near the "
    "stability limit of another, the fastest direction decides and the run is slow, at the rate of theory for that "
    "step, or diverges. That is what is behind both runs of Euler's scheme that miss 1e-6 at exact rank (seed 1, "
    "h λ_d = 1.99), behind most of RK4's, and behind the † of gradient descent.",
    "Gradient descent with a rank too many is not sublinear for ever. Its steps unbalance the factors, "
    "BᵀB − AAᵀ = O(h), and a singular value that is too many then falls in a line, at a rate in proportion to that "
    "imbalance: at h = 0.28 the power of the steps is steeper than −1, at h = 0.07 it is about −1.",
    "ScaledGD without damping was expected to behave as the flow, and does near the target. From far away some of its "
    "runs are lost at the step that was best on the seeds of the sweep.",
    "From tiny starts in sensing RK4 overshoots less than Euler's scheme, but comes back at four gradients a step: few "
    "of its runs are at 1e-6 in time.",
)
"""Of the full form, as of the records that are kept."""


def page(results: Results, found: Sequence[Statement], facts: dict[str, Any], name: str) -> str:
    low, high = marchenko_pastur()
    seeds = ", ".join(map(str, results.values("seed")))
    seconds = sum(facts["seconds"].values())
    parts = [
        "# Linear convergence, and the condition number of the target",
        f"```bash\npython studies/{name}.py{' --quick' if facts['quick'] else ''}\n```",
        "What the source claims is known to us from its abstract only; the claims below are our reading of it, and the "
        f"theory is [our own](../../../studies/convergence/theory.py). Matrices of {ROWS} × {COLUMNS}, targets of rank "
        f"{RANK} with σ_1 = 1 and σ_2 = 1/κ; {MEASUREMENTS} Gaussian measurements for {FREEDOMS} freedoms and "
        f"{ROWS * COLUMNS} entries, or a regression of curvature 10. Seeds {seeds}; step sizes swept on others. ± is "
        "the half width of the 95 % interval over seeds (Student's t); a rate is minus the slope of log error over "
        "steps, on the [linear part](../../../studies/convergence/rates.py). "
        f"CPU time {seconds / 60:.0f} minutes; [all runs]({name}.json).",
        f"![errors and rates]({name}.png)",
        "## Verdicts",
        _verdicts(found),
        *([] if facts["quick"] else ["## What came out otherwise", "\n".join(f"* {x}" for x in OTHERWISE)]),
        "## Expected and found",
        _markdown(
            ["claim", "expected", "found", "holds"],
            [[s.claim, s.said, s.found, "yes" if s.holds else "**no**"] for s in found],
        ),
        "## Rate per step near the target, at the swept step size",
        f"In theory of random matrices λ lies between {low:.2f} and {high:.2f} for sensing. “Theory” is the largest "
        "relative difference of a measured rate from the one that the spectrum of its own problem gives for its step; "
        "† counts runs that diverged: λ_d differs from seed to seed, and the swept step is too large for some. "
        "RK4 costs 4 gradients a step, the implicit scheme (h = 1) a linearisation and two or three residuals.",
        *(_rates(results.where(section="local", problem=p)) for p in results.where(section="local").values("problem")),
        "Steps to a tenth of the error, log 10 over the rate:",
        *(_tenths(results.where(section="local", problem=p)) for p in results.where(section="local").values("problem")),
        "## Rate per unit of flow time",
        _times(results.where(section="time")),
        "## Condition of the objective",
        _curvatures(results.where(section="curvature")),
        "## From far away",
        "Gradient evaluations to a relative error of 1e-6: the median over seeds, and how many of them got there in "
        "400; – where half did not. One step size for all κ, swept at κ = 100. † counts runs whose numbers were lost.",
        *(
            _starts(results.where(section="starts", problem=p))
            for p in results.where(section="starts").values("problem")
        ),
        "## One rank too many, in the long run",
        _excess(results.where(section="excess")),
        "## Ever smaller starts",
        "The largest relative error on the way, and the evaluations to 1e-6 in brackets, medians; κ = 10, h = 0.2.",
        _peaks(results.where(section="peak")),
    ]
    return "\n\n".join(parts) + "\n"


def _verdicts(found: Sequence[Statement]) -> str:
    rows = [[said, verdict(claim, list(found)), conditions] for claim, (said, conditions) in CLAIMS.items()]
    return _markdown(
        ["claim", "verdict", "conditions"], [*rows, *([said, "not testable", why] for said, why in UNTESTABLE)]
    )


def _rates(there: Results) -> str:
    conditions = there.values("condition")
    rows = []
    for name in there.values("contender"):
        cells = [there.where(contender=name, condition=k) for k in conditions]
        p = there.where(contender=name).going.exponent("condition")
        off = largest_deviation(there.where(contender=name).going.ratios())
        rows.append([f"`{name}`", *map(_rate, cells), shown(p), f"{off:.1%}"])
    return _markdown([there.values("problem")[0], *(f"κ = {k:g}" for k in conditions), "exponent of κ", "theory"], rows)


def _rate(cell: Results) -> str:
    lost = sum(map(diverged, cell))
    if not len(cell.going):
        return "– (too few steps)"
    return f"{shown(cell.rate)} (h {cell.values('h')[0]:g})" + (f" †{lost}" if lost else "")


def _tenths(there: Results) -> str:
    conditions = there.values("condition")
    rows = [
        [f"`{name}`", *(_number(_tenth(there.where(contender=name, condition=k))) for k in conditions)]
        for name in there.values("contender")
    ]
    return _markdown([there.values("problem")[0], *(f"κ = {k:g}" for k in conditions)], rows)


def _tenth(cell: Results) -> float | None:
    return math.log(10) / cell.rate.mean if len(cell.going) else None


def _times(there: Results) -> str:
    rows = []
    for problem in there.values("problem"):
        for name in there.where(problem=problem).values("contender"):
            mine = there.where(problem=problem, contender=name)
            conditions = mine.values("condition")
            speeds = [_speed(mine.where(condition=k), lambda r: r["rate"] / r["h"]) for k in conditions]
            theory = _speed(mine.where(condition=conditions[0]), lambda r: r["slowest"])
            p = mine.going.exponent("condition")
            rows.append([problem, f"`{name}`", f"{mine.values('h')[0]:g}", *map(shown, (*speeds, theory, p))])
    header = ["problem", "scheme", "h", *(f"κ = {k:g}" for k in there.values("condition")), "λ_1 at κ = 1", "exponent"]
    return _markdown(header, rows)


def _speed(cell: Results, of: Any) -> Interval:
    return interval([of(r) for r in cell.going])


def _curvatures(there: Results) -> str:
    bent = there.values("curvature")
    rows = []
    for name in there.values("contender"):
        mine = there.where(contender=name)
        theory = mine.exponent("curvature", lambda r: r["predicted"])
        cells = [_rate(mine.where(curvature=c)) for c in bent]
        rows.append([f"`{name}`", *cells, shown(mine.going.exponent("curvature")), shown(theory)])
    return _markdown(["κ = 10", *(f"curvature {c:g}" for c in bent), "exponent", "in theory"], rows)


def _starts(there: Results) -> str:
    cases = [(excess, k) for excess in there.values("excess") for k in there.where(excess=excess).values("condition")]
    rows = []
    for start in there.values("start"):
        for name in there.values("contender"):
            cells = [there.where(start=start, contender=name, excess=excess, condition=k) for excess, k in cases]
            rows.append([start, f"`{name}`", *map(_reached, cells)])
    header = [f"rank {RANK + excess}, κ = {k:g}" for excess, k in cases]
    return _markdown([f"{there.values('problem')[0]}, start", "", *header], rows)


def _reached(cell: Results) -> str:
    middle, got = cell.reached()
    lost = sum(r["failure"] is not None for r in cell)
    return f"{_number(middle)} ({got}/{len(cell)})" + (f" †{lost}" if lost else "")


def _excess(there: Results) -> str:
    rows = []
    for name in there.values("contender"):
        for h in there.where(contender=name).values("h"):
            for k in there.where(contender=name, h=h).values("condition"):
                cell = there.where(contender=name, h=h, condition=k)
                powers = [r["power"] for r in cell if r["power"] is not None]
                last = sorted(r["last"] for r in cell)[len(cell) // 2]
                rate = f"{shown(cell.rate)}" if len(cell.going) else "–"
                least = min((r["explained"] for r in cell.going), default=math.nan)
                count = f"{max(r['evaluations'] for r in cell)}"
                lost = sum(r["failure"] is not None for r in cell)
                power = f"{min(powers):.2f} to {max(powers):.2f}" if name == "lora_gd" else "–"
                facts = [f"{h:g}", f"{k:g}", rate, f"{least:.4f}", power, f"{last:.1e}", count, str(lost)]
                rows.append([f"`{name}`", *facts])
    header = ["", "h", "κ", "rate per step", "least R²", "power of steps", "error at the end", "evaluations", "lost"]
    return _markdown(header, rows)


def _peaks(there: Results) -> str:
    sizes = there.values("start")
    rows = []
    for name in there.values("contender"):
        mine = there.where(contender=name)
        small = Results(r for r in mine if r["start"] <= 1e-2)
        cells = [mine.where(start=c) for c in sizes]
        peaks = [f"{sorted(r['peak'] for r in c)[len(c) // 2]:.2g} ({_number(c.reached()[0])})" for c in cells]
        rows.append([f"`{name}`", *peaks, shown(small.exponent("start", lambda r: r["peak"]))])
    return _markdown(["", *(f"c = {c:g}" for c in sizes), "exponent of c ≤ 0.01"], rows)


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:,.0f}"


def _markdown(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    header = [*header]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# The figure.


def figure(results: Results) -> Figure:
    with mpl.rc_context(STYLE):
        made = Figure(figsize=(9, 6))
        grid = made.subplots(2, 2)
        problem = results.where(section="local").values("problem")[0]
        _condition_panel(grid[0, 0], results.where(section="local", problem=problem))
        _curve_panel(
            grid[0, 1],
            results.where(section="local", problem=problem, contender=("euler", "lora_gd")),
            "near the target",
        )
        _excess_panel(grid[1, 0], results.where(section="excess"))
        _start_panel(grid[1, 1], results.where(section="starts", start="tiny", excess=0))
        made.canvas.draw()
    return made


def _condition_panel(axes: Axes, there: Results) -> None:
    for name in there.values("contender"):
        cells = [there.where(contender=name, condition=k) for k in there.values("condition")]
        cells = [cell for cell in cells if len(cell.going)]
        x, rates = [cell.values("condition")[0] for cell in cells], [cell.rate for cell in cells]
        half = [[min(r.half, 0.9 * r.mean) for r in rates], [r.half for r in rates]]
        style = {"color": COLOURS[name], "ls": "--" if name in DASHED else "-", "label": name}
        axes.errorbar(x, [r.mean for r in rates], half, marker=".", capsize=2, **style)
    axes.set(xscale="log", yscale="log", xlabel="κ", ylabel="rate per step", title="Rate against condition, sensing")
    axes.legend(fontsize=6.5)


def _curve_panel(axes: Axes, there: Results, title: str) -> None:
    for r in there:
        if "curve" in r:
            shade = 1 - 0.15 * math.log10(r["condition"])
            n, e = zip(*r["curve"], strict=True)
            axes.plot(n, [x / e[0] for x in e], color=COLOURS[r["contender"]], alpha=shade, label=r["contender"])
    axes.set(yscale="log", xlim=(0, 300), xlabel="gradient evaluations", ylabel="error / first error")
    axes.set_title(f"Error from {title}, κ = 1 to 10⁴ (lighter)")
    _legend(axes)


def _excess_panel(axes: Axes, there: Results) -> None:
    for r in there:
        if "curve" in r:
            n, e = zip(*[(n + 1, e) for n, e in r["curve"]], strict=True)
            axes.plot(n, e, color=COLOURS[r["contender"]], label=f"{r['contender']}, h = {r['h']:g}")
    axes.set(xscale="log", yscale="log", xlabel="gradient evaluations", ylabel="relative error")
    axes.set_title("One rank too many, κ = 1")
    _legend(axes)


def _start_panel(axes: Axes, there: Results) -> None:
    for r in there.where(problem=there.values("problem")[0]):
        if "curve" in r and r["failure"] is None:
            n, e = zip(*r["curve"], strict=True)
            style = "--" if r["contender"] in DASHED else "-"
            axes.plot(n, e, color=COLOURS[r["contender"]], ls=style, label=r["contender"])
    axes.set(
        yscale="log", xlabel="gradient evaluations", ylabel="relative error", title="From a start of 1e-6, κ = 100"
    )
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Each name once."""
    handles, labels = axes.get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))
    axes.legend([*kept.values()], [*kept], fontsize=6.5)

"""The study as a page, ``feature_learning.md``, and a figure, ``feature_learning.png``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from features.contenders import CONTENDERS, SWEPT
from features.network import PARAMETRISATIONS, POINTS, RANK, SIZE
from features.plan import SIZE_WIDTH, SIZES, Form, Row
from features.predictions import predicted
from features.slopes import FLAT, LOST, SLACK, Slope
from features.verdict import Cell, Transfer, cells, claims, sizes, transfers
from pinn_odelora.runs.style import STYLE

PAGE, PICTURE, RAW = "feature_learning.md", "feature_learning.png", "feature_learning.json"
COLOURS = {
    "odelora": "#d62728",
    "lora_gd": "#1f77b4",
    "lora_plus": "#2ca02c",
    "lora_plus_n": "#8c564b",
    "lora_adam": "#ff7f0e",
    "factor_muon": "#9467bd",
}


class Results:
    """Everything that follows from the rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self.cells = cells(rows)
        self.transfers = transfers(self.rows)
        self.sizes = sizes(rows)
        self.claims = claims(self.cells, self.transfers, self.sizes)

    def of(self, kind: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.kind == kind]


def write(results: Results, form: Form, command: str, seconds: float, versions: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(page(results, form, command, seconds, versions), encoding="utf-8")
    with mpl.rc_context(STYLE):
        picture(results.rows).savefig(folder / PICTURE, dpi=110)


def page(results: Results, form: Form, command: str, seconds: float, versions: str) -> str:
    """``page.md`` with its tables."""
    together = [*results.cells, *results.transfers]
    return (
        Path(__file__)
        .with_name("page.md")
        .read_text(encoding="utf-8")
        .format(
            command=command,
            minutes=f"{seconds / 60:.0f} minutes",
            versions=versions,
            raw=RAW,
            picture=PICTURE,
            rank=RANK,
            points=POINTS,
            size=SIZE,
            widths=_listed(form.widths),
            last=f"{form.widths[-1]:,}",
            seeds=len(form.seeds),
            working=len(form.working),
            flow=len(form.flow),
            sweep=_listed(form.sweep),
            k=form.marks[-1],
            flat=FLAT,
            slack=SLACK,
            lost=f"{LOST:.0%}",
            pissa=form.pissa,
            claims=_table(("claim", "conditions", "found", "verdict"), results.claims),
            number=len(together),
            agreeing=sum(x.agrees for x in together),
            surprises=_surprises(results),
            small_table=_exponent_table([cell for cell in results.of("small") if cell.mark == 1], "steps"),
            few=max(c.mark for c in results.of("small")),
            apart=f"{_apart(results.of('small')):.2g}",
            working_table=_exponent_table(results.of("working"), "steps"),
            flow_table=_exponent_table(results.of("flow"), "time"),
            transfer_table=_transfer_table(results.transfers, form),
            size_width=SIZE_WIDTH,
            sizes=_listed(SIZES),
            size_table=_size_table(results),
        )
    )


def _apart(found: Sequence[Cell]) -> float:
    """The largest difference between the exponents of one step and those of several."""
    first = {(c.method, c.start, c.parametrisation): c for c in found if c.mark == 1}
    pairs = [(c, first[c.method, c.start, c.parametrisation]) for c in found]
    return max(max(abs(a.features.value - b.features.value), abs(a.outputs.value - b.outputs.value)) for a, b in pairs)


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{x:,g}" if x < 1 else f"{x:,}" for x in numbers)


def _size_table(results: Results) -> str:
    rows = [
        (CONTENDERS[name].label, f"{guess:g}", _shown(a), _shown(b)) for name, (a, b, guess) in results.sizes.items()
    ]
    return _table(("method", "predicted", "features", "outputs"), rows)


def _surprises(results: Results) -> str:
    """Every cell and step size that is not as predicted."""
    rows = [
        (
            CONTENDERS[x.method].label,
            f"{x.parametrisation}, {x.start}",
            f"{x.kind}, {'time' if x.kind == 'flow' else 'steps'} {x.mark:g}",
            f"{_range(x.expected[0])}; {_range(x.expected[1])}",
            f"{_shown(x.features)}; {_shown(x.outputs)}",
        )
        for x in results.cells
        if not x.agrees
    ]
    rows += [
        (
            CONTENDERS[x.method].label,
            f"{x.parametrisation}, {x.start}",
            "best step",
            f"{x.expected:+g}",
            _shown(x.exponent),
        )
        for x in results.transfers
        if not x.agrees
    ]
    return _table(("method", "condition", "of", "predicted", "found"), rows)


def _exponent_table(found: Sequence[Cell], mark: str) -> str:
    order = list(CONTENDERS)
    starts = {name: contender.starts for name, contender in CONTENDERS.items()}
    ranked = sorted(
        found,
        key=lambda c: (
            PARAMETRISATIONS.index(c.parametrisation),
            order.index(c.method),
            starts[c.method].index(c.start),
            c.mark,
        ),
    )
    head = ("parametrisation", "method", "start", mark, "features: predicted", "found", "outputs: predicted", "found")
    rows = [
        (
            *(cell.parametrisation, CONTENDERS[cell.method].label, cell.start, f"{cell.mark:g}"),
            *(_range(cell.expected[0]), _shown(cell.features), _range(cell.expected[1]), _shown(cell.outputs)),
            *(f"{cell.lost:.0%}", WORDS[cell.state]),
        )
        for cell in ranked
    ]
    return _table((*head, "failed", "width"), rows)


WORDS = {"stable": "does not matter", "depends": "matters", "unstable": "too large a step", "open": "open"}


def _transfer_table(found: Sequence[Transfer], form: Form) -> str:
    head = (
        "parametrisation",
        "method",
        "start",
        "predicted",
        "found",
        "at 64",
        f"at {form.widths[-1]:,}",
        "penalty",
        "width",
    )
    rows = [
        (
            *(x.parametrisation, CONTENDERS[x.method].label, x.start, f"{x.expected:+g}", _shown(x.exponent)),
            *(f"{x.first:.2g}", f"{x.last:.2g}", f"{x.penalty:.3g}", WORDS[x.state]),
        )
        for x in sorted(found, key=lambda x: PARAMETRISATIONS.index(x.parametrisation))
    ]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    line = lambda cells: f"| {' | '.join(cells)} |"
    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])


def _range(expected: tuple[float, float]) -> str:
    low, high = expected
    return f"{low:+g}" if low == high else f"{low:+g} to {high:+g}"


def _shown(found: Slope) -> str:
    return "–" if math.isnan(found.value) else f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


# The figure.


def picture(rows: Sequence[Row]) -> Figure:
    """Changes by a small step over those at the smallest width, and best step sizes; dotted: the predicted slopes."""
    figure = Figure(figsize=(9.0, 5.2))
    panels = figure.subplots(2, 3, sharex=True)
    drawn: dict[str, Any] = {}
    for axes_row, parametrisation in zip(panels, PARAMETRISATIONS, strict=True):
        for axes, quantity in zip(axes_row, ("features", "outputs", "step"), strict=True):
            title = "best step size" if quantity == "step" else f"change of {quantity}, one small step"
            axes.set(title=f"{title}, {parametrisation}", xscale="log", yscale="log")
            for method, start in SWEPT:
                _draw(axes, rows, method, start, parametrisation, quantity, drawn)
    for axes in panels[-1]:
        axes.set_xlabel("width")
    for axes_row in panels:
        axes_row[0].set_ylabel("over that at width 64")
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=4)
    return figure


def _draw(
    axes: Axes,
    rows: Sequence[Row],
    method: str,
    start: str,
    parametrisation: str,
    quantity: str,
    drawn: dict[str, Any],
) -> None:
    kind, key = ("sweep", "eta") if quantity == "step" else ("small", quantity)
    of = [r for r in rows if (r["kind"], r["method"], r["start"]) == (kind, method, start)]
    of = [r for r in of if r["parametrisation"] == parametrisation and (kind == "sweep" or r["k"] == 1)]
    widths = sorted({r["width"] for r in of})
    middle = [statistics.geometric_mean([r[key] for r in of if r["width"] == n]) for n in widths]
    colour, dashed = COLOURS[method], "--" if start == "aligned" else "-"
    label = CONTENDERS[method].label + (", aligned" if start == "aligned" else "")
    drawn[label] = axes.plot(widths, [y / middle[0] for y in middle], dashed, color=colour, marker=".")[0]
    guess = predicted(method, start, parametrisation)
    exponent = guess.step if quantity == "step" else getattr(guess.first, quantity)
    axes.plot(widths, [(n / widths[0]) ** exponent for n in widths], ":", color=colour, lw=0.8)

"""Runs as one page of HTML: ``page.html`` with the data of the runs and Plotly's script in it, and nothing else.

Curves and maps share a fixed number of bytes: the more runs there are, the fewer rows and cells each has. 200 runs take
about 9 MB, of which Plotly's script is 4.8.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pinn_odelora.dashboards.collect import Shown
from pinn_odelora.dashboards.curves import encoded, rows_each, thinned
from pinn_odelora.dashboards.maps import Maps, cells_each
from pinn_odelora.document import Document, embedded
from pinn_odelora.errors import InputError

TEMPLATE = Path(__file__).with_name("page.html")
FIGURES = (
    *("rel_l2", "rel_l2_before", "error_estimate", "heldout_loss"),
    *("loss_rises", "largest_rise", "gradient_evals", "seconds"),
)
"""Of the summary."""


class RunsPage(Document):
    """A page of runs.

    Attributes:
        runs: how many it shows.
        notes: a sentence for each run that was left out, or has no map.
    """

    title = "Runs"

    def __init__(self, content: str, runs: int, notes: Sequence[str]) -> None:
        super().__init__(content)
        self.runs, self.notes = runs, list(notes)

    def __repr__(self) -> str:
        return f"<page of {self.runs} runs, {self.size / 1e6:.1f} MB>"


def page(runs: Sequence[Shown], notes: Sequence[str]) -> RunsPage:
    """The page of some runs, with what is to be said about others.

    Raises:
        InputError: if Plotly is not installed.
    """
    script = plotly()
    maps, most = Maps(cells_each(len(runs) + len({_problem(run) for run in runs}))), rows_each(len(runs))
    shown = [_run(run, maps, most) for run in runs]
    _keep_what_differs(shown)
    lost = [f"{x['name']} has no map: {x['why']}." for x in shown if x["why"] and x["state"] != "unfinished"]
    data = {
        "title": _title(runs),
        "about": f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}.",
        "notes": list(notes),
        "runs": shown,
        "grids": maps.described(),
    }
    # In this order: the text of a run could hold a mark of the template.
    before, _, after = TEMPLATE.read_text(encoding="utf-8").partition("{{data}}")
    head, _, rest = after.partition("{{plotly}}")
    content = before.replace("{{title}}", html.escape(data["title"])) + embedded(data) + head + script + rest
    return RunsPage(content, len(runs), [*notes, *lost])


def plotly() -> str:
    """The text of plotly.js.

    Raises:
        InputError: if Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise InputError("A page of runs needs plotly: pip install 'pinn-odelora[dashboard]'.") from None
    return get_plotlyjs()


def _run(run: Shown, maps: Maps, most: int) -> dict[str, Any]:
    size, is_set = run.step_size()
    rows = thinned(run.rows, most)
    found, why = _map(run, maps)
    return {
        "name": run.name,
        **run.about,
        "state": run.state,
        "size": size,
        "size_set": is_set,
        **{name: run.value(name) for name in FIGURES},
        "settings": dict(run.settings),
        "rows": len(rows),
        "curves": encoded(rows),
        "map": found,
        "why": why,
    }


def _problem(run: Shown) -> tuple[str, ...]:
    """Its name and its parameters, which decide on the reference."""
    return run.about["problem"], *(f"{k}={x}" for k, x in run.settings.items() if k.startswith("problem."))


def _map(run: Shown, maps: Maps) -> tuple[dict[str, Any] | None, str]:
    """The map of a run, or why it has none."""
    if not run.finished:
        return None, "it has not ended"
    try:
        return maps.of(run.solution()), ""
    except InputError as refused:
        return None, str(refused).rstrip(".")
    except Exception as error:  # A network or reference of somebody else can fail in any way.
        return None, f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")


def _keep_what_differs(shown: Sequence[dict[str, Any]]) -> None:
    """Drop settings in which all runs of a problem agree, and those that name what the table names anyway."""
    for problem in {run["problem"] for run in shown}:
        own = [run for run in shown if run["problem"] == problem]
        keys = {key for run in own for key in run["settings"]}
        differ = {key for key in keys if len({run["settings"].get(key) for run in own}) > 1 and "_target_" not in key}
        for run in own:
            run["settings"] = {key: x for key, x in run["settings"].items() if key in differ}


def _title(runs: Sequence[Shown]) -> str:
    problems = sorted({run.about["problem"] for run in runs})
    return ", ".join(problems) if len(problems) <= 4 else f"{len(problems)} problems"

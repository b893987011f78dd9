"""The page of runs: what it holds is what the runs say, and a browser without a window can use it."""

import base64
import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
import yaml
from browser import PROGRAM, browser
from test_page import Reader, Wave3

import pinn_odelora as po
from pinn_odelora.__main__ import main
from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.dashboards import page as pages
from pinn_odelora.dashboards.collect import Shown, collected, of_folder
from pinn_odelora.dashboards.curves import encoded, rows_each, thinned
from pinn_odelora.dashboards.maps import Maps, cells_each, grid
from pinn_odelora.errors import InputError
from pinn_odelora.runs.history import History
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay
from problems.matrix_sensing import MatrixSensing

pytest.importorskip("plotly")

PROBLEM = Burgers(nu=0.03)


class Nearly:
    """The reference of a problem, wrong by a known function."""

    def __init__(self, problem, size):
        self.problem, self.size = problem, size

    def __call__(self, *coordinates):
        columns = torch.broadcast_tensors(*(torch.as_tensor(c, dtype=torch.float64) for c in coordinates))
        p = po.Points({name: c.reshape(-1, 1) for name, c in zip(self.problem.coords, columns, strict=True)})
        wrong = self.size * torch.sin(3 * p[self.problem.coords[0]])
        return (self.problem.reference(p) + wrong).numpy().squeeze(-1 if len(self.problem.fields) == 1 else ())


def rows_of(n, decay=0.9):
    return [
        {
            "step": float(k),
            "cost/gradient_evals": 2.0 * k,
            "cost/seconds": 0.01 * k,
            "loss": decay**k * (50 if k == n // 3 else 1),
            "error/rel_l2": 0.1 * decay**k,
            "stability/heldout_loss": decay**k,
            "stability/iterate_loss": decay**k * (50 if k == n // 3 else 1),
            "lora/balance": 1e-9 * (k + 1),
            "lora/cond_A": 10.0 + k,
            "lora/cond_B": 5.0,
            "integrator/h": 0.25,
        }
        for k in range(n)
    ]


def run(name="a", method="odelora", rows=None, problem=PROBLEM, size=1e-3, **more):
    about = {"problem": "burgers", "method": method, "integrator": "euler", "seed": 0} | more.pop("about", {})
    summary = {"rel_l2": 0.01, "loss_rises": 0.1, "largest_rise": 0.5, "diverged": False, "failure": ""}
    summary |= {"gradient_evals": 60, "seconds": 0.3} | more.pop("summary", {})
    rows = rows_of(31) if rows is None else rows
    settings = more.pop("settings", {"lora.rank": "4"})
    return Shown(name, about, settings, summary, rows, bool(summary), lambda: Nearly(problem, size))


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.S)[1])


def floats(text):
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def levels(packed):
    q = np.frombuffer(base64.b64decode(packed["levels"]), dtype="<u2").astype(float)
    return packed["low"] + q / 65534 * (packed["high"] - packed["low"])


# --- What the page holds ---------------------------------------------------------------------------------------------


def test_the_page_holds_curves_and_figures_and_the_settings_that_differ():
    one, two = run("one"), run("two", "lora_adam", settings={"lora.rank": "8", "method.lr": "0.01", "seed": "0"})
    data = data_of(pages.page([one, two], ["A note."]))
    first, second = data["runs"]
    assert floats(first["curves"]["rel_l2"]) == pytest.approx([0.1 * 0.9**k for k in range(31)])
    assert floats(first["curves"]["evals"]).tolist() == [2.0 * k for k in range(31)]
    assert (first["rel_l2"], first["state"], first["rows"]) == (0.01, "finished", 31)
    assert first["settings"] == {"lora.rank": "4"}
    assert second["settings"] == {"lora.rank": "8", "method.lr": "0.01", "seed": "0"}
    assert (first["size"], first["size_set"]) == (0.25, False)
    assert (second["size"], second["size_set"]) == (0.01, True)
    assert data["notes"] == ["A note."]


def test_a_map_has_the_error_to_within_its_quantisation_and_problems_share_their_reference():
    data = data_of(pages.page([run("a", size=1e-3), run("b", size=1e-6)], []))
    (one,) = data["grids"]
    t, x = one["across"], one["up"]
    assert (t["name"], x["name"], one["slides"]) == ("t", "x", "across")
    cell = lambda c: c["low"] + (c["high"] - c["low"]) * (np.arange(c["cells"]) + 0.5) / c["cells"]
    exact = np.sin(3 * cell(x))[:, None] * np.ones(t["cells"])
    for shown, size in zip(data["runs"], (1e-3, 1e-6), strict=True):
        error = levels(shown["map"]["fields"][0]).reshape(x["cells"], t["cells"])
        assert np.abs(error - size * exact).max() < 2e-5 * size
    p = po.Points({"x": torch.tensor(cell(x)[7]).reshape(1, 1), "t": torch.tensor(cell(t)[40]).reshape(1, 1)})
    reference = levels(one["reference"][0]).reshape(x["cells"], t["cells"])
    assert reference[7, 40] == pytest.approx(PROBLEM.reference(p).item(), abs=3e-5)


def test_grids_of_one_two_and_three_coordinates_of_systems_and_of_matrices():
    flow = grid(Kovasznay(), 900)
    assert (flow.about["across"]["name"], flow.about["up"]["name"], flow.about["slides"]) == ("x", "y", "up")
    assert flow.reference.shape == (900, 3)
    three = grid(Wave3(), 1000)
    assert [three.about[k]["name"] for k in ("across", "up", "through")] == ["x", "y", "t"]
    assert [three.about[k]["cells"] for k in ("across", "up", "through")] == [10, 10, 10]
    t = three.points["t"].reshape(10, 10, 10)
    assert (t == t[:, :1, :1]).all()
    assert (three.points["x"].reshape(10, 10, 10).diff(dim=2) > 0).all()
    matrix = grid(MatrixSensing(), 10)
    assert matrix.about["down"]
    assert len(matrix.reference) == matrix.about["across"]["cells"] * matrix.about["up"]["cells"]
    maps = Maps(3000)
    shown = maps.of(Nearly(Kovasznay(), 1e-2))
    assert len(shown["fields"]) == len(maps.described()[0]["reference"]) == 3

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Scattered(Wave3):
        region = po.Cloud(po.Points(x=torch.zeros(1, 1), y=torch.zeros(1, 1), t=torch.zeros(1, 1)))

    with pytest.raises(InputError, match="its region is no box"):
        grid(Scattered(), 100)


def test_thinning_keeps_the_ends_and_every_peak():
    rows = rows_of(1000, decay=0.999)
    kept = thinned(rows, 40)
    assert len(kept) <= 40
    assert (kept[0], kept[-1]) == (rows[0], rows[-1])
    assert max(r["loss"] for r in kept) == max(r["loss"] for r in rows)
    assert [r["step"] for r in kept] == sorted(r["step"] for r in kept)
    assert thinned(rows[:40], 40) == rows[:40]
    broken = [*rows[:500], {"step": 500.0, "loss": math.nan}, *rows[501:]]
    assert any(math.isnan(r["loss"]) for r in thinned(broken, 40)), "numbers that failed stay visible"
    assert encoded([{"step": 1.0, "loss": math.nan}]).keys() == {"step"}


@pytest.mark.parametrize("n", [1, 50, 200, 1000])
def test_curves_and_maps_have_a_bounded_size(n):
    assert rows_each(n) * 40 * n < max(1_500_000, 700 * n)
    assert cells_each(n) * 2 * n < max(1_700_000, 900 * n)


def test_words_of_a_run_cannot_become_elements_of_the_page():
    made = pages.page([run("</script><b>{{plotly}}")], [])
    assert data_of(made)["runs"][0]["name"] == "</script><b>{{plotly}}"
    text = made.html.replace(pages.plotly(), "")
    assert text.count("</script>") == 3
    assert "<b>" not in text
    assert Reader(text).text["title"] == "burgers"
    assert not re.search(r"https?:|src=|@import", text)
    assert made.size < 6_000_000


# --- Where runs come from --------------------------------------------------------------------------------------------


def folder_of(path, method="odelora", rows=5, summary=True, **config):
    path.mkdir(parents=True)
    known = {"problem": {"nu": 0.02}, "method": {"lr": 0.1}, "integrator": {}, "output_dir": None, "seed": 3}
    choices = {"problem": "burgers", "method": method, "integrator": None}
    (path / "config.yaml").write_text(yaml.safe_dump({**known, "choices": choices, **config}))
    history = History(path / "history.csv")
    for row in rows_of(rows):
        history.append(row)
    if summary:
        (path / "summary.json").write_text(json.dumps({**choices, "rel_l2": 0.5, "diverged": True, "seconds": 1.5}))
    return path


def test_runs_are_found_below_folders_and_what_cannot_be_shown_is_said_in_a_sentence(tmp_path):
    folder_of(tmp_path / "sweep/0")
    folder_of(tmp_path / "sweep/1", method="lora_adam", summary=False)
    (folder_of(tmp_path / "sweep/2") / "summary.json").write_text("{")
    (folder_of(tmp_path / "sweep/3") / "history.csv").write_text("step\nhigh\n")
    (folder_of(tmp_path / "sweep/4") / "family.safetensors").write_text("")
    runs, said = collected([tmp_path / "sweep", tmp_path / "nothing"])
    assert [(r.name, r.about["method"], r.state, r.about["seed"]) for r in runs] == [
        ("0", "odelora", "diverged", 3),
        ("1", "lora_adam", "unfinished", 3),
    ]
    assert runs[0].step_size() == (0.1, True)
    assert runs[1].value("rel_l2") == pytest.approx(0.1 * 0.9**4)
    assert "seed" not in runs[0].settings
    assert said == [
        f"Left out: {tmp_path}/sweep/2 holds a damaged run (JSONDecodeError).",
        f"Left out: Line 2 of {tmp_path}/sweep/3/history.csv is not a row of the history; the file holds numbers only.",
        f"{tmp_path}/sweep/4 holds a family and is left out: python -m pinn_odelora family {tmp_path}/sweep/4 --page.",
        f"{tmp_path}/nothing is no folder.",
    ]


def test_runs_of_several_folders_have_different_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("one/0", "two/0", "three"):
        folder_of(tmp_path / path)
    names = lambda *where: [run.name for run in collected(where)[0]]
    assert names("one", "two") == ["one/0", "two/0"]
    assert names("one", tmp_path / "three") == ["one/0", "three"]
    assert names("one") == ["0"]
    folder_of(tmp_path / "three/inner")
    assert names("three") == ["three", "three/inner"]


def test_a_seed_that_is_no_number_is_a_damaged_run(tmp_path):
    with pytest.raises(InputError, match="holds a damaged run"):
        of_folder(folder_of(tmp_path / "a", seed="x"))


def test_a_step_size_that_is_infinite_is_none(tmp_path):
    rows = [{**row, "integrator/h": math.inf} for row in rows_of(3)]
    assert run(rows=rows).step_size() == (None, False)
    data_of(pages.page([run(rows=rows)], []))


def test_an_integrators_step_size_counts_only_where_it_is_used(tmp_path):
    shown = of_folder(folder_of(tmp_path / "a", integrator={"h": 7.0}))
    assert shown.step_size() == (0.1, True)
    used = Shown(**{**vars(shown), "about": {**shown.about, "integrator": "euler"}})
    assert used.step_size() == (7.0, True)


def test_invalid_input_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"There is no run to show\. .*empty holds no run: there is no config\.yaml"):
        po.dashboard(tmp_path / "empty")
    with pytest.raises(InputError, match="shows results and folders of runs, but int is neither"):
        po.dashboard([1])
    with pytest.raises(InputError, match="values are those of the parameters of a family"):
        po.dashboard(tmp_path, values=3)
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(InputError, match=r"needs plotly: pip install 'pinn-odelora\[dashboard\]'"):
        po.dashboard(folder_of(tmp_path / "run"))


@pytest.fixture(scope="module")
def results():
    net = po.MLP(2, 1, width=8, depth=2, generator=torch.Generator().manual_seed(0)).double()
    budget = po.Budget(steps=6)
    methods = (po.methods.odelora(po.LinearlyImplicit()), po.methods.lora_adam(lr=0.01))
    return [po.adapt(net, PROBLEM, rank=2, method=method, budget=budget, log=po.Log(every=1)) for method in methods]


def test_results_and_their_folders_give_the_same_page(results, tmp_path):
    result = results[0]
    made = data_of(po.dashboard(result))
    result.save(tmp_path / "run")
    shown = po.dashboard(tmp_path, tmp_path / "page.html")
    assert (shown.runs, shown.notes) == (1, [])
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == shown.html
    saved = data_of(shown)
    (a,), (b,) = made["runs"], saved["runs"]
    assert {k: v for k, v in a.items() if k not in ("name", "map")} == {
        k: v for k, v in b.items() if k not in ("name", "map")
    }
    assert np.abs(levels(a["map"]["fields"][0]) - levels(b["map"]["fields"][0])).max() < 1e-4
    assert repr(shown).startswith("<page of 1 runs, ")
    assert isinstance(result.solution, AdaptedSolution)


def test_the_command_writes_the_page_and_says_what_it_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "runs/a")
    (folder_of(tmp_path / "runs/b") / "summary.json").write_text("")
    assert main(["dashboard", "runs", "-o", "page.html"]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"page\.html: 1 run, \d\.\d MB\n", out)
    first, second = err.splitlines()
    assert first == "Left out: runs/b holds a damaged run (JSONDecodeError)."
    assert second.startswith("a has no map: ")
    assert main(["dashboard", "elsewhere"]) == 2
    assert capsys.readouterr().err == "There is no run to show. elsewhere is no folder.\n"


# --- In a browser ----------------------------------------------------------------------------------------------------

SIZES = (1e-3, 1e-2, 1e-1)


@pytest.fixture(scope="module")
def sight(tmp_path_factory):
    """A page of nine runs, a browser that shows it, and the file."""
    if PROGRAM is None:
        pytest.skip("there is no Chromium on this machine")
    runs = [
        run(
            f"{method}/{k}",
            method,
            rows=rows_of(60, 0.9 - 0.05 * k),
            size=10.0 ** (-2 - k),
            settings={"method.lr": str(h)},
            summary={"rel_l2": 10.0 ** (-1 - k), "diverged": method == "lora_adam" and k == 2},
            about={"problem": "burgers", "integrator": None, "seed": k},
        )
        for method in ("odelora", "lora_adam", "full_adam")
        for k, h in enumerate(SIZES)
    ]
    folder = tmp_path_factory.mktemp("browser")
    pages.page(runs, []).save(folder / "page.html")
    with browser(folder / "profile") as shown:
        yield shown, folder / "page.html"


@pytest.fixture
def opened(sight):
    shown, file = sight
    shown.open(file, height=6000)  # all of it is near the window, hence drawn
    return shown


def boxes(shown):
    return shown.run("[...document.querySelectorAll('#body th')].map(cell => cell.textContent)")


def test_a_browser_opens_it_without_an_error_and_without_the_network(opened):
    assert opened.said == []
    assert all(address.startswith(("file:", "data:")) for address in opened.asked)
    assert opened.run("document.querySelectorAll('.plot .main-svg').length") >= 2 * (5 + 3 * 3)
    assert len(boxes(opened)) == 9


def test_filters_filter_the_table_and_the_plots(opened):
    lines = "document.querySelectorAll('#plot-error .scatterlayer .trace').length"
    before = opened.run(lines)
    opened.fill("method", "lora_adam")
    assert boxes(opened) == ["lora_adam/2", "lora_adam/1", "lora_adam/0"]
    assert opened.run(lines) < before
    opened.fill("text", "lr=0.01", "input")
    assert boxes(opened) == ["lora_adam/1"]
    assert opened.run("document.getElementById('count').textContent") == "1 of 9 runs"


def test_a_heading_sorts_both_ways(opened):
    click = "document.querySelector('#heads [data-key=size]').click()"
    sizes = "data.runs && [...document.querySelectorAll('#body tr')].map(r => parseFloat(r.children[5].textContent))"
    opened.run(click)
    assert opened.run(sizes) == sorted(opened.run(sizes))
    opened.run(click)
    assert opened.run(sizes) == sorted(opened.run(sizes), reverse=True)
    assert opened.run("document.querySelector('#heads [data-key=size]').closest('th').ariaSort") == "descending"
    assert opened.run("document.activeElement.dataset.key") == "size"


def test_the_slider_moves_the_cut_and_the_value_beside_it(opened):
    cut = "document.querySelector('[id^=cut-]').data.at(-1).y.slice(0, 50)"
    before, said = opened.run(cut), opened.run("document.getElementById('slider-value').textContent")
    opened.fill("slider", "3", "input")
    assert opened.run(cut) != before
    assert opened.run("document.getElementById('slider-value').textContent") != said
    assert opened.run("document.querySelector('[id^=solution-]').layout.shapes.length") == 1


def test_chosen_runs_stand_side_by_side_at_most_four(opened):
    opened.run("document.getElementById('none').click()")
    assert opened.run("document.querySelectorAll('#sides > div').length") == 0
    for k in range(5):
        opened.run(f"document.querySelectorAll('#body input')[{k}].click()")
    assert opened.run("document.querySelectorAll('#sides > div').length") == 4
    assert opened.run("document.querySelectorAll('#body tr.chosen').length") == 4
    assert "method.lr" in opened.run("document.getElementById('figures').textContent")
    assert opened.said == []


def test_the_stability_picture_has_every_run_and_a_cross_for_a_diverged_one(opened):
    points = opened.run(
        "document.getElementById('plot-stability').data.filter(t => t.mode === 'markers')"
        ".map(t => [t.name, [...t.x], [...t.marker.symbol]])"
    )
    assert [name for name, *_ in points] == ["full_adam", "lora_adam", "odelora"]
    assert points[0][1:] == [list(SIZES), ["circle"] * 3]
    assert points[1][2] == ["circle", "circle", "x"]


def test_a_run_without_an_error_is_not_shown_as_a_diverged_one(sight, tmp_path):
    rows = [{name: x for name, x in row.items() if name != "error/rel_l2"} for row in rows_of(5)]
    unknown = run("unknown", rows=rows, settings={"method.lr": "0.1"}, summary={"rel_l2": None})
    lost = run("lost", rows=rows, settings={"method.lr": "0.2"}, summary={"rel_l2": None, "diverged": True})
    pages.page([unknown, lost], []).save(tmp_path / "page.html")
    sight[0].open(tmp_path / "page.html", height=6000)
    found = sight[0].run("document.getElementById('plot-stability').data.map(t => [[...t.text], [...t.customdata]])")
    assert found == [[["lost"], ["diverged"]]]
    assert sight[0].said == []


def test_the_axis_can_be_seconds(opened):
    opened.fill("axis", "seconds")
    x = opened.run("Math.max(...document.getElementById('plot-error').data.flatMap(t => [...t.x]))")
    assert x == pytest.approx(0.59, rel=1e-5)
    assert "seconds" in opened.run("document.querySelector('#plot-error .xtitle').textContent")


def test_the_keyboard_reaches_every_control_and_moves_the_slider(opened):
    seen, here = set(), "document.activeElement"
    for _ in range(60):
        opened.press("Tab", 9)
        seen.add(opened.run(f"{here}.id || {here}.dataset.key || {here}.dataset.run"))
    ids = {"theme", "problem", "method", "text", "runs", "none", "axis", "log-x", "log-y", "loss", "slider"}
    assert ids | {"name", "rel_l2", "0", "8"} <= seen
    opened.run("document.getElementById('slider').focus()")
    before = opened.run("document.getElementById('slider-value').textContent")
    opened.press("ArrowRight", 39)
    assert opened.run("document.getElementById('slider-value').textContent") != before


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_width_scrolls_sideways(sight, width):
    shown, file = sight
    shown.open(file, width=width, height=9000)
    assert shown.run("document.documentElement.scrollWidth") <= width
    assert shown.said == []


def test_dark_follows_the_system_and_the_switch(sight):
    shown, file = sight
    paper = "getComputedStyle(document.body).backgroundColor"
    shown.open(file, height=6000, dark=True)
    assert shown.run(paper) == "rgb(21, 23, 26)"
    assert shown.run("document.getElementById('plot-error').layout.font.color") == "#e6e7e9"
    shown.fill("theme", "light")
    assert shown.run(paper) == "rgb(252, 252, 251)"
    assert shown.run("document.getElementById('plot-error').layout.font.color") == "#1c1e21"

"""The page with a slider: one file that holds the answers to within their quantisation, and nothing from elsewhere."""

import base64
import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from exact_family import Drift, ExactFamily, Source

from pinn_odelora.errors import InputError
from pinn_odelora.families.page import Page, dashboard, quantised, symbol
from pinn_odelora.families.ranges import Interval, Ranges
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box, Cloud
from pinn_odelora.points import Points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

VOID = {"meta", "input", "link", "img", "br"}


class Reader(HTMLParser):
    """Checks that elements are closed in order; keeps the data and all attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.ids = [], [], {}, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id", tag)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.text[self.open[-1][1]] = self.text.get(self.open[-1][1], "") + data


def data_of(page):
    return json.loads(Reader(page.html).text["data"])


def values_of(data, field=0):
    """The stored values of a field, (members, cells of the second coordinate, of the first)."""
    f = data["fields"][field]
    levels = np.frombuffer(base64.b64decode(f["values"]), dtype="<u2").astype(float)
    sizes = [c["cells"] for c in reversed(data["coordinates"])]
    return (f["low"] + levels / 65534 * (f["high"] - f["low"])).reshape(-1, *sizes)


def centres(coordinate):
    low, high, n = coordinate["low"], coordinate["high"], coordinate["cells"]
    return low + (high - low) * (np.arange(n) + 0.5) / n


BURGERS = ExactFamily(Burgers(), nu=(0.006, 0.05), error=3.2e-5)


@pytest.fixture(scope="module")
def burgers():
    return dashboard(BURGERS)


def test_the_page_holds_the_answers_to_within_their_quantisation(burgers):
    data = data_of(burgers)
    x, t = (centres(c) for c in data["coordinates"])
    (nu,) = data["parameters"]
    assert nu["values"] == pytest.approx(np.geomspace(0.006, 0.05, 41))
    stored, f = values_of(data), data["fields"][0]
    assert stored.shape == (41, len(t), len(x))
    for k in (0, 17, 40):
        exact = BURGERS(nu=nu["values"][k])(x[None, :], t[:, None])
        assert np.abs(stored[k] - exact).max() <= (f["high"] - f["low"]) / 131068 * (1 + 1e-9)
    assert stored.max() == pytest.approx(f["high"], abs=1e-12)
    assert data["errors"] == [3.2e-5] * 41
    assert (burgers.answers, burgers.error) == (41, 3.2e-5)


def test_with_two_parameters_the_last_varies_fastest_and_every_field_is_there():
    family = ExactFamily(Drift(), c=(0.0, 2.0), kappa=(0.02, 0.3))
    page = dashboard(family, values=5)
    data = data_of(page)
    c, kappa = data["parameters"]
    assert (c["name"], kappa["name"]) == ("c", "κ")
    x, t = (centres(coordinate) for coordinate in data["coordinates"])
    exact = family(c=c["values"][3], kappa=kappa["values"][1])(x[None, :], t[:, None])
    assert np.abs(values_of(data)[3 * 5 + 1] - exact).max() < 2e-5
    flow = ExactFamily(Kovasznay(), re=(20.0, 80.0))
    data = data_of(dashboard(flow, values=3))
    assert [f["name"] for f in data["fields"]] == ["u", "v", "p"]
    x, y = (centres(coordinate) for coordinate in data["coordinates"])
    exact = flow(re=data["parameters"][0]["values"][1])(x[None, :], y[:, None])
    for i in range(3):
        assert np.abs(values_of(data, i)[1] - exact[..., i]).max() < 1e-4


@pytest.mark.parametrize(
    ("family", "values"),
    [
        (BURGERS, None),
        (BURGERS, 201),
        (ExactFamily(Drift(), c=(0.0, 2.0), kappa=(0.02, 0.3)), 31),
        (ExactFamily(Source(), a=(0.0, 2.0), b=(-1.0, 3.0)), None),
    ],
    ids=["burgers", "more values", "two parameters", "one coordinate"],
)
def test_the_file_is_small_and_well_formed_and_refers_to_nothing_outside(family, values, tmp_path):
    page = dashboard(family, tmp_path / "family.html", values=values)
    text = (tmp_path / "family.html").read_text(encoding="utf-8")
    assert text == page.html
    assert page.size == (tmp_path / "family.html").stat().st_size < 2_000_000
    reader = Reader(text)
    code = re.sub(r'"[A-Za-z0-9+/=]{200,}"', "", text)
    assert len(code) < 40_000
    assert not re.search(r"https?:|//[a-z]|@import|import\(|fetch\(|XMLHttpRequest|url\((?!#)", code)
    assert not {"src", "href", "action"} & {name for name, _ in reader.attributes}
    assert len(reader.ids) == len(set(reader.ids))
    assert "{{" not in text
    assert reader.text["title"].startswith(type(family.problem).__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wave3(Problem):
    """<b> = c & more</script>."""

    coords = ("x", "y", "t")
    region = Box(x=(0, 1), y=(-1, 1), t=(0, 3))
    supports = ("soft",)
    c: float = parameter(1.0, 2.0)

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_t)}

    def reference(self, p):
        u = torch.sin(self.c * p.x) * p.y + p.t
        return torch.where((p.x - 0.5).abs() < 0.1, math.nan, u)


def test_further_coordinates_are_at_their_middle_and_cells_without_a_value_are_marked():
    family = ExactFamily(Wave3(), error=math.nan, c=(1.0, 2.0))
    page = dashboard(family, values=3)
    data = data_of(page)
    assert data["held"] == [{"name": "t", "value": 1.5}]
    x, y = (centres(coordinate) for coordinate in data["coordinates"])
    hole = np.abs(x - 0.5) < 0.1
    levels = np.frombuffer(base64.b64decode(data["fields"][0]["values"]), dtype="<u2").reshape(3, len(y), len(x))
    assert ((levels == 65535) == hole).all()
    expected = np.sin(1.5 * x) * y[:, None] + 1.5
    assert np.abs(values_of(data)[1] - expected)[:, ~hole].max() < 1e-4
    assert data["errors"] == [None] * 3
    assert math.isnan(page.error)


def test_words_of_the_problem_cannot_become_elements_of_the_page():
    page = dashboard(ExactFamily(Wave3(), c=(1.0, 2.0)), values=2)
    assert data_of(page)["equation"] == "<b> = c & more</script>."
    assert page.html.count("</script>") == 2


def test_a_notebook_shows_the_page_in_a_frame(burgers):
    frame = burgers._repr_html_()
    (source,) = (value for name, value in Reader(frame).attributes if name == "srcdoc")
    assert source == burgers.html
    assert repr(burgers).startswith("<page of 41 members, errors up to about 3.2e-05, 1.")


def test_a_constant_has_one_level():
    levels, low, high = quantised(np.full((2, 3), 4.0))
    assert (levels == 0).all()
    assert low == 4.0 < high
    assert quantised(np.array([math.nan, math.inf]))[0].tolist() == [65535, 65535]


def test_symbols():
    assert [symbol(name) for name in ("nu", "lambda", "beta", "c", "re")] == ["ν", "λ", "β", "c", "re"]


def test_invalid_input_is_refused_in_one_sentence(tmp_path):
    family = ExactFamily(Burgers(), nu=(0.006, 0.05))
    with pytest.raises(InputError, match="values is 1, but it must be a whole number of at least 2 and at most 201"):
        dashboard(family, values=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        Page("<p>", 1, 0.0).save(tmp_path / "file" / "page.html")
    family.space = Ranges(tuple(Interval(name, 0.0, 1.0, "linear") for name in "abc"))
    with pytest.raises(InputError, match="3 parameters; a page has sliders for one or two"):
        dashboard(family)

    class Scattered(Drift):
        region = Cloud(Points(x=torch.zeros(1, 1), t=torch.zeros(1, 1)))

    with pytest.raises(InputError, match="on a box, but Scattered has another region"):
        dashboard(ExactFamily(Scattered(), c=(0.0, 1.0)))

"""A run says in one sentence what of its code and files has changed since it was made, and has the code of then."""

import importlib
import re
import sys
import textwrap

import pytest
import torch
from torch import nn

import pinn_odelora as po
from pinn_odelora.config import begin
from pinn_odelora.errors import ChangedWarning
from pinn_odelora.geometry import Box
from pinn_odelora.nets import MLP
from pinn_odelora.runs import provenance
from pinn_odelora.runs.folder import PROVENANCE
from problems.poisson import Poisson

FILES = {
    "pde_of_mine/__init__.py": "",
    "pde_of_mine/plate.py": """
        from problems.poisson import Poisson
        from .numbers import K
        class Plate(Poisson): pass
    """,
    "pde_of_mine/numbers.py": "K = 3\n",
    "net_of_mine.py": """
        import pinn_odelora as po, pde_of_mine.numbers as numbers
        def network(inputs: int, outputs: int, generator) -> po.MLP:
            return po.MLP(inputs, outputs, width=6, depth=2, generator=generator)
    """,
    "unused_of_mine.py": "",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Modules of a user, which are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))
    before = {*sys.modules}
    importlib.invalidate_caches()
    yield tmp_path
    for name in {*sys.modules} - before:
        if name.partition(".")[0].endswith("_of_mine"):
            del sys.modules[name]


def plate():
    return importlib.import_module("pde_of_mine.plate").Plate()


def test_every_own_module_that_takes_part_is_recorded_and_kept(place):
    importlib.import_module("unused_of_mine")
    (place / "data.csv").write_text("x,u\n")
    (place / "config.yaml").write_text("net: {_target_: net_of_mine.network}\n")
    importlib.import_module("net_of_mine")
    provenance.record(place, plate(), MLP(2, 1), ["data.csv", None])
    kept = {file.relative_to(place / "code").as_posix() for file in (place / "code").rglob("*.py")}
    shipped = {"problems/__init__.py", "problems/poisson.py"}
    assert kept == {*FILES} - {"unused_of_mine.py"} | shipped
    assert (place / "code/pde_of_mine/numbers.py").read_text() == "K = 3\n"
    assert provenance.changed(place) == {}
    assert provenance.sentence(place) == ""


@pytest.mark.parametrize("name", ["pde_of_mine/plate.py", "pde_of_mine/numbers.py", "data.csv"])
def test_one_sentence_names_what_has_changed_and_the_copy(name, place):
    (place / "data.csv").write_text("x,u\n")
    run = place / "run"
    provenance.record(run, plate(), MLP(2, 1), [place / "data.csv"])
    with (place / name).open("a") as file:
        file.write("# \n")
    copy = "" if name == "data.csv" else f"; as it was then: run/code/{name}"
    short = name.rpartition("/")[2]
    sentence = f"{short} has changed since the run in run was made, and results may differ from its own{copy}."
    assert provenance.sentence(run) == sentence
    (place / name).unlink()
    assert provenance.sentence(run) == ""


def test_a_project_that_moved_is_compared_where_it_is_now(place):
    run = place / "run"
    problem = plate()
    provenance.record(run, problem, MLP(2, 1), [])
    there = place / "elsewhere"
    there.mkdir()
    (place / "pde_of_mine/numbers.py").rename(there / "numbers.py")
    sys.modules["pde_of_mine.numbers"].__file__ = str(there / "numbers.py")
    assert provenance.changed(run) == {}
    (there / "numbers.py").write_text("K = 4\n")
    assert provenance.changed(run) == {"numbers.py": run / "code/pde_of_mine/numbers.py"}


def equation(pde):
    return po.problem(name="wave", coords="x", region=Box(x=(0.0, 1.0)), pde=pde)


def test_functions_are_compared_by_their_source(tmp_path):
    def pde(f):
        return f.u - 1.0

    made = equation(pde)
    provenance.record(tmp_path, made, MLP(1, 1), [])
    assert provenance.changed(tmp_path, made) == provenance.changed(tmp_path) == {}

    def pde(f):
        return f.u - 2.0

    copy = tmp_path / "code/wave.pde.txt"
    assert provenance.changed(tmp_path, equation(pde)) == {"wave.pde": copy}
    assert "f.u - 1.0" in copy.read_text()


def test_a_package_is_known_by_its_version(tmp_path, monkeypatch):
    provenance.record(tmp_path, Poisson(), MLP(2, 1), [])
    assert not (tmp_path / "code/pinn_odelora").exists()
    monkeypatch.setattr(po, "__version__", "77.0")
    assert re.fullmatch(r"pinn_odelora \(\S+ then, 77.0 now\) has changed since .*\.", provenance.sentence(tmp_path))
    provenance.record(tmp_path, Poisson(), nn.Linear(2, 1), [])
    monkeypatch.setattr(torch, "__version__", "77.0")
    assert provenance.changed(tmp_path) == {}  # its version is in the summary


def test_an_edited_checkout_of_this_package_is_known(tmp_path, monkeypatch):
    provenance.record(tmp_path, plain := equation(lambda f: f.u - 1.0), net := nn.Linear(1, 1), [])
    assert provenance.changed(tmp_path, plain, net) == {}
    here = provenance.sources()
    monkeypatch.setattr(provenance, "sources", lambda: [*here[:-1], (here[-1][0], "another digest")])
    said = provenance.sentence(tmp_path)
    assert said.startswith(f"pinn_odelora (its code, still {po.__version__}) has changed since the run in ")


def test_copies_have_names_that_every_system_takes(tmp_path, monkeypatch):
    class Local(nn.Linear):
        __module__ = "__main__"

    monkeypatch.setattr(provenance.inspect, "getsource", lambda thing: "class Local: …")
    made = po.problem(name="wave", coords="x", region=Box(x=(0.0, 1.0)), pde=lambda f: f.u - 1.0)
    provenance.record(tmp_path, made, net := Local(1, 1), [])
    names = [file.name for file in (tmp_path / "code").iterdir()]
    assert "test_copies_have_names_that_every_system_takes.locals.Local.txt" in names
    assert not any(character in name for name in names for character in '<>:"/\\|?*')
    assert provenance.changed(tmp_path, made, net) == {}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"modules": {}}', '{"modules": 3}'])
def test_a_run_of_before_says_nothing(content, tmp_path):
    if content is not None:
        (tmp_path / PROVENANCE).write_text(content)
    assert provenance.sentence(tmp_path) == ""


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
def test_loading_resuming_and_comparing_say_it(place, compose, run, capsys):
    run(compose("problem=poisson", "problem._target_=pde_of_mine.plate.Plate", "method=lora_adam", "budget.steps=5"))
    folder = place / "run"
    (folder / "summary.json").write_text("{}")
    assert provenance.sentence(folder) == ""
    (place / "pde_of_mine/numbers.py").write_text("K = 4\n")
    from pinn_odelora.config.load import base

    with pytest.warns(ChangedWarning, match=r"^numbers.py has changed .* run/code/pde_of_mine/numbers.py\.$"):
        base(folder, trust="pde_of_mine")
    capsys.readouterr()
    run(begin(compose(f"resume={folder}", "trust=pde_of_mine", "budget.steps=9"))[0])
    assert capsys.readouterr().err.count("numbers.py has changed") == 1
    assert provenance.sentence_on([place]).startswith("numbers.py has changed since the run in run was made")
    provenance.record(place / "other", plate(), MLP(2, 1), [])
    (place / "other/summary.json").write_text("{}")
    assert provenance.sentence_on([place]).startswith("numbers.py has changed since 1 of the 2 runs compared was made")

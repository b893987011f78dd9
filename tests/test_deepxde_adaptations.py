"""The benchmark of adaptations changes a script as it says, measures both sides alike, and sums up rightly."""

import inspect
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from pinn_odelora.geometry.deepxde import library

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import deepxde_adaptations as benchmark
import deepxde_changes as changes

pytestmark = pytest.mark.filterwarnings("ignore")

SCRIPT = """
import numpy as np
import deepxde as dde

k = 1.0
np.loadtxt("../dataset/start.txt")
time = dde.geometry.TimeDomain(0, 1)
start = dde.icbc.IC(time, lambda t: 1.0, lambda _, on_initial: on_initial)
data = dde.data.PDE(time, lambda t, u: dde.grad.jacobian(u, t) + k * u + unknown_to_torch(0), [start], 20, 2)
model = dde.Model(data, dde.nn.FNN([1, 8, 8, 1], "tanh", "Glorot normal"))
model.compile("adam", lr=1e-2)
model.train(iterations=300)
model.compile("L-BFGS")
model.train()
raise RuntimeError("plots fail")
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A script of our own with a change of its own, in the place of DeepXDE's examples."""
    library()
    monkeypatch.setenv("DDE_BACKEND", "pytorch")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "start.txt").write_text("1\n")
    (tmp_path / "pinn_forward").mkdir()
    file = tmp_path / "pinn_forward" / "decay.py"
    file.write_text(SCRIPT)
    change = benchmark.Change(
        "k 1 → 3, start 1 → 2",
        lambda X: 2 * np.exp(-3 * X),
        {"k": 3},
        {"lambda t: 1.0": "lambda t: 2.0"},
        {"unknown_to_torch(0)": "0"},
    )
    monkeypatch.setattr(benchmark, "CHANGES", {"decay": change})
    monkeypatch.chdir(tmp_path)
    return file


def test_a_script_is_changed_or_as_it_is(script):
    change = benchmark.CHANGES["decay"]
    started = lambda model: inspect.unwrap(model.data.bcs[0].func)(np.zeros((1, 1)))
    before, after = (benchmark.built(script, c) for c in (None, change))
    assert (started(before), started(after)) == (1.0, 2.0)
    assert all((a == b).all() for a, b in zip(before.net.parameters(), after.net.parameters(), strict=True))
    with pytest.raises(ValueError, match="has no 'nowhere'"):
        benchmark.built(script, change._replace(text={"nowhere": ""}))


@pytest.mark.slow
def test_both_sides_are_measured_and_nothing_twice(script, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark.time, "perf_counter", benchmark.time.perf_counter)  # put back afterwards
    given = Namespace(parts=("theirs", "source", "adapt"), cap=20.0, source=1.0)
    benchmark.measured(script, tmp_path, given)
    run = benchmark.json.loads((tmp_path / "decay.json").read_text())
    assert run["theirs"]["iterations"] > 300
    assert run["theirs"]["after"] == "RuntimeError: plots fail"
    assert run["theirs"]["error"] < 0.1
    assert run["adapt"]["reached"] == (run["adapt"]["error"] <= run["theirs"]["error"])
    assert run["adapt"]["before"] > 0.3
    benchmark.measured(script, tmp_path, given)
    assert benchmark.json.loads((tmp_path / "decay.json").read_text()) == run


def test_training_of_theirs_ends_at_the_cap(script):
    found = benchmark.theirs(script, benchmark.CHANGES["decay"], 0.05)
    assert found["capped"]
    assert found["iterations"] < 300


def test_attempts_go_on_until_the_error_or_the_cap():
    attempt = lambda seconds: {"seconds": 2 * seconds, "error": 1 / seconds}
    found = benchmark.until(0.5, "train", 100.0, attempt)
    assert (found["seconds"], found["reached"], len(found["tried"])) == (4.0, True, 1)
    found = benchmark.until(0.01, "train", 10.0, attempt)
    assert (found["seconds"], found["reached"], len(found["tried"])) == (16.0, False, 3)


def run(theirs, adapt, reached=True, **more):
    spent = {"seconds": adapt, "error": 1e-3, "before": 0.5, "reached": reached}
    return {"theirs": {"seconds": theirs, "error": 1e-3, "capped": theirs > 99}, "adapt": spent, **more}


def test_the_median_counts_what_was_not_reached_and_what_is_short_is_said(tmp_path, monkeypatch):
    names = [*benchmark.CHANGES][:3]
    runs = dict(zip(names, (run(100.0, 1.0), run(50.0, 5.0), run(80.0, 80.0, reached=False)), strict=True))
    runs[names[0]]["train"] = {"seconds": 10.0, "error": 1e-3, "reached": True}
    assert benchmark.medians(runs) == {"adapt": 10.0, "train": 10.0}
    assert len(benchmark.short(runs)) == 8
    assert benchmark.short(runs)[-1] == "10.0 times fewer seconds in the median, not 20"
    table = benchmark.markdown(runs)
    assert "| 100* |" in table
    assert "| > 80 | not reached |  |  |" in table
    page = tmp_path / "page.md"
    page.write_text("<!-- table -->\nold\n<!-- end of table -->\n", encoding="utf-8")
    for name in names:
        (tmp_path / f"{name}.json").write_text(benchmark.json.dumps(runs[name]))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--report", "--runs", str(tmp_path), "--page", str(page)])
    assert benchmark.main() == 1
    assert "old" not in page.read_text(encoding="utf-8")


def test_the_reference_of_allen_cahn_solves_its_equation():
    X = np.stack(np.meshgrid(np.linspace(-0.9, 0.9, 7), np.linspace(0.2, 0.9, 4)), axis=-1).reshape(-1, 2)
    u = lambda dx, dt: changes.allen_cahn(X + np.array([dx, dt]), n=200)
    h = 1e-3
    rate = (u(0, h) - u(0, -h)) / (2 * h)
    curvature = (u(h, 0) - 2 * u(0, 0) + u(-h, 0)) / h**2
    residual = rate - 0.002 * curvature - 5 * (u(0, 0) - u(0, 0) ** 3)
    assert np.abs(residual).max() < 1e-3 * np.abs(rate).max()

"""The benchmark of DeepXDE's examples runs what a script says for torch, and sums up what becomes of it."""

import sys
from pathlib import Path

import pytest

from pinn_odelora.geometry.deepxde import library

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import deepxde_examples as benchmark

pytestmark = pytest.mark.filterwarnings("ignore")

SCRIPT = """
import deepxde as dde
# Import torch if using backend pytorch
# import torch
from deepxde.backend import tf

time = dde.geometry.TimeDomain(0, 1)
start = dde.icbc.IC(time, lambda t: 1.0, lambda _, on_initial: on_initial)
rate = dde.Variable(0.7)
data = dde.data.PDE(time, lambda t, u: dde.grad.jacobian(u, t) + u * cos(0 * t), [start], 30, 2, solution=exact)
net = dde.nn.FNN([1, 8, 8, 1], "tanh", "Glorot normal")
# Backend tensorflow.compat.v1 or tensorflow
def output(t, u):
    return tf.math.exp(u)
# Backend pytorch
# def output(t, u):
#     return torch.tanh(u)
# Backend paddle
# def output(t, u):
#     return paddle.tanh(u)
net.apply_output_transform(output)
model = dde.Model(data, net)
model.compile("adam", lr=1e-2)
model.train(iterations=0)
model.train(iterations=300)
print("L2 relative error in u:", 0.5)
print("L2 relative error in v: [0.25]")
print("L2 relative error in u:", 0.125)
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "decay.py"
    file.write_text("import numpy as np\nexact = lambda t: np.exp(-t)\n" + SCRIPT)
    return file


def test_the_lines_for_torch_are_those_that_run(script):
    text = benchmark.source(script)
    assert "import torch as tf\n" in text
    assert "\nimport torch\n" in text
    assert text.index("return tf.exp(u)") < text.index("\n    return torch.tanh(u)\n")
    assert "# def output(t, u):\n#     return paddle.tanh(u)" in text


def test_a_script_runs_with_another_training_in_place_of_its_own(script, monkeypatch):
    library().config.set_default_float("float32")
    monkeypatch.chdir(script.parent)
    seen = []
    model, said, failure = benchmark.executed(script, benchmark.once(seen.append))
    assert seen == [model], "not that of no iterations, and the first of the others"
    assert not failure
    assert benchmark.error_in(model, said) == pytest.approx(benchmark.error_of(model), rel=1e-6)
    model.data.soln = None
    assert benchmark.error_in(model, said) == 0.25, "the largest of the last of each field"
    assert benchmark.error_in(model, "") is None


def test_a_script_that_trains_until_something_is_reached_is_ended():
    trained = []
    train = benchmark.once(trained.append)
    for _ in range(1 + benchmark.LATER):
        train("a", iterations=3)
    with pytest.raises(RuntimeError, match="again and again"):
        train("a")
    assert trained == ["a"]


def test_what_is_reached_is_told_by_scripts_with_both_errors():
    runs = {
        "pinn_forward/a": {"outcome": "runs", "error": 1e-6, "theirs": 1e-3, "steps": 9, "full": 1e-4, "capped": True},
        "pinn_forward/b": {"outcome": "runs", "error": 1e-4, "theirs": 2e-4},
        "pinn_forward/c": {"outcome": "runs", "error": None, "theirs": 1e-3},
        "pinn_inverse/d": {
            "outcome": "runs",
            "error": 2e-3,
            "theirs": 1e-3,
            "variables": {"C1": 9.99996, "C2": 15.0},
            "theirs variables": [9.5, 14.0],
        },
        "pinn_inverse/e": {"outcome": "refused", "said": "no."},
    }
    said, reached = benchmark.verdict(runs)
    assert not reached
    assert "4 of 5 scripts run here. Of 3 with both errors ours is 0.5 times DeepXDE's" in said
    assert "above it for pinn_inverse/d." in said
    assert "| pinn_forward/a | runs | 1.0e-06 | 1.0e-03 | 1.0e-04 (capped) | 9 |" in benchmark.lines(runs)
    assert "| pinn_inverse/e | refused: no. | – | – | – |  |" in benchmark.lines(runs)
    assert benchmark.unknowns(runs)[2:] == ["| pinn_inverse/d | C1 10, C2 15 | 9.5, 14 |  |"]
    assert benchmark.unknowns({"pinn_forward/a": runs["pinn_forward/a"]}) == []
    del runs["pinn_inverse/d"]
    runs["pinn_forward/b"]["error"] = 1e-6
    assert benchmark.verdict(runs)[1]
    runs["pinn_forward/b"]["outcome"] = "failed"
    assert "Failed: pinn_forward/b." in benchmark.verdict(runs)[0]
    assert not benchmark.verdict(runs)[1]
    assert "nan times" in benchmark.verdict({})[0]


def test_lines_that_contradict_their_reference_are_corrected(tmp_path):
    old, new = benchmark.CORRECTED["Klein_Gordon"]
    file = tmp_path / "Klein_Gordon.py"
    file.write_text(f"ic = OperatorBC(geomtime, lambda x, y, _: dde.grad.{old})\n")
    assert new in benchmark.source(file)
    assert old not in benchmark.source(file)
    file.write_text("ic = OperatorBC(geomtime)\n")
    with pytest.raises(ValueError, match=r"Klein_Gordon\.py no longer has the lines"):
        benchmark.source(file)


@pytest.mark.parametrize(("each", "later"), [(0.001, "L-BFGS"), (1.0, "adam")])
def test_the_rival_has_adam_where_a_line_search_would_not_fit_its_time(each, later, script, monkeypatch):
    library().config.set_default_float("float32")
    monkeypatch.chdir(script.parent)
    model, _, _ = benchmark.executed(script, lambda model, **settings: None)
    trained, clock = [], [0.0]
    monkeypatch.setattr(benchmark.time, "process_time", lambda: clock[0])

    def train(model, **settings):
        trained.append(model.opt_name)
        model.train_state.step += round(5 / each)
        clock[0] += 5

    model.train_state.step = 0
    benchmark.adam_and_lbfgs(model, 10, train)
    assert trained == ["adam", later]

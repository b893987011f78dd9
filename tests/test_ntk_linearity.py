"""The study of how linear an adaptation is: its quantities on problems whose answer is known, and its verdicts."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

import pinn_odelora as po
from pinn_odelora.nets import MLP, MatrixFunctional
from problems.burgers import Burgers
from problems.matrix_sensing import MatrixSensing

sys.path.insert(0, str(Path(__file__).parents[1] / "studies/ntk"))
import linearity


def test_a_jump_multiplies_the_parameter_to_the_harder_side():
    assert linearity.target("burgers", 0.3).nu == pytest.approx(0.05 * math.exp(-0.3))
    assert linearity.target("kovasznay", 0.3).re == pytest.approx(20 * math.exp(0.3))
    sizes = [
        math.log(abs(x.source / getattr(cls(), key)))
        for cls, key, *_ in linearity.SOURCES.values()
        for x in [cls.parameters()[key]]
    ]
    assert [abs(x) for x in sizes] == pytest.approx([0.916, 1.386, 1.099], abs=1e-3)  # the docstring's declared jumps


def matrix_run(generator):
    problem = MatrixSensing(rows=6, columns=5, rank=2, measurements=60)
    net = MatrixFunctional(problem.at_source()).double()
    lora = po.LoRA(rank=2, targets="*", also=())
    run = po.steps(net, problem, lora=lora, points=po.Sampling.fixed(), budget=po.Budget(steps=4))
    return net, problem, run


def test_what_is_linear_in_its_weights_stays_at_its_linearisation(generator):
    net, problem, run = matrix_run(generator)
    start, solved = linearity.Start(run, 60), [*linearity.solutions(net, problem, run, 60)]
    left = []
    for _ in run:
        kernel, error, remaining = start.distances()
        assert kernel < 1e-12
        assert error < 1e-10
        left.append(remaining)
    assert left[-1] < 0.5
    assert solved[-1]["rel_l2"] < 1e-6
    assert all(x["left"] == pytest.approx(x["predicted"], rel=1.0) for x in solved[:4])  # at other measurements


def test_distances_are_those_of_dense_jacobians_and_first_order_in_the_motion(generator):
    net = MLP(2, 1, width=8, depth=3, generator=generator).double()
    run = po.steps(net, Burgers(nu=0.03), rank=2, budget=po.Budget(steps=1))
    start = linearity.Start(run, 50)
    assert torch.allclose(start.K, start.around.columns() @ start.around.columns().mT, rtol=1e-10)
    layers = run.training.objective.layers
    motion = {name: torch.randn(x.weight.shape, generator=generator, dtype=torch.float64) for name, x in layers.items()}
    found = []
    for t in (1e-3, 2e-3):
        with torch.no_grad():
            for name, layer in layers.items():
                layer.base_layer.weight += t * motion[name]
        J = linearity.Linearisation(start.sweep, start.points)
        kernel, error, left = start.distances()
        dense = J.columns() @ J.columns().mT
        assert kernel == pytest.approx(float((dense - start.K).norm() / start.K.norm()), rel=1e-9)
        expected = J.r - start.around.r - start.around.matvec({name: t * x for name, x in motion.items()})
        assert error == pytest.approx(float(expected.norm() / (J.r - start.around.r).norm()), rel=1e-6)
        assert left == pytest.approx(float(J.r.norm() / start.around.r.norm()))
        found.append((kernel, error))
        with torch.no_grad():
            for name, layer in layers.items():
                layer.base_layer.weight -= t * motion[name]
    for once, twice in zip(*found, strict=True):
        assert twice == pytest.approx(2 * once, rel=0.1)


def test_the_linearised_problem_is_solved_and_put_into_the_network(generator):
    """A heavy penalty leaves the network alone; the prediction falls with the penalty; a short way along the solution
    the network does what the model says."""
    net = MLP(2, 1, width=8, depth=3, generator=generator).double()
    problem = Burgers(nu=0.03)
    run = po.steps(net, problem, rank=2, budget=po.Budget(steps=1))
    before = {name: x.clone() for name, x in net.state_dict().items()}
    solved = [*linearity.solutions(net, problem, run, 120)]
    assert all(torch.equal(before[name], x) for name, x in net.state_dict().items())
    predicted = [x["predicted"] for x in solved]
    assert predicted == sorted(predicted, reverse=True)
    assert 1 > predicted[0] > 0.3 > predicted[-1] > 0
    start = linearity.Start(run, 120)
    w = torch.linalg.solve(
        start.K + 1e-3 * torch.linalg.matrix_norm(start.K, 2) * torch.eye(120).double(), start.around.r
    )
    delta = {name: -1e-4 * x for name, x in start.around.rmatvec(w).items()}
    moved = linearity.moved_network(net, delta, [*start.sweep.variables.layers])
    there = linearity.residual_norm(moved, problem, start.points)
    model = float((start.around.r + start.around.matvec(delta)).norm())
    assert there == pytest.approx(model, rel=1e-5)
    assert abs(there - float(start.around.r.norm())) > 1e-5 * there


def found_row(first=(0.05, 0.03), last=(0.06, 0.04), error=2e-4, reached=1.5e-4):
    path = [
        {"step": 1, "kernel": 0.5, "linearisation": 0.7, "left": 0.6, "rel_l2": 1e-2},
        {"step": 2, "kernel": first[0], "linearisation": first[1], "left": 0.08, "rel_l2": 1e-3},
        {"step": 3, "kernel": last[0], "linearisation": last[1], "left": 0.01, "rel_l2": reached},
    ]
    solutions = [
        {"penalty": 1e-3, "predicted": 0.3, "left": 0.3, "rel_l2": 9e-3},
        {"penalty": 1e-6, "predicted": 0.01, "left": 0.02, "rel_l2": error},
        {"penalty": 1e-9, "predicted": 0.001, "left": 4.0, "rel_l2": 0.3},
    ]
    return {"problem": "heat", "size": 0.01, "before": 0.02, "path": path, "solutions": solutions}


def test_the_regime_describes_a_jump_where_all_three_hold():
    assert linearity.verdict(found_row()) == ("heat", 0.01, 0.02, (0.05, 0.03), (0.06, 0.04), 0.02, 2e-4, 1.5e-4)
    assert linearity.verdict(found_row()).described
    for change in (
        {"first": (0.2, 0.03)},
        {"first": (0.05, 0.2)},
        {"last": (0.2, 0.04)},
        {"last": (0.06, 0.2)},
        {"error": 4e-4},
    ):
        assert not linearity.verdict(found_row(**change)).described, change
    slow = found_row()
    slow["path"] = slow["path"][:1]
    assert math.isnan(linearity.verdict(slow).first[0])
    assert not linearity.verdict(slow).described


def test_the_page_is_written_again_from_the_figures(tmp_path, capsys):
    kept = {"seconds": 60, "versions": "torch 9", "rows": [found_row(), found_row(error=1.0) | {"size": 0.1}]}
    (tmp_path / linearity.RAW).write_text(json.dumps(kept))
    assert linearity.main(["--report", "--results", str(tmp_path)]) == 0
    text = (tmp_path / linearity.PAGE).read_text()
    assert "| heat | 0.01 | 2.0e-02 | 0.05, 0.03 | 0.06, 0.04 | 0.02 | 2.0e-04 | 1.5e-04 | yes |" in text
    assert "| 1.0e+00 | 1.5e-04 | no |" in text
    assert (tmp_path / linearity.PICTURE).stat().st_size > 5000
    assert "described" in capsys.readouterr().out


@pytest.mark.slow
def test_the_quick_form_shows_what_the_page_says(tmp_path):
    """The regime describes the first decade of a small jump, and nothing of a large one."""
    assert linearity.main(["--quick", "--results", str(tmp_path), "--cache", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / linearity.RAW).read_text())["rows"]
    found = {(x.problem, x.size): x for x in map(linearity.verdict, rows)}
    for name in linearity.QUICK.problems:
        small, large = found[name, 0.01], found[name, 0.9]
        assert max(small.first) < linearity.NEAR < min(large.first)
        assert large.first[0] > 10 * small.first[0]
        assert large.solution_error > 10 * large.reached
        assert not large.described

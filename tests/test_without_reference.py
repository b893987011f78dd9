"""Runs without a reference say how good they are: losses by term, an estimate of the error, pictures, and never nan."""

import itertools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pinn_odelora as po
from pinn_odelora import __main__ as command
from pinn_odelora.diagnostics import errors
from pinn_odelora.error_estimate import ErrorEstimate, _points, error_estimate, variables
from pinn_odelora.geometry import Box
from pinn_odelora.lightning.fit import final_points
from pinn_odelora.log import Log
from pinn_odelora.metrics import known
from pinn_odelora.nets import KAN, AdaptiveMLP, FactorisedMLP, LayerNormMLP, PirateNet
from pinn_odelora.pretraining import following
from pinn_odelora.pretraining.pretrain import CHECKPOINT, Pretraining, _assess, pretrain
from pinn_odelora.runs.compare import compare
from pinn_odelora.runs.figures import solution_figure
from pinn_odelora.runs.pointwise import equation_residual, measured_points
from pinn_odelora.system import Solution, System
from problems.burgers import Burgers
from problems.matrix_regression import MatrixRegression

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
LINE, PLATE = Box(t=(0, 3)), Box(x=(0, 1), y=(-1, 1))
SMALL = {"points": po.Sampling.fixed(150, 30), "device": "cpu"}


def logistic(reference=None):
    """u' = 2 u (1 - u), u(0) = 0.1."""
    ic = (LINE.face(t=0.0), lambda f: f.u - 0.1)
    return po.problem(coords="t", region=LINE, pde=lambda f: f.u_t - 2 * f.u * (1 - f.u), ic=ic, reference=reference)


def growth(t):
    return 1 / (1 + 9 * torch.exp(-2 * t))


def exact(x, y):
    return torch.sin(2 * x + y), 0.5 * torch.exp(x) * y


def plate(reference=None):
    """-Δu + v u = f, v_xx = v: manufactured, two fields of different size."""

    def pde(f):
        u, v = exact(f.x, f.y)
        return f.u_xx + f.u_yy - f.v * f.u + (5 + v) * u, f.v_xx - f.v

    def bc(f):
        u, v = exact(f.x, f.y)
        return f.u - u, f.v - v

    return po.problem(coords="xy", fields="uv", region=PLATE, pde=pde, bc=(PLATE.boundary(), bc), reference=reference)


def unstable():
    """u' = 4 (u - sin t) + cos t, u(0) = 0: what is wrong at the start is e^12 times as large at t = 3."""
    ic = (LINE.face(t=0.0), lambda f: f.u)
    return po.problem(coords="t", region=LINE, pde=lambda f: f.u_t - 4 * (f.u - torch.sin(f.t)) - torch.cos(f.t), ic=ic)


CASES = {"ode": (logistic, lambda t: growth(t)), "plate": (plate, exact), "unstable": (unstable, torch.sin)}


def trained(name, steps, **settings):
    """A run without the reference."""
    problem = CASES[name][0]()
    generator = torch.Generator().manual_seed(3)
    net = po.MLP(problem.inputs, len(problem.fields), width=14, depth=3, generator=generator)
    method = po.methods.full_implicit(po.LinearlyImplicit())
    return po.adapt(net, problem, method=method, budget=po.Budget(steps=steps), **SMALL, **settings)


def true_errors(name, result):
    """Of all fields together, and of each."""
    make, values = CASES[name]
    p = make().region.sample(2000, lambda n, d: torch.rand(n, d, generator=torch.Generator().manual_seed(1)).double())
    ref = values(*(p[c] for c in make().coords))
    ref = torch.cat(ref if isinstance(ref, tuple) else (ref,), dim=1)
    with torch.no_grad():
        e = result.adaptation.solution(p) - ref
    each = e.norm(dim=0) / ref.norm(dim=0)
    return float(e.norm() / ref.norm()), dict(zip(make().fields, each.tolist(), strict=True))


# The estimate.


@pytest.mark.parametrize(("name", "steps"), [("ode", 4), ("ode", 15), ("plate", 6), ("plate", 25)])
def test_the_estimate_is_within_a_factor_three_of_the_error_that_is_withheld(name, steps):
    result = trained(name, steps)
    whole, each = true_errors(name, result)
    assert whole / 3 < result.error_estimate < 3 * whole
    assert result.field_estimates.keys() == each.keys()
    for field, error in each.items():
        assert error / 3 < result.field_estimates[field] < 3 * error


def test_the_estimate_sees_errors_that_the_equation_has_amplified():
    """Damped steps of the weights, which have to lower the loss, move by a fortieth of the error.

    After 14 steps, at a loss of 3e-10, the estimate is a third of the error: what is left is not in the tangent space.
    """
    result = trained("unstable", 10)
    whole, _ = true_errors("unstable", result)
    assert whole > 5 * math.sqrt(result.heldout_loss)
    assert whole / 2 < result.error_estimate < 2 * whole


def test_where_the_residual_is_not_explained_the_error_is_uncertain():
    """Six weights cannot follow a wave, and sit in a minimum of the loss, with a small movement and a large error."""
    wave = po.problem(
        coords="t",
        region=LINE,
        pde=lambda f: f.u_tt + 400 * torch.sin(20 * f.t),
        ic=(LINE.boundary(), lambda f: f.u - torch.sin(20 * f.t)),
    )
    method = po.methods.full_implicit(po.LinearlyImplicit())
    net = po.MLP(1, 1, width=1, depth=2, generator=torch.Generator().manual_seed(0))
    result = po.adapt(net, wave, method=method, budget=po.Budget(steps=5), **SMALL)
    assert result.error_estimate is None
    assert result.field_estimates == {}
    assert result.adaptation.estimate.remaining > 0.8
    assert "error is uncertain" in result.summary["no_estimate"]
    assert ", error uncertain in 5 steps" in repr(result)


def test_a_residual_that_stays_unexplained_is_looked_at_again_at_twice_the_points(monkeypatch):
    asked = []

    class Looked:
        paired = True

        def __init__(self, system, seed, rows):
            asked.append(rows)

        def estimate(self):
            return ErrorEstimate(0.1 * len(asked), {}, 0.6 if len(asked) % 2 else 0.1)

    monkeypatch.setattr("pinn_odelora.error_estimate._Linearised", Looked)
    problem = logistic()
    system = System(problem, Solution(problem, po.MLP(1, 1, width=3, depth=2)))
    assert error_estimate(system, most=700).rel_l2 == 0.2
    assert asked == [700, 1400]
    assert error_estimate(system, most=10**6).rel_l2 == pytest.approx(0.4)
    assert asked[2:] == [1000, 2000]


def test_an_estimate_leaves_the_network_as_it_is_whatever_was_trained():
    run = po.steps(po.MLP(2, 2, width=9, depth=3), plate(), budget=po.Budget(steps=2), rank=2, **SMALL)
    for _ in run:
        pass
    state = {name: x.clone() for name, x in run.solution.state_dict().items()}
    required = [p.requires_grad for p in run.solution.parameters()]
    assert error_estimate(run.system).rel_l2 > 0
    assert all(torch.equal(x, state[name]) for name, x in run.solution.state_dict().items())
    assert [p.requires_grad for p in run.solution.parameters()] == required


def test_the_richer_space_has_all_weights_and_biases_and_no_factor():
    run = po.steps(po.MLP(2, 2, width=9, depth=3), plate(), rank=2, **SMALL)
    found = variables(run.training.objective.system.solution)
    sizes = [x.weight.numel() for x in found.layers.values()] + [x.numel() for x in found.others.values()]
    assert sum(sizes) == sum(p.numel() for p in po.MLP(2, 2, width=9, depth=3).parameters())


@pytest.mark.parametrize("cls", [LayerNormMLP, AdaptiveMLP, FactorisedMLP, PirateNet, KAN])
def test_the_richer_space_has_what_pretraining_trains(cls):
    """Weights of a normalisation, slopes and scales among it, which an adaptation leaves as they are."""
    net = cls(2, 2, width=6, depth=3)
    run = po.steps(net, plate(), rank=2, **SMALL)
    found = variables(run.training.objective.system.solution)
    sizes = [x.weight.numel() for x in found.layers.values()] + [x.numel() for x in found.others.values()]
    assert sum(sizes) == sum(p.numel() for p in net.parameters())


def test_the_estimate_does_not_know_a_constant_that_nothing_determines():
    rod = Box(x=(0, 1))
    ends = po.conditions.neumann(rod.boundary("x"), lambda f: f.nx)
    free = po.problem(coords="x", region=rod, pde=lambda f: f.u_xx + 0.1 * f.u_x**2 - 0.1, ends=ends)
    net = po.MLP(1, 1, width=9, depth=2).double()
    estimates = []
    for constant in (0.0, 100.0):
        net.linears[-1].bias.data.fill_(constant)
        estimates.append(error_estimate(System(free, Solution(free, net))).rel_l2)
    assert estimates[0] > 0.01
    assert estimates[1] == pytest.approx(estimates[0], rel=1e-3)


def test_points_that_are_always_the_same_are_halved():
    data = {"x": [0.1, 0.2, 0.3, 0.4, 0.5], "y": [0.0] * 5, "u": [1.0, 2.0, 3.0, 4.0, 5.0]}
    run = po.steps(po.MLP(2, 2, width=9, depth=3), plate(), data=data, **SMALL)
    own, further = _points(run.system, 300, 0)
    assert own["data"].x[:, 0].tolist() == [0.1, 0.3, 0.5]
    assert further["data"].measured_u[:, 0].tolist() == [2.0, 4.0]
    assert not torch.equal(own["pde"].x, further["pde"].x)


def test_without_an_estimate_there_is_a_reason():
    matrix = System(problem := MatrixRegression(), Solution(problem, po.MLP(400, 1, width=2, depth=1)))
    assert "rank" in error_estimate(matrix).reason
    short = {"budget": po.Budget(steps=2), **SMALL}
    scaled = po.adapt(po.MLP(1, 1, width=9, depth=3), logistic(), method=po.methods.dora(lr=1e-3), rank=2, **short)
    assert scaled.error_estimate is None
    assert "DoRA" in scaled.summary["no_estimate"]
    assert "about" not in repr(scaled)
    left = po.adapt(po.MLP(1, 1, width=9, depth=3), logistic(), log=Log(estimate=False), rank=2, **short)
    assert left.summary["no_estimate"] == "none was asked for"


def test_with_a_reference_an_estimate_is_made_on_demand_only():
    problem = logistic(lambda p: growth(p.t))
    short = {"budget": po.Budget(steps=2), "rank": 2, **SMALL}
    assert po.adapt(po.MLP(1, 1, width=9, depth=3), problem, **short).error_estimate is None
    asked = po.adapt(po.MLP(1, 1, width=9, depth=3), problem, log=Log(estimate=True), **short)
    assert asked.error_estimate > 0
    assert "about" not in repr(asked)


# Numbers and words.


@pytest.mark.parametrize("name", ["ode", "plate"])
def test_nothing_that_a_run_says_or_leaves_has_nan(name, tmp_path):
    result = trained(name, 4, log=Log(every=2))
    terms = result.adaptation.system.terms
    assert result.losses_before.keys() == result.losses.keys() == terms.keys()
    assert sum(result.losses.values()) == pytest.approx(result.heldout_loss, rel=1e-12)
    assert sum(result.losses_before.values()) == pytest.approx(result.history[0]["stability/heldout_loss"], rel=1e-9)
    said = repr(result)
    assert f"held-out loss {sum(result.losses_before.values()):.2e} -> {result.heldout_loss:.2e} (pde " in said
    assert f"relative L2 error about {result.error_estimate:.0e} in 4 steps" in said
    json.dumps(result.summary, allow_nan=False)
    assert result.summary["rel_l2"] is result.summary["rel_l2_before"] is None
    assert "nan" not in said
    assert "error/rel_l2" not in result.history[-1]
    if name == "ode":
        result.save(tmp_path / "run")
        left = [f.read_text() for f in (tmp_path / "run").iterdir() if f.suffix in (".csv", ".json")]
        assert len(left) >= 3
        assert not any(re.search(r"\bnan\b", text, re.IGNORECASE) for text in left)


def test_the_command_line_says_it_too(compose, run, tmp_path, capsys):
    x, t = np.linspace(-0.9, 0.9, 12), np.tile([0.2, 0.5, 0.8], 4)
    lines = [f"{a},{b},{-math.sin(math.pi * a)}" for a, b in zip(x, t, strict=True)]
    (tmp_path / "m.csv").write_text("\n".join(["x,t,u", *lines]))
    done = run(compose("problem.nu=unknown", f"data.file={tmp_path / 'm.csv'}", "budget.steps=4", "log.every=2"))
    done.run.conclude(done.result, done.facts)
    said = capsys.readouterr().err
    assert "held-out loss" in said
    assert "relative L2 error about" in said
    assert "nan" not in said
    folder = tmp_path / "run"
    assert not any("nan" in (folder / name).read_text() for name in ("history.csv", "summary.json", "start.json"))
    columns, rows = final_points(done.result)
    assert columns == ["x", "t", "u"]
    assert len(rows[0]) == 3
    assert command.main(["compare", str(folder)]) == 0
    assert "nan" not in capsys.readouterr().out


def test_runs_without_errors_are_compared_without_them():
    numbers = {"loss_rises": 0.5, "largest_rise": 0.0, "gradient_evals": 3, "seconds": 1.0}
    one = {"problem": "p", "method": "m", "integrator": None, "diverged": False, "rel_l2": None, "rel_l2_before": None}
    (row,) = compare([one | numbers] * 2)
    assert row["rel_l2"] is row["rel_l2_before"] is row["spread"] is None
    assert row["seconds"] == 1.0
    assert known(math.nan) is known(None) is None
    assert known(0.0) == 0.0


# Pretraining.


def test_pretraining_stops_by_itself():
    said = []
    settings = Pretraining(adam_steps=20, interior=100, boundary=10, target=1e-3)
    net = pretrain(logistic(), po.MLP(1, 1, width=10, depth=2), settings=settings, say=said.append)
    last = next(line for line in reversed(said) if line.startswith("Natural gradient"))
    assert "relative L2 error about" in last
    assert last.startswith("Natural gradient 20/300")
    solved = logistic(lambda p: growth(p.t))
    assert errors(solved, Solution(solved, net), 500)["error/rel_l2"] < 3e-3


def test_the_unseen_loss_decides_where_no_error_is_known():
    """A step's own loss falls for ever; the one at other points does not."""
    looked = itertools.chain([1.0, 0.5], itertools.repeat(0.49))
    seen = SimpleNamespace(step=0)
    training = SimpleNamespace(progress=seen, stalled=False, sampler=SimpleNamespace(fresh=False))
    training.objective = SimpleNamespace(snapshot=lambda: seen.step, restore=lambda snapshot: None)
    records = (SimpleNamespace(loss=0.5**k, step=k, batch_size=400) for k in itertools.count())

    def steps(_, __):
        for record in records:
            seen.step += 1
            yield record

    stage = following.Stage("Descent", training, patience=6, every=1000, cost=lambda t: t.progress.step)
    unseen = following.Unseen(lambda: next(looked), lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following.loop, "steps", steps)
        said = []
        following.follow(stage, po.Budget(steps=99), 99, lambda: math.nan, 1e-4, said.append, unseen)
    assert said == ["Descent 8/99: no further progress"]


@pytest.mark.parametrize(
    ("origin", "wrong"), [("trained", "train it for longer"), ("checkpoint", "how it was trained")]
)
def test_only_a_foreign_network_may_not_fit_how_it_was_trained(origin, wrong):
    problem = Burgers().at_source()
    system, said = System(problem, Solution(problem, po.MLP(2, 1, width=8, depth=2))), []
    _assess(system, Pretraining(), 1.0, origin, said.append)
    assert wrong in said[-1]
    assert (CHECKPOINT in said[-1]) == (origin == "checkpoint")


# Pictures.


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title() and axes.get_visible()]


def test_the_residual_stands_beside_every_field(tmp_path):
    problem = plate()
    solution = Solution(problem, po.MLP(2, 2, width=8, depth=2))
    system = System(problem, solution)
    residual = equation_residual(system)
    figure = solution_figure(problem, solution, tmp_path / "u.png", 12, residual=residual)
    assert titles(figure) == ["prediction $u$", "residual $|r_{1}|$", "prediction $v$", "residual $|r_{2}|$"]
    p = problem.region.sample(7, lambda n, d: torch.rand(n, d).double())
    assert torch.allclose(residual(p), system.residuals({"pde": p})["pde"].abs())


def test_measured_values_are_dots_of_the_colours_of_the_prediction(tmp_path):
    data = {"x": [0.1, 0.5, 0.9], "t": [0.2, 0.5, 0.7], "u": [-0.3, 0.2, 0.1]}
    run = po.steps(po.MLP(2, 1, width=8, depth=3), Burgers(), data=data, unknown="nu", **SMALL)
    measured = measured_points(run.system)
    figure = solution_figure(run.problem, run.solution, tmp_path / "u.png", 12, measured=measured)
    (axes,) = (a for a in figure.axes if a.get_title() == "prediction $u$")
    (dots,) = axes.collections
    assert dots.get_offsets().tolist() == [[0.2, 0.1], [0.5, 0.5], [0.7, 0.9]]
    assert dots.get_array().tolist() == [-0.3, 0.2, 0.1]
    assert dots.norm is axes.images[0].norm


def test_one_coordinate_gives_lines_of_solution_residual_and_data(tmp_path):
    data = {"t": [0.5, 1.0], "u": [0.3, 0.6]}
    run = po.steps(po.MLP(1, 1, width=8, depth=3), logistic(), data=data, **SMALL)
    beside = {"residual": equation_residual(run.system), "measured": measured_points(run.system)}
    figure = solution_figure(run.problem, run.solution, tmp_path / "u.png", **beside)
    left, right = figure.axes
    assert titles(figure) == ["$u$", "residual $|r|$"]
    assert right.get_yscale() == "log"
    assert left.lines[1].get_xydata().tolist() == [[0.5, 0.3], [1.0, 0.6]]

"""The best point of a run: kept by validation points alone, ended with, and no step changed by it."""

import math
from types import MappingProxyType

import pytest
import torch

from pinn_odelora.integrators import ROS2, LinearlyImplicit, RungeKutta
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.optim import ImplicitODELoRA, ODELoRA
from pinn_odelora.points import Points
from pinn_odelora.training.evaluation import Evaluator, Standing
from pinn_odelora.training.history import History
from pinn_odelora.training.incumbent import Incumbent, scatters
from pinn_odelora.training.module import Adaptation

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


class Squares:
    """Stands for an evaluator: the loss at x is mean (x - v)² over the points v."""

    def __init__(self, x):
        self.parameters = [torch.nn.Parameter(torch.tensor([x], dtype=torch.float64))]
        self.system = self
        self.count = 0

    layers = MappingProxyType({})
    standing, stand, standing_at, _adapted, _subtracted = (
        getattr(Evaluator, name) for name in ("standing", "stand", "standing_at", "_adapted", "_subtracted")
    )

    def residuals(self, V):
        self.count += 1
        return self.parameters[0] - V["pde"]["v"]

    def loss_of(self, r):
        return type("Loss", (), {"total": r.square().mean()})

    def at(self, x):
        with torch.no_grad():
            self.parameters[0].fill_(x)
        return self


def V(*values):
    return {"pde": Points.from_rows(("v",), torch.tensor(values, dtype=torch.float64)[:, None])}


def test_the_smallest_validation_loss_is_kept_and_counted():
    best, closure = Incumbent(), Squares(0.0)
    kept = []
    for x in (5.0, 3.0, 4.0, math.nan, 2.5, 2.6):
        best.look(closure.at(x), V(2.0, 2.0))
        kept.append(float(best.parameters[0]))
    assert kept == [5.0, 3.0, 3.0, 3.0, 2.5, 2.5]
    assert best.loss == pytest.approx(0.25)
    assert closure.count == 6


def test_more_points_are_judged_by_anew():
    """On two points 2 is best, on four 3 is: what was best by two is held against that by four."""
    best, closure = Incumbent(), Squares(0.0)
    best.look(closure.at(2.0), V(2.0, 2.0))
    assert best.loss == 0
    best.look(closure.at(3.0), V(2.0, 2.0, 4.0, 4.0))
    assert (float(best.parameters[0]), best.loss, best.number) == (3.0, pytest.approx(1.0), 4)
    best.look(closure.at(2.0), V(2.0, 2.0, 4.0, 4.0))
    assert float(best.parameters[0]) == 3.0
    assert closure.count == 4
    assert closure.parameters[0].item() == 2.0


def test_a_first_point_without_a_finite_loss_gives_way():
    best, closure = Incumbent(), Squares(0.0)
    best.look(closure.at(math.nan), V(2.0))
    assert torch.isnan(best.parameters[0])
    best.look(closure.at(7.0), V(2.0))
    assert float(best.parameters[0]) == 7.0


def test_standing_elsewhere_ends_where_it_began_even_by_a_failure():
    closure = Squares(1.0)
    elsewhere = []

    def fail():
        with closure.standing_at(Standing([torch.tensor([4.0])], [])):
            elsewhere.append(closure.parameters[0].item())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert elsewhere == [4.0]
    assert closure.parameters[0].item() == 1.0


def test_schemes_that_choose_their_steps_by_the_steps_own_points_scatter():
    group = lambda: [{"params": [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(2, 3))]}]
    assert scatters(ImplicitODELoRA(group(), LinearlyImplicit()))
    assert scatters(ImplicitODELoRA(group(), ROS2()))
    assert not scatters(ImplicitODELoRA(group(), LinearlyImplicit(h=0.1)))
    assert not scatters(ODELoRA(group(), integrator=RungeKutta(EULER)))
    assert not scatters(torch.optim.Adam(group()))


def path(adapt, compose, monkeypatch, *overrides):
    """The module at the end of a run, its iterates y_0, y_1, … and the history."""
    iterates, step = [], Adaptation._step

    def recording(module, number):
        iterates.append(module.evaluator.standing())
        step(module, number)

    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "_step", recording)
        cfg = compose("points=residual", "points.first=null", "budget.steps=12", "log.every=1", *overrides)
        module, _ = adapt(cfg)
    return module, iterates, History(f"{cfg.output_dir}/history.csv").rows


@pytest.fixture
def both(compose, adapt, tmp_path, monkeypatch):
    kept = path(adapt, compose, monkeypatch, f"output_dir={tmp_path / 'kept'}")
    last = path(adapt, compose, monkeypatch, f"output_dir={tmp_path / 'last'}", "points.validation=false")
    return kept, last


def test_steps_are_the_same_and_the_end_is_the_best_of_them(both):
    (module, iterates, _), (plain, same, _) = both
    assert all(torch.equal(x, y) for a, b in zip(iterates, same, strict=True) for x, y in zip(a[0], b[0], strict=True))
    end = plain.evaluator.standing()
    points = plain.trainer.datamodule.validation(module.growth.rows)
    losses = []
    for x in [*iterates, end]:
        with plain.evaluator.standing_at(x):
            losses.append(float(plain.evaluator.system.loss_of(plain.evaluator.look(points)).total))
    best, _ = [*iterates, end][losses.index(min(losses))]
    assert all(torch.equal(p, x) for p, x in zip(module.evaluator.parameters, best, strict=True))
    assert module.incumbent.loss == pytest.approx(min(losses), rel=1e-12)


def test_rows_tell_of_the_best_point_and_of_the_iterate(both):
    (module, _, rows), (*_, plain_rows) = both
    assert [row["stability/iterate_loss"] for row in rows[:-1]] == [
        row["stability/heldout_loss"] for row in plain_rows[:-1]
    ]
    assert all(row["stability/iterate_loss"] == row["stability/heldout_loss"] for row in plain_rows)
    assert rows[-1]["error/rel_l2"] == module.yardstick.errors()["error/rel_l2"]
    assert rows[-1]["stability/heldout_loss"] == module.yardstick.loss() == module.progress.heldout_loss
    assert [row["loss"] for row in rows[:-1]] == [row["loss"] for row in plain_rows[:-1]]


def test_every_look_counts_as_an_evaluation(both):
    (module, iterates, _), (plain, *_) = both
    # One for every iterate, the last one included.
    assert module.progress.gradient_evals - plain.progress.gradient_evals == len(iterates) + 1


def test_validation_points_are_no_steps(both):
    (_, _, _), (plain, _, _) = both
    stream = plain.trainer.datamodule
    V = stream.validation(20)["pde"]
    assert torch.equal(V["x"], stream.validation(20)["pde"]["x"])
    assert V.number == stream.draw(0, 20).points["pde"].number
    assert all(not bool(torch.isin(V["x"], stream.draw(k, 20).points["pde"]["x"]).any()) for k in range(20))

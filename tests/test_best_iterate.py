"""The best point of a run: kept by validation points alone, ended with, and no step changed by it."""

import math
from copy import copy
from dataclasses import asdict
from types import MappingProxyType

import pytest
import torch

from pinn_odelora.integrators import ROS2, LinearlyImplicit, RungeKutta
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.lightning.module import Adaptation
from pinn_odelora.objective import Evaluator, Standing
from pinn_odelora.optim import ImplicitODELoRA, ODELoRA
from pinn_odelora.points import Points
from pinn_odelora.runs.history import History
from pinn_odelora.sampling.residual_sampling import effective_number
from pinn_odelora.selection.best_iterate import Incumbent, lower, more, scatters

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
        return {"pde": self.parameters[0] - V["pde"]["v"]}

    def weighted(self, name, r):
        return r

    def loss_of(self, r):
        return type("Loss", (), {"total": r["pde"].square().mean()})

    def at(self, x):
        with torch.no_grad():
            self.parameters[0].fill_(x)
        return self


def V(*values):
    return {"pde": Points.from_rows(("v",), torch.tensor(values, dtype=torch.float64)[:, None])}


def many(times):
    """So many that carry the loss alike that nothing has to be asked twice."""
    return V(*[2.0] * 200 * times)


def rounds(best, closure, *found, few=None, all_=many):
    """Rounds of looks at the given places; where the best point so far is after each of them."""
    kept = []
    for places in found:
        for x in places:
            best.look(closure.at(x), few or V(2.0, 2.0))
        best.close(closure, all_)
        kept.append(float(best.best.parameters[0]))
    return kept


def test_the_best_of_a_round_is_kept_and_every_loss_is_counted():
    best, closure = Incumbent(), Squares(0.0)
    assert rounds(best, closure, [5.0], [4.0, 3.0, 3.5], [4.0, math.nan], [2.6, 2.5]) == [5.0, 3.0, 3.0, 2.5]
    assert best.best.loss == pytest.approx(0.25)
    assert closure.count == 8 + 4
    assert closure.parameters[0].item() == 2.5  # a round ends where the network stands


def test_a_challenger_has_to_be_better_by_a_standard_error():
    """Of 200 points that carry the loss alike: by 1 - exp(-1/√200), 6.8 %."""
    best, closure = Incumbent(), Squares(0.0)
    assert rounds(best, closure, [12.0], [2 + 9.66], [2 + 9.65]) == [12.0, 12.0, 11.65]


def test_where_few_points_carry_the_loss_it_is_by_five_of_more_points():
    """40 points at 4 times as many as 10: by 1 - exp(-5/√40), 55 %, whatever the 10 points say."""
    best, closure = Incumbent(), Squares(0.0)
    all_ = lambda times: V(*[2.0] * 10 * times)
    assert rounds(best, closure, [12.0], [8.75], [8.72], all_=all_) == [12.0, 12.0, 8.72]


def test_the_margin_is_that_of_a_standard_error(generator):
    """Against losses of many samples: relative to its mean, their scatter is 1/√N of one of them, up to 1/√n."""
    r = torch.randn(2000, 500, generator=generator, dtype=torch.float64) ** 3
    loss = r.square().mean(dim=1)
    carriers = [effective_number(x.abs()) for x in r]
    standard_error = [math.sqrt(1 / N - 1 / r.shape[1]) for N in carriers]
    assert float(loss.std() / loss.mean()) == pytest.approx(sum(standard_error) / len(carriers), rel=0.2)
    assert lower(math.exp(-3.01 / math.sqrt(50)), 50, 1.0, 3)
    assert not lower(math.exp(-2.99 / math.sqrt(50)), 50, 1.0, 3)


def test_a_loss_of_zero_is_lower_and_one_that_is_no_number_is_not():
    assert lower(0.0, math.nan, 1e-30, 6)
    assert not lower(0.0, math.nan, 0.0, 6)
    assert not lower(math.inf, math.nan, math.inf, 6)


def test_the_few_points_choose_the_challenger_and_all_of_them_judge_it():
    """By the one point 3 is best, by the two 2 is: it is never asked."""
    best, closure = Incumbent(), Squares(0.0)
    assert rounds(best, closure, [9.0], [2.0, 3.0], few=V(3.0)) == [9.0, 3.0]
    assert best.best.loss == pytest.approx(1.0)


@pytest.mark.parametrize(("others", "end"), [(1.0, 2.5), (12.0, 12.0)])
def test_where_few_points_carry_the_loss_more_of_them_decide(others, end):
    """2.5 is better than 12 by the two points at 2, and by six others at 1, but not by six at 12."""
    best, closure = Incumbent(), Squares(0.0)
    all_ = lambda times: V(2.0, 2.0) if times == 1 else V(*[2.0] * 2, *[others] * 6)
    assert rounds(best, closure, [12.0], [2.5], all_=all_) == [12.0, end]
    losses = {x: (2 * (x - 2) ** 2 + 6 * (x - others) ** 2) / 8 for x in (2.5, 12.0)}
    assert best.best.sure[4][0] == pytest.approx(losses[end])
    assert closure.count == 2 + 2 + 2  # the losses by more points of both


@pytest.mark.parametrize(("carriers", "times"), [(99, 2), (50, 2), (49.9, 4), (25, 4), (3, 4)])
def test_so_many_more_are_asked_that_enough_of_them_carry_the_loss(carriers, times):
    assert more(carriers) == times


def test_a_loss_by_more_points_is_asked_once():
    """Each of three rounds asks by its own number, and only what it does not know: carriers 50, 50 and 20."""
    best, closure, asked = Incumbent(), Squares(0.0), []
    sizes = iter([200, 50, 50, 20])

    def all_(times):
        asked.append(times)
        return V(*[2.0] * (next(sizes) if times == 1 else 10 * times))

    rounds(best, closure, [12.0], [9.0], [6.0], [4.0], all_=all_)
    assert asked == [1, 1, 2, 2, 1, 2, 1, 4, 4]
    assert best.best.sure == {4: pytest.approx((4.0, 40.0))}


def test_a_copy_that_ends_its_round_leaves_the_run_as_it_is():
    """So is a run measured in the race."""
    best, closure = Incumbent(), Squares(0.0)
    rounds(best, closure, [12.0])
    best.look(closure.at(3.0), V(3.5))
    before = asdict(best)
    copied = copy(best)
    copied.close(closure, lambda times: V(2.0, 2.5))
    assert float(copied.best.parameters[0]) == 3.0
    assert copied.best.sure
    assert asdict(best) == before


def test_a_round_without_a_look_changes_nothing():
    best, closure = Incumbent(), Squares(4.0)
    best.close(closure, many)
    assert best.standing is None
    assert closure.count == 0


def test_a_first_point_without_a_finite_loss_gives_way():
    best, closure = Incumbent(), Squares(0.0)
    first, second = rounds(best, closure, [math.nan], [7.0])
    assert math.isnan(first)
    assert second == 7.0


def test_what_is_saved_is_what_is_loaded():
    best, closure = Incumbent(), Squares(0.0)
    rounds(best, closure, [8.0], [2.25], all_=lambda times: V(2.0))
    best.look(closure.at(3.0), V(2.0))
    loaded = Incumbent.loaded(asdict(best))
    assert (float(loaded.best.parameters[0]), loaded.best.loss, loaded.best.sure) == (2.25, 0.0625, {4: (0.0625, 1.0)})
    assert (float(loaded.challenger.parameters[0]), loaded.challenger.loss) == (3.0, 1.0)


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
        cfg = compose(
            "points=residual", "points.interior=150", "points.first=null", "budget.steps=12", "log.every=1", *overrides
        )
        module, _ = adapt(cfg)
    return module, iterates, History(f"{cfg.output_dir}/history.csv").rows


@pytest.fixture
def both(compose, adapt, tmp_path, monkeypatch):
    kept = path(adapt, compose, monkeypatch, f"output_dir={tmp_path / 'kept'}")
    last = path(adapt, compose, monkeypatch, f"output_dir={tmp_path / 'last'}", "points.validation=false")
    return kept, last


def test_steps_are_the_same_and_the_end_is_the_best_of_them(both):
    """Rounds of y_0, y_1 to y_5, y_6 to y_10, and what is left, as the definition has it; every loss is counted."""
    (module, iterates, _), (plain, same, _) = both
    assert all(torch.equal(x, y) for a, b in zip(iterates, same, strict=True) for x, y in zip(a[0], b[0], strict=True))
    stream, y = plain.trainer.datamodule, [*iterates, plain.evaluator.standing()]
    asked = set()

    def judged(x, rows):
        """L by so many rows, and N = (Σr²)² / Σr⁴ of them."""
        asked.add((id(x), rows))
        with plain.evaluator.standing_at(x):
            r = plain.evaluator.look(stream.validation(rows))["pde"][:, 0]
        return float(r.square().mean()), float(r.square().sum() ** 2 / r.pow(4).sum())

    def lower(x, y, rows, errors):
        (loss, N), (other, _) = judged(x, rows), judged(y, rows)
        return loss < math.exp(-errors / math.sqrt(N)) * other

    def better(x, y):
        _, N = judged(x, stream.total)
        times = 2 if N >= 50 else 4
        return lower(x, y, stream.total, 1) and (N >= 100 or lower(x, y, times * stream.total, 5))

    few = lambda x: judged(x, stream.total // 10)[0]
    few(y[0])
    best = y[0]
    for first, last in ((1, 5), (6, 10), (11, 12)):
        challenger = min(y[first : last + 1], key=few)
        best = challenger if better(challenger, best) else best
    assert best is not y[0]
    assert all(torch.equal(p, x) for p, x in zip(module.evaluator.parameters, best.parameters, strict=True))
    assert module.incumbent.best.loss == pytest.approx(judged(best, stream.total)[0], rel=1e-12)
    assert module.progress.gradient_evals - plain.progress.gradient_evals == len(asked)


def test_rows_tell_of_the_best_point_and_of_the_iterate(both):
    (module, _, rows), (*_, plain_rows) = both
    assert [row["stability/iterate_loss"] for row in rows[:-1]] == [
        row["stability/heldout_loss"] for row in plain_rows[:-1]
    ]
    assert all(row["stability/iterate_loss"] == row["stability/heldout_loss"] for row in plain_rows)
    assert rows[-1]["error/rel_l2"] == module.yardstick.errors()["error/rel_l2"]
    assert rows[-1]["stability/heldout_loss"] == module.yardstick.loss() == module.progress.heldout_loss
    assert [row["loss"] for row in rows[:-1]] == [row["loss"] for row in plain_rows[:-1]]


def test_validation_points_are_no_steps(both):
    (_, _, _), (plain, _, _) = both
    stream = plain.trainer.datamodule
    V = stream.validation(20)["pde"]
    assert torch.equal(V["x"], stream.validation(20)["pde"]["x"])
    assert V.number == stream.draw(0, 20).kept
    assert all(not bool(torch.isin(V["x"], stream.draw(k, 20).points["pde"]["x"]).any()) for k in range(20))

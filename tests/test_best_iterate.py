"""The best iterate of a run: found on validation points alone, returned, and no step changed by it."""

import math
from copy import copy
from dataclasses import asdict
from types import MappingProxyType

import pytest
import torch

from pinn_odelora import loop
from pinn_odelora.integrators import RKC, ROS2, LinearlyImplicit, RungeKutta
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.methods import full_adam, full_implicit, lora_adam, lora_gd, odelora
from pinn_odelora.objective import Objective, Snapshot
from pinn_odelora.points import Points
from pinn_odelora.sampling.residual_sampling import effective_sample_size
from pinn_odelora.selection.best_iterate import BestIterate, lower, more

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


class Squares:
    """Stands for an objective: the loss at x is mean (x - v)² over the points v."""

    def __init__(self, x):
        self.parameters = [torch.nn.Parameter(torch.tensor([x], dtype=torch.float64))]
        self.system = self
        self.count = 0

    layers = MappingProxyType({})
    snapshot, restore, restored, _adapted, _subtracted = (
        getattr(Objective, name) for name in ("snapshot", "restore", "restored", "_adapted", "_subtracted")
    )

    def residuals_at(self, V):
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
    """So large an effective sample size that one evaluation decides."""
    return V(*[2.0] * 200 * times)


def rounds(best, objective, *found, few=None, all_=many):
    """Rounds of the given iterates; where the best one so far is after each of them."""
    kept = []
    for places in found:
        for x in places:
            best.consider(objective.at(x), few or V(2.0, 2.0))
        best.close(objective, all_)
        kept.append(float(best.best.parameters[0]))
    return kept


def test_the_best_of_a_round_is_kept_and_every_loss_is_counted():
    best, objective = BestIterate(), Squares(0.0)
    assert rounds(best, objective, [5.0], [4.0, 3.0, 3.5], [4.0, math.nan], [2.6, 2.5]) == [5.0, 3.0, 3.0, 2.5]
    assert best.best.loss == pytest.approx(0.25)
    assert objective.count == 8 + 4
    assert objective.parameters[0].item() == 2.5  # a round leaves the network where it is


def test_a_candidate_has_to_be_better_by_a_standard_error():
    """With an effective sample size of 200: by 1 - exp(-1/√200), 6.8 %."""
    best, objective = BestIterate(), Squares(0.0)
    assert rounds(best, objective, [12.0], [2 + 9.66], [2 + 9.65]) == [12.0, 12.0, 11.65]


def test_where_the_effective_sample_size_is_small_it_is_by_five_on_more_points():
    """40 points at 4 times as many as 10: by 1 - exp(-5/√40), 55 %, whatever the 10 points say."""
    best, objective = BestIterate(), Squares(0.0)
    all_ = lambda times: V(*[2.0] * 10 * times)
    assert rounds(best, objective, [12.0], [8.75], [8.72], all_=all_) == [12.0, 12.0, 8.72]


def test_the_margin_is_that_of_a_standard_error(generator):
    """Against losses of many samples: relative to its mean, their scatter is 1/√N of one of them, up to 1/√n."""
    r = torch.randn(2000, 500, generator=generator, dtype=torch.float64) ** 3
    loss = r.square().mean(dim=1)
    effective = [effective_sample_size(x.abs()) for x in r]
    standard_error = [math.sqrt(1 / N - 1 / r.shape[1]) for N in effective]
    assert float(loss.std() / loss.mean()) == pytest.approx(sum(standard_error) / len(effective), rel=0.2)
    assert lower(math.exp(-3.01 / math.sqrt(50)), 50, 1.0, 3)
    assert not lower(math.exp(-2.99 / math.sqrt(50)), 50, 1.0, 3)


def test_a_loss_of_zero_is_lower_and_one_that_is_no_number_is_not():
    assert lower(0.0, math.nan, 1e-30, 6)
    assert not lower(0.0, math.nan, 0.0, 6)
    assert not lower(math.inf, math.nan, math.inf, 6)


def test_a_tenth_of_the_points_chooses_the_candidate_and_all_of_them_judge_it():
    """By the one point 3 is best, by the two 2 is: it is never compared."""
    best, objective = BestIterate(), Squares(0.0)
    assert rounds(best, objective, [9.0], [2.0, 3.0], few=V(3.0)) == [9.0, 3.0]
    assert best.best.loss == pytest.approx(1.0)


@pytest.mark.parametrize(("others", "end"), [(1.0, 2.5), (12.0, 12.0)])
def test_where_the_effective_sample_size_is_small_more_points_decide(others, end):
    """2.5 is better than 12 by the two points at 2, and by six others at 1, but not by six at 12."""
    best, objective = BestIterate(), Squares(0.0)
    all_ = lambda times: V(2.0, 2.0) if times == 1 else V(*[2.0] * 2, *[others] * 6)
    assert rounds(best, objective, [12.0], [2.5], all_=all_) == [12.0, end]
    losses = {x: (2 * (x - 2) ** 2 + 6 * (x - others) ** 2) / 8 for x in (2.5, 12.0)}
    assert best.best.on_more[4][0] == pytest.approx(losses[end])
    assert objective.count == 2 + 2 + 2  # the losses of both on more points


@pytest.mark.parametrize(("effective", "times"), [(99, 2), (50, 2), (49.9, 4), (25, 4), (3, 4)])
def test_so_many_more_points_are_taken_that_the_effective_sample_size_suffices(effective, times):
    assert more(effective) == times


def test_a_loss_on_more_points_is_evaluated_once():
    """Each of three rounds at its own number, and only what is not known: effective sample sizes 50, 50 and 20."""
    best, objective, asked = BestIterate(), Squares(0.0), []
    sizes = iter([200, 50, 50, 20])

    def all_(times):
        asked.append(times)
        return V(*[2.0] * (next(sizes) if times == 1 else 10 * times))

    rounds(best, objective, [12.0], [9.0], [6.0], [4.0], all_=all_)
    assert asked == [1, 1, 2, 2, 1, 2, 1, 4, 4]
    assert best.best.on_more == {4: pytest.approx((4.0, 40.0))}


def test_a_copy_that_ends_its_round_leaves_the_run_as_it_is():
    """So is a run measured in the race."""
    best, objective = BestIterate(), Squares(0.0)
    rounds(best, objective, [12.0])
    best.consider(objective.at(3.0), V(3.5))
    before = asdict(best)
    copied = copy(best)
    copied.close(objective, lambda times: V(2.0, 2.5))
    assert float(copied.best.parameters[0]) == 3.0
    assert copied.best.on_more
    assert asdict(best) == before


def test_a_round_without_an_iterate_changes_nothing():
    best, objective = BestIterate(), Squares(4.0)
    best.close(objective, many)
    assert best.snapshot is None
    assert objective.count == 0


def test_a_first_iterate_without_a_finite_loss_gives_way():
    best, objective = BestIterate(), Squares(0.0)
    first, second = rounds(best, objective, [math.nan], [7.0])
    assert math.isnan(first)
    assert second == 7.0


def test_what_is_saved_is_what_is_loaded():
    best, objective = BestIterate(), Squares(0.0)
    rounds(best, objective, [8.0], [2.25], all_=lambda times: V(2.0))
    best.consider(objective.at(3.0), V(2.0))
    loaded = BestIterate.loaded(asdict(best))
    assert (float(loaded.best.parameters[0]), loaded.best.loss, loaded.best.on_more) == (
        2.25,
        0.0625,
        {4: (0.0625, 1.0)},
    )
    assert (float(loaded.candidate.parameters[0]), loaded.candidate.loss) == (3.0, 1.0)


def test_a_restored_snapshot_ends_where_it_began_even_by_a_failure():
    objective = Squares(1.0)
    elsewhere = []

    def fail():
        with objective.restored(Snapshot([torch.tensor([4.0])], [])):
            elsewhere.append(objective.parameters[0].item())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert elsewhere == [4.0]
    assert objective.parameters[0].item() == 1.0


@pytest.mark.parametrize(
    ("method", "judges"),
    [
        (odelora(LinearlyImplicit()), True),
        (odelora(ROS2()), True),
        (lora_gd(LinearlyImplicit()), True),
        (full_implicit(LinearlyImplicit()), True),
        (odelora(LinearlyImplicit(h=0.1)), False),
        (odelora(RungeKutta(EULER)), False),
        (odelora(RKC()), False),
        (lora_adam(), False),
        (full_adam(), False),
    ],
)
def test_schemes_that_choose_their_steps_by_the_steps_own_points_return_the_best_iterate(method, judges):
    assert method.judges_own_points == judges


def path(run, compose, monkeypatch, *overrides):
    """The run, and its iterates y_0, y_1, …"""
    iterates, step = [], loop._step

    def recording(training):
        iterates.append(training.objective.snapshot())
        return step(training)

    with monkeypatch.context() as patch:
        cfg = compose(
            *("points=residual", "points.interior=150", "points.initial_batch_size=null", "pretrain.adam_steps=0"),
            *("budget.steps=12", "log.every=1", *overrides),
        )
        patch.setattr(loop, "_step", recording)
        return run(cfg), iterates


@pytest.fixture
def both(compose, run, tmp_path, monkeypatch):
    best = path(run, compose, monkeypatch, f"output_dir={tmp_path / 'best'}")
    last = path(run, compose, monkeypatch, f"output_dir={tmp_path / 'last'}", "points.best_iterate=false")
    return best, last


def test_steps_are_the_same_and_the_end_is_the_best_of_them(both):
    """Rounds of y_0, y_1 to y_5, y_6 to y_10, and what is left, as the definition has it; every loss is counted."""
    (done, iterates), (plain, same) = both
    assert len(iterates) == 12
    assert all(torch.equal(x, y) for a, b in zip(iterates, same, strict=True) for x, y in zip(a[0], b[0], strict=True))
    sampler, objective = plain.training.sampler, plain.training.objective
    y = [*iterates, objective.snapshot()]
    evaluated = set()

    def judged(x, size):
        """L on so many residuals, and N = (Σr²)² / Σr⁴ of them."""
        evaluated.add((id(x), size))
        with objective.restored(x):
            r = objective.uncounted(sampler.validation(size))["pde"][:, 0]
        return float(r.square().mean()), float(r.square().sum() ** 2 / r.pow(4).sum())

    def lower(x, y, size, errors):
        (loss, N), (other, _) = judged(x, size), judged(y, size)
        return loss < math.exp(-errors / math.sqrt(N)) * other

    def better(x, y):
        _, N = judged(x, sampler.total)
        times = 2 if N >= 50 else 4
        return lower(x, y, sampler.total, 1) and (N >= 100 or lower(x, y, times * sampler.total, 5))

    few = lambda x: judged(x, sampler.total // 10)[0]
    few(y[0])
    best = y[0]
    for first, last in ((1, 5), (6, 10), (11, 12)):
        candidate = min(y[first : last + 1], key=few)
        best = candidate if better(candidate, best) else best
    assert best is not y[0]
    assert all(torch.equal(p, x) for p, x in zip(done.training.objective.parameters, best.parameters, strict=True))
    assert done.training.best.best.loss == pytest.approx(judged(best, sampler.total)[0], rel=1e-12)
    assert done.progress.gradient_evals - plain.progress.gradient_evals == len(evaluated)


def test_rows_describe_the_best_iterate_and_the_last_one(both):
    (done, _), (plain, _) = both
    rows, plain_rows = done.adaptation.history, plain.adaptation.history
    assert [row["stability/iterate_loss"] for row in rows[:-1]] == [
        row["stability/heldout_loss"] for row in plain_rows[:-1]
    ]
    assert all(row["stability/iterate_loss"] == row["stability/heldout_loss"] for row in plain_rows)
    reference = done.adaptation.diagnostics.reference
    assert rows[-1]["error/rel_l2"] == reference.errors()["error/rel_l2"]
    assert rows[-1]["stability/heldout_loss"] == reference.loss() == done.progress.heldout_loss
    assert [row["loss"] for row in rows[:-1]] == [row["loss"] for row in plain_rows[:-1]]


def test_validation_points_are_no_steps(both):
    _, (plain, _) = both
    sampler = plain.training.sampler
    V = sampler.validation(20)["pde"]
    assert torch.equal(V["x"], sampler.validation(20)["pde"]["x"])
    assert V.number == sampler.draw(0, 20).kept
    assert all(not bool(torch.isin(V["x"], sampler.draw(k, 20).points["pde"]["x"]).any()) for k in range(20))

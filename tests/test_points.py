"""The points of a step: how many, where, and how their number grows."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.nets import MLP
from pinn_odelora.objective import Evaluator
from pinn_odelora.points import Points
from pinn_odelora.runs.history import History
from pinn_odelora.sampling.batch_size import Ended, Growth, ended, serve
from pinn_odelora.sampling.residual_sampling import candidates, effective_number, followed
from pinn_odelora.sampling.sampler import PointStream
from pinn_odelora.selection.initial_rank import components
from pinn_odelora.system import Solution, System
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


def numbers(points):
    return {name: p.number for name, p in points.items()}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"residual": 0.5}, "points.residual is 0.5 with points.fresh=false"),
        ({"first": 20}, "points.first is 20 with points.fresh=false"),
    ],
)
def test_fixed_points_neither_follow_nor_grow(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        PointStream({}, fresh=False, **settings)


def test_points_follow_the_residual():
    """Two thirds of the points from candidates of which a quarter has a residual eight times the others'."""
    terms = Burgers(conditions="soft").loss_terms()
    stream = PointStream(terms, 900, 10, seed=2, fresh=True, residual=2 / 3)
    draw = stream.draw(5)
    assert draw.points["pde"].number == 1800
    inside = lambda p: (p.x > 0.5).squeeze(1)
    residuals = lambda points: {"pde": torch.where(points["pde"].x > 0.5, 8.0, -1.0)}
    chosen = stream.chosen(draw, residuals)
    p, share = draw.points["pde"], float(inside(chosen.points["pde"]).double().mean())
    weights = torch.where(inside(p), 8.0, 1.0)
    chance = weights / weights.mean() + 0.2
    # Drawing without replacement evens the shares out; between even and proportional to the chances.
    assert 0.25 < float(inside(p).double().mean()) + 0.05 < share < float(chance[inside(p)].sum() / chance.sum())
    assert chosen.points["pde"].number == 900
    assert len({tuple(row) for row in chosen.points["pde"].rows(["x", "t"]).tolist()}) == 900
    for name in ("ic", "bc"):
        assert chosen.points[name] is draw.points[name]
    again = stream.chosen(draw, residuals)
    torch.testing.assert_close(again.points["pde"].x, chosen.points["pde"].x, rtol=0, atol=0)
    nothing = stream.chosen(draw, lambda points: {"pde": torch.zeros(1800, 1)})
    assert isinstance(nothing.points["pde"], Points)
    assert nothing.points["pde"].number == 900


def test_the_effective_number_is_that_of_equal_summands():
    few = torch.zeros(1000, dtype=torch.float64)
    few[::125] = 3.0
    assert effective_number(few) == pytest.approx(8)
    assert effective_number(torch.full((70,), 2.0)) == pytest.approx(70)
    assert math.isnan(effective_number(torch.zeros(5)))


@pytest.mark.parametrize(("width", "asked"), [(0.5, [200]), (0.02, [200, 800])])
def test_more_candidates_are_asked_where_few_carry_the_loss(width, asked, generator):
    """A layer that holds half of the candidates, and one that holds two of a hundred: four of the first 200."""
    x = torch.linspace(0, 1, 1000, dtype=torch.float64)[torch.randperm(1000, generator=generator)][:, None]
    numbers = []

    def residual(p):
        numbers.append(p.number)
        return torch.where(p.x < width, 1.0, 1e-3)

    p = followed(Points(x=x), 100, 0.3, residual, generator)
    inside = int((p.x < width).sum())
    assert numbers == asked
    assert p.number == len(set(p.x[:, 0].tolist())) == 100
    # Nearly all that there are in the thin layer, and not only those four; half and more of the wide one.
    assert (inside >= 15) if width < 0.1 else (50 <= inside <= 75)


def test_candidates_are_bounded_by_what_is_enough_for_all_points():
    assert [candidates(n, 8000) for n in (10, 400, 800, 801, 4000, 5000)] == [100, 4000, 8000, 8000, 8000, 10000]
    stream = PointStream(Burgers().loss_terms(), 4000, 200, fresh=True, residual=0.3, first=125)
    for rows, drawn in ((125, 1250), (800, 8000), (4000, 8000)):
        draw = stream.draw(3, rows)
        assert (draw.points["pde"].number, draw.kept) == (drawn, rows)


@pytest.mark.parametrize("rows", [None, 10_000, 2000])
def test_a_row_budget_thins_all_points_of_a_system_alike(rows):
    terms, each = Kovasznay().loss_terms(), {"pde": 3, "bc": 2, "outflow": 1}
    stream = PointStream(terms, 2000, 200, fresh=True, rows=rows, components=each)
    number = {name: p.number for name, p in stream.draw(3).points.items()}
    share = min(1, (rows or math.inf) / (3 * 2000 + 2 * 200 + 200))
    assert number == {"pde": round(2000 * share), "bc": round(200 * share), "outflow": round(200 * share)}
    following = PointStream(terms, 2000, 200, fresh=True, residual=0.3, rows=rows, components=each)
    chosen = following.chosen(following.draw(3), lambda points: {n: torch.ones(p.number, 3) for n, p in points.items()})
    assert {name: p.number for name, p in chosen.points.items()} == number


@pytest.mark.parametrize("residual", [0.0, 0.3])
def test_a_draw_of_fewer_rows_is_thinned_alike_and_stays_a_function_of_its_number(residual):
    terms = Burgers(conditions="soft").loss_terms()
    stream = PointStream(terms, 1000, 100, fresh=True, rows=900, first=60, residual=residual)
    assert (stream.total, stream.most, stream.first) == (1200, 900, 60)
    even = lambda points: {name: torch.ones(p.number, 1) for name, p in points.items()}
    few, all_ = (stream.chosen(stream.draw(4, rows), even).points for rows in (60, None))
    assert numbers(few) == {"pde": 50, "ic": 5, "bc": 5}
    assert numbers(all_) == {"pde": 750, "ic": 75, "bc": 75}
    stream.draw(9, 700)
    again = stream.chosen(stream.draw(4, 60), even).points
    assert torch.equal(again["pde"].x, few["pde"].x)


def test_measured_points_are_all_taken_and_do_not_count():
    measured = Points({"x": torch.zeros(30, 1), "t": torch.zeros(30, 1)})
    terms = {**Burgers(conditions="soft").loss_terms(), "data": Term(Cloud(measured), lambda field: field.u)}
    stream = PointStream(terms, 1000, 100, fresh=True, rows=600, first=60)
    assert numbers(stream.draw(0).points) == {"pde": 500, "ic": 50, "bc": 50, "data": 30}
    assert numbers(stream.draw(0, 60).points) == {"pde": 50, "ic": 5, "bc": 5, "data": 30}
    assert (stream.first, stream.most, stream.still) == (60, 600, ["data"])


def test_fixed_points_are_drawn_once():
    stream = PointStream(Burgers().loss_terms(), 50, 10)
    assert stream.draw(0) is stream.draw(7)


def looked_back(growth, gaps, fall=1.0, price=2.0, most=1000, columns=0, enough=0):
    """After steps that leave a loss on their own points of which the next find the given multiples.

    From step to step the loss where they begin falls by the factor ``fall``.
    """
    began = 1.0
    growth.began, growth.ended = began * fall, began / gaps[0]
    for ahead in [*gaps[1:], 1.0]:
        growth.look_back(most, began, Ended(began / fall / ahead, price, columns), enough=enough)
        assert growth.began == began
        began /= fall
    return growth


def test_rows_double_where_the_next_points_keep_showing_more_than_half_as_much_again():
    # Means of log q with weights 1/2, 1/4, …: once 1.5² = 2.25, or 1.6 three times; 1.4 never suffices.
    assert [looked_back(Growth(100), [q]).rows for q in (2.2, 2.3)] == [100, 200]
    assert [looked_back(Growth(100), [1.6] * n).rows for n in (2, 3)] == [100, 200]
    assert looked_back(Growth(100), [1.4] * 50).rows == 100
    assert looked_back(Growth(100), [0.5, 2.3]).rows == 100
    # Begun anew after a doubling, but the next gap is still that of the step before it.
    assert looked_back(Growth(100), [9.0, 2.2]).rows == 200
    assert looked_back(Growth(100), [9.0, 2.3]).rows == 400
    assert looked_back(Growth(800), [9.0]).rows == 1000


@pytest.mark.parametrize(
    ("rows", "columns", "most", "expected"),
    [
        (500, 3201, 4000, 800),  # not 1,000: 800 are enough, and 1,600 would do no more
        (300, 3201, 4000, 600),
        (1000, 3201, 4000, 1000),  # nothing is taken back
        (500, 2000, 4000, 800),  # also where 4,000 would pass the peak
        (500, 1599, 3000, 1000),  # 800 are above P/2
        (500, 1600, 3000, 800),
        (2000, 3999, 4000, 4000),  # on the peak already
        (2000, 1000, 4000, 4000),  # 800 are above P/2: the peak is passed
        (500, 50_000, 4000, 800),  # as far below the peak with all rows
    ],
)
def test_rows_rest_below_the_peak_of_double_descent_where_enough_of_them_lie_there(rows, columns, most, expected):
    assert looked_back(Growth(rows), [2.3], most=most, columns=columns, enough=800).rows == expected
    assert looked_back(Growth(rows), [2.3], most=most, enough=800).rows == 2 * rows  # P not known


@pytest.mark.parametrize("first", [125, 1000, None])
def test_enough_rows_are_the_fewest_with_eight_hundred_points_inside(first):
    for problem, each in ((Burgers(conditions="soft"), {}), (Kovasznay(), {"pde": 3, "bc": 2})):
        stream = PointStream(problem.loss_terms(), 4000, 200, fresh=True, rows=4000, components=each, first=first)
        inside = lambda rows, stream=stream: numbers(stream.draw(0, rows).points)["pde"]
        assert inside(stream.enough) == 800


@pytest.mark.parametrize("each", [2.0, 4.0])
@pytest.mark.parametrize("enough", [1000, 4000, 8000])
def test_ranks_are_served_where_rows_would_rest_above_or_below_the_peak(each, enough):
    """Steps that always meet their own points only: rows double until the test says that they may not."""
    for columns in range(100, 20000, 173):
        rows = looked_back(Growth(125), [8.0] * 12, most=4000, columns=columns, enough=enough).rows
        above, below = rows >= each * columns, rows == enough and columns / 4 <= rows <= columns / 2
        assert serve(columns, 4000, enough, each) == (above or below)
    assert serve(999, 4000, 1000, 4)
    assert not serve(1728, 4000, 1000, 4)
    assert serve(1728, 4000, 800, 4)
    assert serve(3072, 4000, 1000, 4)
    assert not serve(3072, 4000, 4000, 4)


@pytest.mark.parametrize(("price", "enough"), [(2.0, 2), (4.0, 6)])
def test_rows_do_not_double_while_the_loss_falls_faster_than_twice_as_many_could_pay_for(price, enough):
    fall = 1.3
    gaps = lambda times: [fall ** (times * enough)] * 60
    assert looked_back(Growth(1), gaps(0.95), fall, price, most=10**6).rows == 1
    assert looked_back(Growth(1), gaps(1.05), fall, price, most=10**6).rows > 1


def test_the_gap_is_that_of_the_points_that_change_and_the_fall_that_of_all():
    """Measured values: their part of the loss falls from step to step too, and is known where a step begins."""
    bare, beside, still = Growth(100), Growth(100), [0.9, 0.4, 0.3, 0.3]
    for began, end, before, after in zip((1.0, 0.5, 0.2), (0.3, 0.2, 0.1), still, still[1:], strict=False):
        bare.look_back(1000, began, Ended(end, 2.0))
        beside.look_back(1000, began + before, Ended(end + after, 2.0), before)
    assert beside.gap == pytest.approx(bare.gap, rel=1e-12)
    assert bare.gap > 0.1
    falls = [math.log(1.9 / 0.9), math.log(0.9 / 0.5)]
    assert beside.fall == pytest.approx((3 * falls[0] + falls[1]) / 4, rel=1e-12)
    assert bare.fall == pytest.approx((3 * math.log(2) + math.log(2.5)) / 4, rel=1e-12)


def test_a_fall_is_averaged_over_about_four_steps():
    growth = Growth(100, began=8.0, ended=1.0)
    for began in (4.0, 2.0, 2.0, 2.0):
        growth.look_back(1000, began, Ended(1.9, 2.0))
    assert growth.fall == pytest.approx(math.log(2) * (3 / 4) ** 2)


def test_nothing_is_concluded_from_what_is_not_known():
    growth = Growth(100)
    growth.look_back(1000, 9.0, Ended(0.5, 2.0))
    assert growth == Growth(100, began=9.0, ended=0.5)
    growth.look_back(1000, 9.0, Ended(None, 2.0))
    assert growth.rows == 1000


@pytest.mark.parametrize(("began", "ended"), [(0.0, 0.5), (9.0, 0.0), (9.0, math.inf)])
def test_losses_without_a_logarithm_tell_nothing(began, ended):
    growth = Growth(100, began=1.0, ended=ended)
    growth.look_back(1000, began, Ended(0.5, 2.0))
    assert growth == Growth(100, began=began, ended=0.5)


def test_so_few_points_that_none_follow_the_residual():
    stream = PointStream(Burgers().loss_terms(), 100, 10, fresh=True, residual=0.3, first=1)
    points = stream.chosen(stream.draw(0, 1), lambda p: {n: torch.ones(x.number, 1) for n, x in p.items()}).points
    assert numbers(points) == {"pde": 1}


def test_a_kernel_of_the_rows_makes_twice_as_many_dearer():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert ended(optimizer) == (None, 2, 0)
    for form, price in (("normal", 2), ("kernel", 4), ("pairs", 4), ("cg", 2)):
        optimizer.param_groups[0]["memory"] = {"form": form, "ended": 0.3, "columns": 7}
        assert ended(optimizer) == (0.3, price, 7)


@pytest.fixture
def rows_of_a_run(compose, adapt, monkeypatch):
    """Those that are logged, once they are found to be those of the points."""
    taken, begin = [], Evaluator.begin

    def beginning(evaluator, draw):
        taken.append(sum(p.number for p in draw.points.values()))
        begin(evaluator, draw)

    def ran(*overrides):
        cfg = compose("points=residual", "points.interior=300", "points.first=20", "log.every=1", *overrides)
        monkeypatch.setattr(Evaluator, "begin", beginning)
        adapt(cfg)
        rows = [int(row["cost/rows"]) for row in History(Path(cfg.output_dir) / "history.csv").rows]
        assert rows.pop() == 300
        # The first were those of the check that the method can take a step at all.
        assert rows == taken[1:]
        return rows

    return ran


@pytest.mark.parametrize("integrator", ["linearly_implicit", "ros2"])
def test_a_run_begins_with_few_rows_and_adds_where_it_fits_them_alone(integrator, rows_of_a_run):
    rows = rows_of_a_run(f"integrator={integrator}", "points.first=3", "budget.steps=12")
    assert rows[:2] == [3, 3]
    assert all(b in (a, min(2 * a, 300)) for a, b in pairwise(rows))
    assert rows[-1] > 3


def test_a_scheme_that_does_not_look_back_has_all_rows_from_its_second_step_on(rows_of_a_run):
    overrides = ("integrator=rk4", "points=residual", "points.interior=300", "points.first=20")
    assert rows_of_a_run(*overrides, "budget.steps=3") == [20, 300, 300]


@pytest.mark.parametrize(("points", "rows"), [("fresh", 120 + 24 + 12), ("residual", 120 + 24 + 12)])
def test_rows_of_a_system_count_its_components(points, rows, compose, adapt):
    cfg = compose("problem=kovasznay", f"points={points}", "budget.steps=1", "points.first=null")
    adapt(cfg)
    assert History(Path(cfg.output_dir) / "history.csv").rows[0]["cost/rows"] == rows


def test_components_are_counted_at_a_few_points(generator):
    problem = Kovasznay()
    system = System(problem, Solution(problem, MLP(2, 3, width=5, depth=2, generator=generator)))
    assert components(system) == {"pde": 3, "bc": 2, "outflow": 1}
    assert not system._engines

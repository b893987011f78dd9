"""The size of a batch: when it doubles and where it stays, and the rank that keeps it below interpolation."""

import math
from itertools import pairwise

import pytest
from torch import nn

from pinn_odelora.config.build import experiment
from pinn_odelora.objective import Objective
from pinn_odelora.sampling.batch_size import AdaptiveBatchSize, fall_exponent, price, serves, under_determined
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.selection.initial_rank import initial_rank
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


def size_after(size, gaps, fall=1.0, price=2.0, largest=1000, dimension=0, sufficient=0):
    """Of the batch, after steps that leave a loss on their own points of which the next find the given multiples.

    From step to step the loss where they begin falls by the factor ``fall``.
    """
    began = 1.0
    batch = AdaptiveBatchSize(size, began=began * fall, ended=began / gaps[0])
    for ahead in [*gaps[1:], 1.0]:
        batch.update(began, began / fall / ahead, price, dimension, largest, sufficient=sufficient)
        assert batch.began == began
        began /= fall
    return batch.size


def test_the_batch_doubles_where_the_next_points_keep_showing_more_than_half_as_much_again():
    # Means of log q with weights 1/2, 1/4, …: once 1.5² = 2.25, or 1.6 three times; 1.4 never suffices.
    assert [size_after(100, [q]) for q in (2.2, 2.3)] == [100, 200]
    assert [size_after(100, [1.6] * n) for n in (2, 3)] == [100, 200]
    assert size_after(100, [1.4] * 50, 1.004) == 100
    assert size_after(100, [0.5, 2.3]) == 100
    # From zero again after a doubling, but the next gap is still that of the step before it.
    assert size_after(100, [9.0, 2.2]) == 200
    assert size_after(100, [9.0, 2.3]) == 400
    assert size_after(800, [9.0]) == 1000


@pytest.mark.parametrize(
    ("size", "dimension", "largest", "expected"),
    [
        (500, 3201, 4000, 800),  # not 1,000: 800 are sufficient, and 1,600 would do no more
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
def test_the_batch_stays_below_the_interpolation_threshold_where_a_sufficient_one_lies_there(
    size, dimension, largest, expected
):
    assert size_after(size, [2.3], largest=largest, dimension=dimension, sufficient=800) == expected
    assert size_after(size, [2.3], largest=largest, sufficient=800) == 2 * size  # P not known


@pytest.mark.parametrize(("fall", "expected"), [(1.0028, 200), (1.0038, 100), (0.9, 200)])
def test_the_batch_doubles_where_the_loss_has_not_fallen_by_a_tenth_in_forty_steps(fall, expected):
    """The last eight of them are 32 steps after the first eight: 0.9⁻¹ = 1.0033³²."""
    assert size_after(100, [1.1] * 40, fall) == 100  # the first step is still that of the size before
    assert size_after(100, [1.1] * 41, fall) == expected
    assert size_after(100, [1.1] * 81, fall) == expected
    assert size_after(100, [1.1] * 82, fall) == {100: 100, 200: 400}[expected]
    assert size_after(1000, [1.1] * 82, fall) == 1000
    assert size_after(800, [1.1] * 82, fall, largest=4000, dimension=2000, sufficient=800) == 800


@pytest.mark.parametrize("s", [0.0, 0.4, 2.0])
@pytest.mark.parametrize("n", [2, 3, 7, 64])
def test_the_exponent_of_a_power_law_is_found_from_means_of_its_logarithm(s, n):
    integral = lambda x: x * math.log(x) - x if x else 0.0
    levels = [3.7 - s * (integral(i + 1) - integral(i)) for i in range(n)]
    assert fall_exponent(levels) == pytest.approx(s, abs=1e-12)
    assert fall_exponent([-x for x in levels]) == pytest.approx(0, abs=1e-12)


def sizes_of_a_power_law(s, gap, dimension, largest=4000):
    """After each of 480 steps of a batch of 800 whose loss falls like k⁻ˢ; its gap is log 3 up to the 160th."""
    batch, ahead, sizes = AdaptiveBatchSize(800, began=1.0, ended=1 / 3), 3.0, []
    for k in range(1, 481):
        ahead = gap if k > 160 else ahead
        batch.update(k**-s, k**-s / ahead, 11.0, dimension, largest, sufficient=800)
        sizes.append(batch.size)
    return sizes


@pytest.mark.parametrize("s", [0.3, 1.1, 2.0])
@pytest.mark.parametrize(
    ("dimension", "largest", "larger"),
    [(1769, 4000, 4000), (1600, 16000, 3200), (2390, 16000, 6400), (3281, 4000, 4000)],  # the last one at the peak
)
def test_a_batch_below_the_threshold_is_left_where_its_noise_outweighs_the_steps_that_a_larger_one_takes_less(
    s, dimension, largest, larger
):
    """After 8 k steps, or k and 7 k/c larger ones with c = P R⁺/R²."""
    fewer = 8 / (1 + 7 * 800**2 / (dimension * larger))
    least = (larger + dimension) / (larger - dimension) * fewer**s
    above, below = (sizes_of_a_power_law(s, times * least, dimension, largest) for times in (1.2, 0.83))
    assert next(size for size in above if size > 800) == larger
    assert set(below) == {800}


@pytest.mark.parametrize(
    ("gap", "steps", "dimension", "expected"),
    [
        (2.7, 17, 1769, 4000),  # (4000 + P)/(4000 - P) = 2.59
        (2.7, 16, 1769, 800),  # two times eight steps, and one before them
        (2.5, 480, 1769, 800),
        (1e9, 480, 4000, 800),  # the largest batch would leave as large a gap
    ],
)
def test_a_batch_below_the_threshold_whose_loss_no_longer_falls_is_left_for_one_of_less_noise(
    gap, steps, dimension, expected
):
    assert size_after(800, [gap] * steps, largest=4000, dimension=dimension, sufficient=800) == expected
    rising = size_after(800, [gap] * steps, 1 / 1.01, largest=4000, dimension=dimension, sufficient=800)
    assert rising == expected


@pytest.mark.parametrize("loss", [1e-9, 1e9])
def test_the_level_of_a_loss_at_rest_does_not_matter(loss):
    batch = AdaptiveBatchSize(800, began=loss, ended=loss / 2.7)
    for _ in range(17):
        assert batch.size == 800
        batch.update(loss, loss / 2.7, 11.0, 1769, 4000, sufficient=800)
    assert batch.size == 4000


def test_the_last_two_fifths_of_the_steps_tell_the_gap():
    """Of ten times eight, the last four."""
    sizes_after = lambda gaps: size_after(800, gaps, largest=4000, dimension=1769, sufficient=800)
    assert [sizes_after([2.0] * 49 + [gap] * 32) for gap in (2.5, 2.7)] == [800, 4000]
    assert [sizes_after([2.0] * 64 + [gap] * 17) for gap in (3.2, 3.5)] == [800, 4000]


@pytest.mark.parametrize("first", [125, 1000, None])
def test_the_sufficient_batch_is_the_smallest_with_eight_hundred_points_inside(first):
    for problem, each in ((Burgers(conditions="soft"), {}), (Kovasznay(), {"pde": 3, "bc": 2})):
        made = Sampler(problem.loss_terms(), Sampling(initial_batch_size=first), each)
        assert made.draw(0, made.sufficient).kept == 800


@pytest.mark.parametrize("each", [2.0, 4.0])
@pytest.mark.parametrize("sufficient", [1000, 4000, 8000])
def test_batches_serve_a_rank_where_they_would_stay_above_or_below_the_threshold(each, sufficient):
    """Steps that always meet their own points only: batches double until the test says that they may not."""
    for dimension in range(100, 20000, 173):
        size = size_after(125, [8.0] * 12, largest=4000, dimension=dimension, sufficient=sufficient)
        above = size >= each * dimension
        below = size == sufficient and dimension / 4 <= size <= dimension / 2
        assert serves(dimension, 4000, sufficient, each) == (above or below)
    assert serves(999, 4000, 1000, 4)
    assert not serves(1728, 4000, 1000, 4)
    assert serves(1728, 4000, 800, 4)
    assert serves(3072, 4000, 1000, 4)
    assert not serves(3072, 4000, 4000, 4)


@pytest.mark.parametrize(("price", "least"), [(2.0, 2), (4.0, 6)])
def test_the_batch_does_not_double_while_the_loss_falls_faster_than_twice_as_many_could_pay_for(price, least):
    fall = 1.3
    gaps = lambda times: [fall ** (times * least)] * 60
    assert size_after(1, gaps(0.95), fall, price, largest=10**6) == 1
    assert size_after(1, gaps(1.05), fall, price, largest=10**6) > 1


def test_the_gap_is_that_of_the_points_that_change_and_the_progress_that_of_all():
    """Measured values: their part of the loss falls from step to step too, and is known where a step begins."""
    bare, beside, measured = AdaptiveBatchSize(100), AdaptiveBatchSize(100), [0.9, 0.4, 0.3, 0.3]
    for began, end, before, after in zip((1.0, 0.5, 0.2), (0.3, 0.2, 0.1), measured, measured[1:], strict=False):
        bare.update(began, end, 2.0, 0, 1000)
        beside.update(began + before, end + after, 2.0, 0, 1000, before)
    assert beside.gap == pytest.approx(bare.gap, rel=1e-12)
    assert bare.gap > 0.1
    falls = [math.log(1.9 / 0.9), math.log(0.9 / 0.5)]
    assert beside.progress == pytest.approx((3 * falls[0] + falls[1]) / 4, rel=1e-12)
    assert bare.progress == pytest.approx((3 * math.log(2) + math.log(2.5)) / 4, rel=1e-12)


def test_progress_is_averaged_over_about_four_steps():
    batch = AdaptiveBatchSize(100, began=8.0, ended=1.0)
    for began in (4.0, 2.0, 2.0, 2.0):
        batch.update(began, 1.9, 2.0, 0, 1000)
    assert batch.progress == pytest.approx(math.log(2) * (3 / 4) ** 2)


def test_nothing_is_concluded_from_what_is_not_known():
    batch = AdaptiveBatchSize(100)
    batch.update(9.0, 0.5, 2.0, 0, 1000)
    assert batch == AdaptiveBatchSize(100, began=9.0, ended=0.5)
    batch.update(9.0, None, 2.0, 0, 1000)
    assert batch.size == 1000


@pytest.mark.parametrize(("began", "ended"), [(0.0, 0.5), (9.0, 0.0), (9.0, math.inf)])
def test_losses_without_a_logarithm_tell_nothing(began, ended):
    batch = AdaptiveBatchSize(100, began=1.0, ended=ended)
    batch.update(began, 0.5, 2.0, 0, 1000)
    assert batch == AdaptiveBatchSize(100, began=began, ended=0.5)


def test_a_kernel_of_the_residuals_doubles_the_price_of_a_doubled_batch():
    assert [price(form) for form in ("normal", "kernel", "pairs", "cg", None)] == [2, 4, 4, 2, 2]


# Runs.


@pytest.fixture
def sizes_of_a_run(compose, run, monkeypatch):
    """Those that are logged, which are those of the points, and at last the largest."""
    taken, begin = [], Objective.begin

    def beginning(objective, batch):
        taken.append(sum(p.number for p in batch.points.values()))
        begin(objective, batch)

    def ran(*overrides):
        cfg = compose(
            *("pretrain.adam_steps=0", "points=residual", "points.interior=300", "points.initial_batch_size=20"),
            *("log.every=1", *overrides),
        )
        monkeypatch.setattr(Objective, "begin", beginning)
        *sizes, last = (int(row["cost/batch_size"]) for row in run(cfg).adaptation.history)
        assert last == 300
        assert sizes == taken
        return sizes

    return ran


@pytest.mark.parametrize("integrator", ["linearly_implicit", "ros2"])
def test_a_run_begins_with_a_small_batch_and_doubles_it_where_it_fits_that_alone(integrator, sizes_of_a_run):
    sizes = sizes_of_a_run(f"integrator={integrator}", "points.initial_batch_size=3", "budget.steps=12")
    assert sizes[:2] == [3, 3]
    assert all(b in (a, min(2 * a, 300)) for a, b in pairwise(sizes))
    assert sizes[-1] > 3


def test_a_scheme_that_does_not_evaluate_where_it_ended_takes_the_largest_batch_from_its_second_step_on(sizes_of_a_run):
    assert sizes_of_a_run("integrator=rk4", "budget.steps=3") == [20, 300, 300]


@pytest.mark.parametrize("points", ["fresh", "residual"])
def test_the_batch_of_a_system_counts_its_components(points, compose, run):
    cfg = compose("problem=kovasznay", f"points={points}", "budget.steps=1", "points.initial_batch_size=null")
    assert run(cfg).adaptation.history[0]["cost/batch_size"] == 120 + 24 + 12


# The rank where none is chosen.


def three(width):
    return {str(i): nn.Linear(width, width) for i in range(3)}


@pytest.mark.parametrize(
    ("width", "beside", "sufficient", "rank"),
    [
        (40, 41, 800, 8),  # 953 coordinates at rank 4, 1769 at rank 8
        (40, 41, 884, 8),  # what is trained beside the factors counts
        (40, 41, 2520, 4),  # too many residuals for both
        (40, 0, 865, 4),  # 1728 coordinates
        (64, 65, 800, 8),
        (128, 129, 800, 4),  # 3153 coordinates at rank 4
        (6, 0, 10, 4),  # 8 is no rank of such layers, and 4 keeps the batch under-determined
        (6, 0, 800, 4),
        (3, 0, 800, 3),  # 4 is no rank of such layers
    ],
)
def test_the_initial_rank_is_the_smaller_one_that_keeps_the_batch_under_determined(width, beside, sufficient, rank):
    assert initial_rank(three(width), beside, sufficient) == rank


@pytest.mark.parametrize(("problem", "rank"), [("burgers", 8), ("kovasznay", 4)])
def test_a_run_has_it(problem, rank, compose):
    settings = ("lora.rank=auto", "points.interior=4000", "points.boundary=200", "net.width=40")
    adaptation = experiment(compose(f"problem={problem}", *settings)).adaptation
    layers = adaptation.training.objective.layers
    assert {layer.rank for layer in layers.values()} == {rank}
    dimension = sum(layer.rank * (2 * 40 - layer.rank) for layer in layers.values()) + 41
    assert under_determined(800, dimension) == (problem == "burgers")


def test_methods_without_factors_have_no_use_for_it(compose):
    adaptation = experiment(compose("method=full_adam", "lora.rank=auto")).adaptation
    assert adaptation.result().ranks == {}

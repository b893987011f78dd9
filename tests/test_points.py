"""The points of a run: where they are, how many, and that no two purposes share any."""

import math

import pytest
import torch

from pinn_odelora.diagnostics import Reference, test_points
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.geometry.pool import Pool
from pinn_odelora.log import Log
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.sampling.residual_sampling import effective_sample_size, resampled
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

test_points.__test__ = False


def sampler(terms, interior, boundary, components=None, seed=0, **settings):
    """Fresh and even points in batches of all residuals, unless told otherwise."""
    plain = {"residual": 0.0, "batch_size": None, "initial_batch_size": None}
    return Sampler(terms, Sampling(interior=interior, boundary=boundary, **(plain | settings)), components, seed)


def numbers(points):
    return {name: p.number for name, p in points.items()}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"residual": 0.5}, "residual is 0.5, but it must be 0 where points are fixed"),
        ({"residual": 0, "initial_batch_size": 20}, "initial_batch_size is 20, but it must be None where points are"),
    ],
)
def test_fixed_points_neither_follow_nor_grow(settings, sentence):
    with pytest.raises(InputError, match=f"^{sentence}"):
        Sampling(fresh=False, **settings)


def test_points_follow_the_residual():
    """Two thirds of the points from candidates of which a quarter has a residual eight times the others'."""
    terms = Burgers(conditions="soft").loss_terms()
    points = sampler(terms, 900, 10, seed=2, residual=2 / 3)
    draw = points.draw(5)
    assert draw.points["pde"].number == 1800
    inside = lambda p: (p.x > 0.5).squeeze(1)
    residuals = lambda p: {"pde": torch.where(p["pde"].x > 0.5, 8.0, -1.0)}
    chosen = points.chosen(draw, residuals)
    p, share = draw.points["pde"], float(inside(chosen.points["pde"]).double().mean())
    weights = torch.where(inside(p), 8.0, 1.0)
    chance = weights / weights.mean() + 0.2
    # Drawing without replacement evens the shares out; between even and proportional to the chances.
    assert 0.25 < float(inside(p).double().mean()) + 0.05 < share < float(chance[inside(p)].sum() / chance.sum())
    assert chosen.points["pde"].number == 900
    assert len({tuple(row) for row in chosen.points["pde"].rows(["x", "t"]).tolist()}) == 900
    for name in ("ic", "bc"):
        assert chosen.points[name] is draw.points[name]
    again = points.chosen(draw, residuals)
    torch.testing.assert_close(again.points["pde"].x, chosen.points["pde"].x, rtol=0, atol=0)
    nothing = points.chosen(draw, lambda _: {"pde": torch.zeros(1800, 1)})
    assert isinstance(nothing.points["pde"], Points)
    assert nothing.points["pde"].number == 900


def test_points_without_a_residual_keep_a_fifth_of_the_average_chance(generator):
    """Half of the candidates have none. Drawn is what arrives first at rates 2 + 1/5 and 1/5."""
    x = torch.rand(2000, 1, dtype=torch.float64, generator=generator)
    x[:1000] += 1
    p = resampled(Points(x=x), 1000, 1.0, lambda p: (p.x > 1).double(), generator)
    taken = lambda time: [1000 * (1 - math.exp(-rate * time)) for rate in (2.2, 0.2)]
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(taken(middle)) > 1000 else (middle, high)
    expected = taken(low)[1]
    assert abs(int((p.x < 1).sum()) - expected) < 4 * math.sqrt(expected)


def test_the_effective_sample_size_is_that_of_equal_summands():
    few = torch.zeros(1000, dtype=torch.float64)
    few[::125] = 3.0
    assert effective_sample_size(few) == pytest.approx(8)
    assert effective_sample_size(torch.full((70,), 2.0)) == pytest.approx(70)
    assert math.isnan(effective_sample_size(torch.zeros(5)))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_effective_sample_size_of_small_and_large_numbers_of_single_precision(scale):
    size = torch.tensor([1.0, 2.0, 3.0])
    assert effective_sample_size(scale * size) == pytest.approx(effective_sample_size(size), rel=1e-5)


@pytest.mark.parametrize(("width", "asked"), [(0.3, []), (0.005, [10_000])])
def test_a_thin_layer_has_further_points_at_which_the_residual_is_not_evaluated(width, asked, generator):
    """One that holds half a hundredth of the candidates would have no other points than these five."""
    x = torch.linspace(0, 1, 1000, dtype=torch.float64)[torch.randperm(1000, generator=generator)][:, None]
    evaluated, further = [], []

    def residual(p):
        evaluated.append(p.number)
        return torch.where(p.x < width, 1.0, 1e-4)

    def more(k):
        further.append(k)
        drawn = torch.rand(k, 1, dtype=torch.float64, generator=generator)
        drawn[:1000] = x  # these are there already
        return Points(x=drawn)

    p = resampled(Points(x=x), 500, 0.3, residual, generator, more)
    inside = int((p.x < width).sum())
    assert evaluated == [1000]
    assert further == asked
    assert p.number == len(set(p.x[:, 0].tolist())) == 500
    # Of 9,000 further points 45 are in the layer, and nearly all of them are taken.
    assert (35 <= inside <= 65) if width < 0.1 else (180 <= inside <= 300)
    alone = resampled(Points(x=x), 500, 0.3, residual, generator)
    assert alone.number == 500
    assert not width < 0.1 or int((alone.x < width).sum()) == 5


def test_a_further_point_has_the_residual_of_the_nearest_candidate_in_units_of_their_extent(generator):
    """In t a thousand times longer than in x: the layer lies across x, and nearness in t alone would miss it."""
    unit = torch.rand(2000, 2, dtype=torch.float64, generator=generator)
    p = Points(x=unit[:, :1], t=1000 * unit[:, 1:], nx=torch.ones(2000, 1, dtype=torch.float64))
    residual = lambda p: torch.where((p.x - 0.5).abs() < 0.0015, 1.0, 1e-6)
    few = int((residual(p) > 0.5).sum())

    def more(k):
        unit = torch.rand(k, 2, dtype=torch.float64, generator=generator)
        return Points(x=unit[:, :1], t=1000 * unit[:, 1:], nx=torch.ones(k, 1, dtype=torch.float64))

    taken = resampled(p, 1000, 0.3, residual, generator, more)
    near = int(((taken.x - 0.5).abs() < 0.02).sum())
    assert 0 < few < 20
    assert near > 65
    assert set(taken) == {"x", "t", "nx"}


def test_points_of_a_pool_are_taken_once(generator):
    pool = Pool(Points(x=torch.rand(150, 1, dtype=torch.float64, generator=generator)))
    terms = {"pde": Term(pool, lambda u, p: u(p))}
    points = sampler(terms, 60, 10, residual=0.5)
    chosen = points.chosen(points.draw(1), lambda p: {"pde": (p["pde"].x > 0.99).double()}).points["pde"]
    assert len(set(chosen.x[:, 0].tolist())) == chosen.number == 60


def test_a_step_draws_twice_as_many_candidates_as_it_keeps():
    points = sampler(Burgers().loss_terms(), 4000, 200, residual=0.3, initial_batch_size=125)
    for size in (125, 800, 4000):
        draw = points.draw(3, size)
        assert (draw.points["pde"].number, draw.kept) == (2 * size, size)


@pytest.mark.parametrize("size", [None, 10_000, 2000])
def test_a_largest_batch_thins_all_points_of_a_system_alike(size):
    terms, each = Kovasznay().loss_terms(), {"pde": 3, "bc": 2, "outflow": 1}
    points = sampler(terms, 2000, 200, each, batch_size=size)
    number = numbers(points.draw(3).points)
    share = min(1, (size or math.inf) / (3 * 2000 + 2 * 200 + 200))
    assert number == {"pde": round(2000 * share), "bc": round(200 * share), "outflow": round(200 * share)}
    by_residual = sampler(terms, 2000, 200, each, batch_size=size, residual=0.3)
    chosen = by_residual.chosen(by_residual.draw(3), lambda p: {n: torch.ones(x.number, 3) for n, x in p.items()})
    assert numbers(chosen.points) == number


@pytest.mark.parametrize("residual", [0.0, 0.3])
def test_a_smaller_batch_is_thinned_alike_and_stays_a_function_of_its_number(residual):
    terms = Burgers(conditions="soft").loss_terms()
    made = sampler(terms, 1000, 100, batch_size=900, initial_batch_size=60, residual=residual)
    assert (made.total, made.largest, made.initial) == (1200, 900, 60)
    even = lambda points: {name: torch.ones(p.number, 1) for name, p in points.items()}
    few, all_ = (made.chosen(made.draw(4, size), even).points for size in (60, None))
    assert numbers(few) == {"pde": 50, "ic": 5, "bc": 5}
    assert numbers(all_) == {"pde": 750, "ic": 75, "bc": 75}
    made.draw(9, 700)
    again = made.chosen(made.draw(4, 60), even).points
    assert torch.equal(again["pde"].x, few["pde"].x)


def test_measured_points_are_all_taken_and_do_not_count():
    measured = Points({"x": torch.zeros(30, 1), "t": torch.zeros(30, 1)})
    terms = {**Burgers(conditions="soft").loss_terms(), "data": Term(Cloud(measured), lambda field: field.u)}
    made = sampler(terms, 1000, 100, batch_size=600, initial_batch_size=60)
    assert numbers(made.draw(0).points) == {"pde": 500, "ic": 50, "bc": 50, "data": 30}
    assert numbers(made.draw(0, 60).points) == {"pde": 50, "ic": 5, "bc": 5, "data": 30}
    assert (made.initial, made.largest, made.all, made.measured) == (60, 600, 630, ["data"])


def test_fixed_points_stay_on_the_device_with_what_is_kept_of_them():
    """Otherwise every step would copy them, and find their jets again."""
    points, there = sampler(Burgers().loss_terms(), 20, 4, fresh=False), torch.device("meta")
    first = points.draw(0, device=there)
    kept = first.points["pde"].kept("jets", object)
    assert first.points["pde"].x.device == there
    assert points.draw(1, device=there).points["pde"].kept("jets", object) is kept
    assert points.draw(2).points["pde"].x.device.type == "cpu"


def test_fixed_points_are_drawn_once():
    made = sampler(Burgers().loss_terms(), 50, 10, fresh=False)
    assert made.draw(0) is made.draw(7)


def test_so_few_points_that_none_follow_the_residual():
    made = sampler(Burgers().loss_terms(), 100, 10, residual=0.3, initial_batch_size=1)
    points = made.chosen(made.draw(0, 1), lambda p: {n: torch.ones(x.number, 1) for n, x in p.items()}).points
    assert numbers(points) == {"pde": 1}


def test_components_are_counted_at_a_few_points(generator):
    problem = Kovasznay()
    system = System(problem, Solution(problem, MLP(2, 3, width=5, depth=2, generator=generator)))
    assert {name: system.components(name) for name in system.terms} == {"pde": 3, "bc": 2, "outflow": 1}


# Named streams.


def unit(p):
    """Points of Burgers' region as places in the unit square."""
    return torch.cat([(p.x + 1) / 2, p.t], dim=1)


def of_every_purpose(seed, n):
    """The points inside Burgers' region that a run of this seed meets, by purpose: three steps, and all that judge."""
    problem = Burgers(conditions="soft")
    system = System(problem, Solution(problem, MLP(2, 1, width=4, depth=2)))
    fresh, fixed = (sampler(system.terms, n, n, seed=seed, fresh=new) for new in (True, False))
    found = {f"step {k}": fresh.draw(k).points["pde"] for k in range(3)}
    found |= {
        "fixed": fixed.draw(0).points["pde"],
        "validation": fresh.validation(fresh.total)["pde"],
        "held-out": Reference(system, Log(heldout=n, test=n)).heldout["pde"],
        "test": test_points(problem, n),
        "rehearsal": system.sample("pde"),
        "pretraining loss": draw_points(system.terms, n, n, seed, purpose="pretraining loss")["pde"],
    }
    return {purpose: unit(p) for purpose, p in found.items()}


@pytest.mark.parametrize("seed", [0, 1, 998, 999])
def test_no_two_purposes_share_points_whatever_the_seed(seed):
    """Once held-out points were those of seed 998, so that a run of that seed was trained on them."""
    found = of_every_purpose(seed, 64)
    assert torch.equal(found["fixed"], found.pop("step 0"))
    places = torch.cat([*found.values()])
    assert len({tuple(place) for place in places.tolist()}) == len(places)
    # Nor are two sets one set shifted modulo one, as draws of one sequence are.
    gaps = {purpose: (p[1:] - p[:-1]) % 1 for purpose, p in found.items() if purpose not in ("step 1", "step 2")}
    names = [*gaps]
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            few = min(len(gaps[one]), len(gaps[other]))
            assert not torch.allclose(gaps[one][:few], gaps[other][:few], atol=1e-9), (one, other)


def test_what_judges_a_run_does_not_depend_on_its_seed_and_all_else_does():
    one, other = (of_every_purpose(seed, 16) for seed in (3, 4))
    same = {purpose for purpose in one if torch.equal(one[purpose], other[purpose])}
    assert same == {"held-out", "test", "rehearsal"}


def test_terms_of_one_purpose_have_their_own_sequences():
    terms = {name: Term(Burgers.region, lambda f: f.u) for name in ("one", "two")}
    points = draw_points(terms, 32, 8, seed=5)
    assert not bool(torch.isin(points["one"].x, points["two"].x).any())

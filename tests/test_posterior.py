"""The posterior of a family's parameters: exact where a formula is known, calibrated where none is."""

import dataclasses
import math
import sys

import numpy as np
import pytest
from exact_family import Drift, ExactAnswer, ExactFamily, Source
from scipy import stats
from scipy.integrate import quad

import pinn_odelora as po
from pinn_odelora.bayes.chebyshev import Demand, Part, interpolate, values_at
from pinn_odelora.bayes.density import Density, Noise, likely, resolve, run_chain
from pinn_odelora.bayes.posterior import Measured, Predictions, posterior
from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.families.ranges import Interval, Ranges
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Box
from problems.burgers import Burgers
from problems.heat import Heat
from problems.kovasznay import Kovasznay

pytest.importorskip("emcee")


def columns(problem, n, sigma, seed, weights=None):
    """Measurements at random points with noise σ/√w."""
    rng = np.random.default_rng(seed)
    at = {name: rng.uniform(*problem.region.bounds[name], n) for name in problem.coords}
    u = ExactAnswer(problem, 0.0)(*at.values()).reshape(n, -1)
    w = np.ones(n) if weights is None else weights
    noisy = u + sigma / np.sqrt(w)[:, None] * rng.standard_normal(u.shape)
    measured = {name: noisy[:, i] for i, name in enumerate(problem.fields)}
    return at | measured | ({} if weights is None else {"weight": w})


def design(data):
    """√w times the derivatives of u by a and b, and √w times the values."""
    root = np.sqrt(data.get("weight", np.ones_like(data["x"])))
    return root[:, None] * np.stack([-np.sin(3 * data["x"]) / 9, data["x"] ** 2 / 2], 1), root * data["u"]


# Against formulas.

WIDE = {"a": (-30.0, 30.0), "b": (-20.0, 25.0)}


def test_a_linear_family_with_known_noise_has_the_normal_posterior_of_least_squares():
    weights = np.random.default_rng(5).uniform(0.2, 4, 40)
    data = columns(Source(a=1.3, b=0.7), 40, 0.02, 1, weights)
    found = posterior(ExactFamily(Source(), **WIDE), data, sigma=0.02, steps=4000)
    X, y = design(data)
    covariance = 0.02**2 * np.linalg.inv(X.T @ X)
    mean, std = np.linalg.solve(X.T @ X, X.T @ y), np.sqrt(np.diag(covariance))
    for i, name in enumerate(("a", "b")):
        low, high = mean[i] - 1.959964 * std[i], mean[i] + 1.959964 * std[i]
        assert found.laplace[name] == pytest.approx((mean[i], std[i], low, high), rel=1e-4)
        assert found.mode[name] == found.laplace[name].mode
        assert abs(found.mean[name] - mean[i]) < 0.06 * std[i]
        assert found.std[name] == pytest.approx(std[i], rel=0.04)
        assert np.allclose(found.interval[name], (low, high), rtol=0, atol=0.12 * std[i])
    assert np.corrcoef(found.samples.T)[0, 1] == pytest.approx(covariance[0, 1] / std.prod(), abs=0.02)
    assert (found.sigma == 0.02).all()
    assert found.answers == 9 + 4 + 5  # nodes, between them, and the mode with two to either side of it
    assert not found.warnings


def test_a_normal_prior_joins_the_measurements_as_one_more_would():
    data = columns(Source(a=1.3, b=0.7), 12, 0.05, 2)
    prior = lambda a, b: stats.norm(2.0, 0.4).logpdf(a) + stats.norm(-1.0, 0.3).logpdf(b)
    found = posterior(ExactFamily(Source(), **WIDE), data, sigma=0.05, prior=prior, method="laplace", steps=6000)
    X, y = design(data)
    precision = X.T @ X / 0.05**2 + np.diag([0.4**-2, 0.3**-2])
    mean = np.linalg.solve(precision, X.T @ y / 0.05**2 + [2.0 / 0.4**2, -1.0 / 0.3**2])
    std = np.sqrt(np.diag(np.linalg.inv(precision)))
    for i, name in enumerate(("a", "b")):
        assert found.laplace[name][:2] == pytest.approx((mean[i], std[i]), rel=1e-4)
        assert abs(found.mean[name] - mean[i]) < 0.05 * std[i]


@pytest.mark.parametrize("guess", [None, (0.08, 6.0)])
def test_an_unknown_noise_is_integrated_out_to_students_t(guess):
    """With n₀ + N - 2 degrees of freedom, and scale (n₀ s₀² + S)/(n₀ + N - 2) in place of σ²."""
    data = columns(Source(a=1.3, b=0.7), 9, 0.05, 3)
    found = posterior(ExactFamily(Source(), a=(-60.0, 60.0), b=(-40.0, 40.0)), data, sigma=guess, steps=4000)
    X, y = design(data)
    mean = np.linalg.solve(X.T @ X, X.T @ y)
    s0, n0 = guess or (0.0, 0.0)
    freedom = n0 + 9 - 2
    s = math.sqrt((n0 * s0**2 + np.square(y - X @ mean).sum()) / freedom)
    scale = s * np.sqrt(np.diag(np.linalg.inv(X.T @ X)))
    for i, name in enumerate(("a", "b")):
        expected = mean[i] + scale[i] * stats.t(freedom).ppf([0.025, 0.975])
        assert np.allclose(found.interval[name], expected, rtol=0, atol=0.2 * scale[i])
    # The marginal of σ² is the scaled inverse χ² of the residuals.
    assert np.median(found.sigma**2) == pytest.approx(freedom * s**2 / stats.chi2(freedom).ppf(0.5), rel=0.04)


def exact_moments(data, sigma, low, high, log=True):
    """Mean and standard deviation of κ of the heat equation by quadrature, uniform in log κ or in κ."""
    x, t, y = data["x"], data["t"], data["u"]

    def S(k):
        decay = np.exp(-k * math.pi**2 * t)
        return np.square(y - decay * np.sin(math.pi * x) - decay**9 * np.sin(3 * math.pi * x) / 2).sum()

    best = min(S(k) for k in np.geomspace(low, high, 2000))
    density = lambda k: math.exp(-(S(k) - best) / (2 * sigma**2)) / (k if log else 1)
    integral = lambda f: quad(lambda k: f(k) * density(k), low, high, limit=400, epsabs=0)[0]
    mass = integral(lambda k: 1.0)
    mean = integral(lambda k: k) / mass
    return mean, math.sqrt(integral(lambda k: (k - mean) ** 2) / mass)


@pytest.mark.parametrize("log", [True, False])
def test_the_default_prior_is_uniform_in_the_logarithm_and_a_constant_one_in_the_parameter(log):
    """Few values and much noise, so that the prior counts: the posterior is skew and cut off by the range."""
    data = columns(Heat(kappa=0.12), 8, 0.3, 4)
    family = ExactFamily(Heat(), kappa=(0.03, 0.4))
    found = posterior(family, data, sigma=0.3, prior=None if log else lambda kappa: 0.0, steps=4000)
    mean, std = exact_moments(data, 0.3, 0.03, 0.4, log)
    assert std > 0.03
    assert found.mean["kappa"] == pytest.approx(mean, abs=0.05 * std)
    assert found.std["kappa"] == pytest.approx(std, rel=0.04)


def test_laplace_and_chain_agree_where_the_measurements_tell_much():
    data = columns(Drift(c=0.8, kappa=0.13), 300, 0.02, 6)
    family = ExactFamily(Drift(), c=(0.2, 1.5), kappa=(0.02, 0.3))
    chain, normal = (posterior(family, data, method=method, steps=4000) for method in ("mcmc", "laplace"))
    for name, truth in {"c": 0.8, "kappa": 0.13}.items():
        mode, std, low, high = chain.laplace[name]
        assert normal.laplace[name] == chain.laplace[name]
        assert normal.std[name] == pytest.approx(std, rel=0.03)
        assert chain.std[name] == pytest.approx(std, rel=0.06)
        assert abs(chain.mean[name] - mode) < 0.1 * std
        assert np.allclose(chain.interval[name], (low, high), rtol=0, atol=0.15 * std)
        assert abs(mode - truth) < 3.5 * std
    assert np.median(chain.sigma) == pytest.approx(0.02, rel=0.1)
    assert math.isnan(normal.acceptance)
    assert 0.5 < chain.acceptance < 0.9


def test_all_fields_of_a_system_count():
    data = columns(Kovasznay(re=45.0), 60, 0.01, 7)
    family = ExactFamily(Kovasznay(), re=(20.0, 80.0))
    whole, part = (posterior(family, d, sigma=0.01) for d in (data, {k: data[k] for k in ("x", "y", "p")}))
    assert abs(whole.mean["re"] - 45) < 3.5 * whole.std["re"]
    assert whole.std["re"] < 0.9 * part.std["re"]


def in_the_layer(seed, n=200):
    """Values of Burgers' equation, ν = 0.02, where they depend on ν, with noise of 2 % of their root mean square."""
    rng = np.random.default_rng(seed)
    x, t = rng.uniform(-0.2, 0.2, n), rng.uniform(0.3, 1, n)
    u = ExactAnswer(Burgers(nu=0.02), 0.0)(x, t)
    return {"x": x, "t": t, "u": u + 0.02 * np.sqrt(np.mean(u**2)) * rng.standard_normal(n)}


@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
@pytest.mark.slow
def test_it_agrees_with_the_gauss_newton_interval_of_an_unknown_coefficient():
    """The latter knows neither the prior nor the exact solution; both are close to the bound of Cramér and Rao."""
    data = in_the_layer(1)
    found = posterior(ExactFamily(Burgers(), nu=(0.006, 0.05)), data, steps=4000)
    net = po.pretrain(Burgers(nu=0.05))
    # The interval is wider by the step that is left, which of the best iterate is more than of the last one.
    settings = {"budget": po.Budget(gradient_evals=150), "points": po.Sampling(best_iterate=False)}
    other = po.adapt(net, Burgers(nu=0.05), data=data, unknown=("nu",), **settings).coefficients["nu"]
    assert other["settled"]
    assert abs(found.mean["nu"] - other["estimate"]) < 0.4 * other["std"]
    assert found.std["nu"] == pytest.approx(other["std"], rel=0.1)
    assert np.allclose(found.interval["nu"], (other["low"], other["high"]), rtol=0, atol=0.4 * other["std"])


# Calibration (Talts et al., 2018, arXiv 1804.06788): the rank of the truth among independent draws is uniform.

DATA_SETS, DRAWS, BINS = 100, 19, 10


@pytest.mark.parametrize(
    ("problem", "ranges"),
    [
        pytest.param(Heat(), {"kappa": (0.03, 0.4)}, id="heat"),
        pytest.param(Drift(), {"c": (0.2, 1.5), "kappa": (0.02, 0.3)}, id="drift", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("noise", [Noise(0.2), Noise(None, 0.2, 4.0)], ids=["known", "unknown"])
def test_the_posterior_is_calibrated(problem, ranges, noise):
    rng = np.random.default_rng(8)
    x, t = rng.uniform(size=(2, 15))
    intervals = Ranges.of(problem, ranges).intervals
    u = lambda z: ExactAnswer(dataclasses.replace(problem, **values_at(intervals, z)), 0.0)(x, t)
    interpolant = interpolate(u, intervals, lambda found: Demand(1e-4, found.part))
    ranks = np.empty((DATA_SETS, len(ranges) + 1))
    for k in range(DATA_SETS):
        truth = rng.uniform(-1, 1, len(ranges))
        sigma = noise.sigma or noise.guess * math.sqrt(noise.worth / rng.chisquare(noise.worth))
        density = Density(interpolant, u(truth) + sigma * rng.standard_normal(len(x)), noise)
        start = resolve(density).draw(32, rng)
        # Long enough for the last positions of the walkers to be independent of the grid they started from.
        z = run_chain(density, start, 60, rng).z[-32:]
        z = z[rng.permutation(32)[:DRAWS]]
        drawn = noise.draw(density.squares(z), density.n, rng)
        ranks[k] = [*(z < truth).sum(axis=0), (drawn < sigma).sum()]
    for i in range(len(ranges) + (noise.sigma is None)):
        counts = np.histogram(ranks[:, i], bins=BINS, range=(-0.5, DRAWS + 0.5))[0]
        assert counts.sum() == DATA_SETS
        assert stats.chisquare(counts).pvalue > 0.01, counts


# What it costs, and what is said when it cannot be relied on.


def test_answers_are_few_and_the_interpolant_is_checked_where_it_matters():
    data = columns(Heat(kappa=0.12), 100, 0.02, 9)
    family = ExactFamily(Heat(), kappa=(0.03, 0.4))
    found = posterior(family, data, sigma=0.02)
    assert found.answers == len(family.asked) <= 17 + 3
    assert found.interpolation_error < 0.1 * 0.02 / math.sqrt(100)
    asked = np.array([values["kappa"] for values in family.asked[-3:]])
    std = found.laplace["kappa"].std
    assert asked == pytest.approx(found.mode["kappa"] + std * np.array([0, 1, -1]), abs=0.1 * std)


def waves():
    """Two parameters, of which the first needs many nodes; ``asked`` keeps where answers were computed."""
    asked = []

    def predict(z):
        asked.append(tuple(z))
        return np.array([math.sin(6 * z[0]) * (1 + z[1]), math.cos(5 * z[0]) - z[1] ** 2])

    return predict, asked, [Interval("a", 0.0, 2.0, "linear"), Interval("b", 1.0, 9.0, "log")]


def test_interpolation_doubles_only_what_needs_it_and_reports_its_error():
    predict, asked, intervals = waves()
    found = interpolate(predict, intervals, lambda found: Demand(1e-5, found.part))
    assert found.coefficients.shape == (17, 5, 2)
    assert len(asked) == len(set(asked)) == 17 * 5 + 4
    z = np.random.default_rng(3).uniform(-1, 1, (200, 2))
    difference = found(z) - np.stack([predict(point) for point in z])
    worst = np.linalg.norm(difference, axis=1).max()
    assert found.error < 1e-5
    assert worst < 5 * found.error


def test_interpolation_moves_to_the_part_that_matters():
    predict, asked, intervals = waves()
    part = Part(np.array([0.4, -0.2]), np.array([0.5, 0.1]))
    found = interpolate(predict, intervals, lambda found: Demand(1e-5, part if found.error < 3 else found.part))
    assert found.part == part
    inside = sum(part.holds(np.array([z]))[0] for z in asked)
    assert found.coefficients.shape[:2] == (5, 3)
    assert inside <= 5 * 3 + 4 < len(asked)
    z = np.random.default_rng(3).uniform(*part, (200, 2))
    assert np.abs(found(z) - np.stack([predict(point) for point in z])).max() < 2e-5


@pytest.mark.parametrize("noise", [Noise(0.01), Noise(None), Noise(None, 0.02, 3.0)])
def test_the_error_of_the_interpolant_bounds_the_density_on_both_sides(noise):
    """Three nodes are too few; what is given up as unlikely is unlikely with their error allowed for."""
    data = columns(Heat(kappa=0.12), 60, 0.01, 17)
    intervals = Ranges.of(Heat(), {"kappa": (0.03, 0.4)}).intervals
    u = lambda z: ExactAnswer(Heat(**values_at(intervals, z)), 0.0)(data["x"], data["t"])
    interpolant = interpolate(u, intervals, lambda found: Demand(10.0, found.part))
    assert interpolant.coefficients.shape == (3, 60)
    z = np.random.default_rng(2).uniform(-1, 1, (40, 1))
    exact = np.stack([u(point) for point in z])
    error = np.linalg.norm(interpolant(z) - exact, axis=1).max()
    density = Density(interpolant, data["u"], noise)
    truth = noise.log_likelihood(np.square(exact - data["u"]).sum(axis=1), 60)
    assert (density(z, error) < truth).all()
    assert (density(z, -error) > truth).all()
    part = likely(density, interpolant.part, error)
    assert part.volume < 1.9
    assert part.holds(z[[truth.argmax()]])[0]
    assert (truth[~part.holds(z)] < truth.max() - 25).all()


def test_answers_that_are_not_smooth_end_the_doubling_and_are_told():
    data = columns(Heat(kappa=0.12), 50, 0.01, 10)

    class Rough(ExactFamily):
        def __call__(self, **values):
            answer = super().__call__(**values)
            jump = 0.02 * math.sin(1e6 * values["kappa"])
            rough = lambda *at: answer(*at) + jump
            rough.problem, rough.error = answer.problem, answer.error
            return rough

    family = Rough(Heat(), kappa=(0.03, 0.4))
    with pytest.warns(UserWarning, match="interpolation .* may shift a parameter by up to .* standard deviations"):
        found = posterior(family, data, sigma=0.01)
    assert found.answers <= 129 + 3
    assert found.interpolation_error > 0.005


def test_an_error_of_the_answers_that_counts_is_told():
    data = columns(Heat(kappa=0.12), 100, 0.01, 11)
    with pytest.warns(UserWarning, match="estimated error of the answers .* up to 2.5"):
        found = posterior(ExactFamily(Heat(), error=6e-3, kappa=(0.03, 0.4)), data, sigma=0.01)
    assert found.answer_error == pytest.approx(6e-3 * np.sqrt(np.mean(data["u"] ** 2)), rel=0.05)
    assert len(found.warnings) == 1


def test_an_error_relative_to_a_centre_is_that_of_the_deviation():
    data = columns(Heat(kappa=0.12), 100, 0.0, 11)
    family = ExactFamily(Heat(), error=6e-3, kappa=(0.03, 0.4))
    family.centres = (0.5,)
    predictions = Predictions(family, family.space.intervals, Measured.of(data, Heat()))
    found = predictions(np.array([0.0]))
    assert predictions.errors == [pytest.approx(6e-3 * float(np.linalg.norm(found - 0.5)), rel=1e-12)]


def test_a_truth_outside_the_range_is_told():
    data = columns(Heat(kappa=0.5), 60, 0.01, 12)
    family = ExactFamily(Heat(), kappa=(0.03, 0.4))
    with pytest.warns(UserWarning, match=r"most likely kappa is 0\.4, at the end of the range"):
        found = posterior(family, data, sigma=0.01)
    assert found.interval["kappa"][1] <= 0.4
    assert math.isnan(found.laplace["kappa"].std)
    with pytest.raises(InputError, match=r"no maximum inside the range .* method='laplace'"):
        posterior(family, data, sigma=0.01, method="laplace")


def test_measurements_that_tell_nothing_leave_the_prior():
    data = columns(Source(a=0.5, b=0.2), 10, 0.05, 12)
    family = ExactFamily(Source(), a=(0.0, 2.0), b=(-1.0, 3.0))
    bowl = lambda a, b: -1e-9 * (a - 1) ** 2 - 1e-9 * (b - 1) ** 2
    found = posterior(family, data, sigma=1e4, prior=bowl, steps=4000)
    assert found.interval["a"] == pytest.approx((0.05, 1.95), abs=0.05)
    assert found.interval["b"] == pytest.approx((-0.9, 2.9), abs=0.1)
    with pytest.raises(InputError, match="tell so little"):
        posterior(family, data, sigma=1e4, prior=bowl, method="laplace")


def test_a_short_chain_is_told():
    data = columns(Heat(kappa=0.12), 20, 0.05, 13)
    with pytest.warns(UserWarning, match="chain of 100 steps is shorter than 50 times"):
        posterior(ExactFamily(Heat(), kappa=(0.03, 0.4)), data, sigma=0.05, steps=100)


# Use.


@pytest.fixture(scope="module")
def found():
    data = columns(Heat(kappa=0.12), 40, 0.05, 14)
    return posterior(ExactFamily(Heat(), kappa=(0.03, 0.4)), data, sigma=0.05, seed=3)


def test_solutions_are_answers_at_the_samples(found):
    answers = found.solutions(5)
    values = [answer.problem.kappa for answer in answers]
    assert set(values) <= set(found.samples[:, 0])
    assert values[0] == found.samples[0, 0]
    assert values[-1] == found.samples[-1, 0]
    with pytest.raises(InputError, match="n is 0"):
        found.solutions(0)


def test_it_is_one_line(found):
    assert repr(found).startswith(f"kappa = {found.mean['kappa']:.6g} ± ")
    assert "\n" not in repr(found)


def test_a_figure_shows_every_parameter_and_both_together(found, tmp_path):
    figure = found.plot(tmp_path / "posterior.png")
    assert (tmp_path / "posterior.png").stat().st_size > 5000
    assert [axes.get_xlabel() for axes in figure.axes] == ["kappa"]
    data = columns(Drift(c=0.8, kappa=0.13), 40, 0.02, 6)
    family = ExactFamily(Drift(), c=(0.2, 1.5), kappa=(0.02, 0.3))
    figure = posterior(family, data, method="laplace").plot()
    assert [axes.get_xlabel() for axes in figure.axes] == ["c", "kappa", "c"]
    curve = figure.axes[0].lines[0]
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(1, abs=0.02)


def test_the_seed_decides_and_the_global_generator_is_left_alone(found):
    data = columns(Heat(kappa=0.12), 40, 0.05, 14)
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    again, other = (posterior(ExactFamily(Heat(), kappa=(0.03, 0.4)), data, sigma=0.05, seed=s) for s in (3, 4))
    assert (before == np.random.get_state()[1]).all()
    assert np.array_equal(again.samples, found.samples)
    assert not np.array_equal(other.samples, found.samples)


def test_a_file_says_what_columns_say(tmp_path, found):
    data = columns(Heat(kappa=0.12), 40, 0.05, 14)
    np.savez(tmp_path / "measured.npz", **data)
    again = posterior(ExactFamily(Heat(), kappa=(0.03, 0.4)), tmp_path / "measured.npz", sigma=0.05, seed=3)
    assert np.array_equal(again.samples, found.samples)


def test_points_of_weight_zero_do_not_count(found):
    data = columns(Heat(kappa=0.12), 40, 0.05, 14)
    more = {name: np.concatenate([x, [0.3, 0.4]]) for name, x in data.items()} | {"weight": np.r_[np.ones(40), 0, 0]}
    for sigma in (0.05, None):
        one, two = (
            posterior(ExactFamily(Heat(), kappa=(0.03, 0.4)), d, sigma=sigma, method="laplace") for d in (data, more)
        )
        assert np.allclose(one.samples, two.samples, rtol=1e-9)


# Invalid input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "hmc"}, "method is 'hmc', but it must be mcmc or laplace"),
        ({"sigma": 0.0}, "sigma is 0.0, but it must be a finite number above 0"),
        ({"sigma": (0.1, -1.0)}, "an entry of sigma is -1.0"),
        ({"sigma": (0.1, 1.0, 2.0)}, "sigma has 3 entries"),
        ({"steps": 10}, "steps is 10"),
        ({"seed": -1}, "seed is -1"),
        ({"data": {"x": [0.1], "t": [0.2], "u": [0.3]}, "sigma": None}, "1 measured values cannot tell 1 parameters"),
        ({"data": {"x": [0.1], "u": [0.3]}}, "data has no column 't'"),
        ({"data": Term(Box(x=(0, 1)), lambda f: f.u)}, "measured, so its region must be the measured points"),
        ({"prior": lambda nu: 0.0}, "prior must take arrays .* by the names kappa"),
        ({"prior": lambda kappa: [0.0, 1.0]}, "prior must take arrays"),
        ({"prior": lambda kappa: np.where(kappa > 0.2, np.nan, 0.0)}, "prior is nan at kappa=0.2"),
        ({"prior": lambda kappa: np.full(kappa.shape, -np.inf)}, "prior is -inf over the whole range"),
    ],
)
def test_invalid_input_is_refused_in_one_sentence(change, message):
    given = {"data": columns(Heat(kappa=0.12), 10, 0.05, 15), "sigma": 0.05} | change
    with pytest.raises(InputError, match=message) as refused:
        posterior(ExactFamily(Heat(), kappa=(0.03, 0.4)), given.pop("data"), **given)
    assert str(refused.value).count(". ") == 0


def test_a_prior_may_exclude_a_part_of_the_range():
    data = columns(Heat(kappa=0.12), 10, 0.3, 16)
    prior = lambda kappa: np.where(kappa < 0.1, 0.0, -np.inf)
    found = posterior(ExactFamily(Heat(), kappa=(0.03, 0.4)), data, sigma=0.3, prior=prior)
    assert found.samples.max() < 0.1


def test_a_missing_emcee_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "emcee", None)
    data = columns(Heat(kappa=0.12), 40, 0.05, 14)
    family = ExactFamily(Heat(), kappa=(0.03, 0.4))
    with pytest.raises(InputError, match=r"pip install 'pinn-odelora\[bayes\]'"):
        posterior(family, data, sigma=0.05)
    assert not family.asked
    assert posterior(family, data, sigma=0.05, method="laplace").method == "laplace"


def test_an_answer_that_is_not_finite_is_named():
    data = columns(Heat(kappa=0.12), 10, 0.05, 15)

    class Broken(ExactFamily):
        def __call__(self, **values):
            answer = super().__call__(**values)
            broken = lambda *at: answer(*at) * (math.nan if values["kappa"] > 0.3 else 1)
            broken.problem, broken.error = answer.problem, answer.error
            return broken

    with pytest.raises(NonFiniteError, match=r"answer at kappa=0\.4 is not finite"):
        posterior(Broken(Heat(), kappa=(0.03, 0.4)), data)


def test_three_parameters_are_refused():
    family = ExactFamily(Heat(), kappa=(0.03, 0.4))
    family.space = Ranges(tuple(Interval(name, 0.0, 1.0, "linear") for name in "abc"))
    with pytest.raises(InputError, match="3 parameters; a posterior is found for one or two"):
        posterior(family, {})


# With a family of networks.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")
def test_a_family_of_networks_gives_the_posterior_of_the_exact_solutions():
    """And the interval of a coefficient that is unknown in an adaptation; two sets of measurements, one family."""
    net = po.pretrain(Burgers(nu=0.05))
    family = po.family(net, Burgers(), nu=(0.05, 0.006), tolerance=1e-4, budget=po.Budget(steps=150))
    for seed in range(2):
        data = in_the_layer(seed)
        found = posterior(family, data, steps=4000)
        exact = posterior(ExactFamily(Burgers(), nu=(0.006, 0.05)), data, steps=4000)
        assert found.answers <= 60
        assert abs(found.mode["nu"] - exact.mode["nu"]) < 0.2 * exact.std["nu"]
        assert found.std["nu"] == pytest.approx(exact.std["nu"], rel=0.06)
        settings = {"data": data, "unknown": ("nu",), "budget": po.Budget(gradient_evals=200)}
        best, last = (
            po.adapt(net, Burgers(nu=0.05), points=po.Sampling(best_iterate=choice), **settings).coefficients["nu"]
            for choice in (True, False)
        )
        # Noise can hide from the best iterate what is left of the equation; it says so then.
        assert last["settled"]
        for other in [last, *([best] if best["settled"] else [])]:
            assert abs(found.mean["nu"] - other["estimate"]) < 0.5 * other["std"]
            assert found.std["nu"] == pytest.approx(other["std"], rel=0.12)

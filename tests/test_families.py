"""Families: ranges, guesses, the span of stations, estimates, the path, and files."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.interpolate import CubicSpline

import pinn_odelora as po
from pinn_odelora.diagnostics import errors
from pinn_odelora.families import estimate, offline
from pinn_odelora.families.estimate import DAMPINGS, Linearised, Unseen, green, relative
from pinn_odelora.families.interpolation import guesses
from pinn_odelora.families.parametric import Parametric, fresh
from pinn_odelora.families.ranges import Interval, Ranges
from pinn_odelora.families.sensitivity import sensitivity
from pinn_odelora.families.span import Span, gauss_newton
from pinn_odelora.families.stations import Station, distance, solve
from pinn_odelora.linearisation import Linearisation
from problems.burgers import Burgers
from problems.heat import Heat
from problems.helmholtz import Helmholtz
from problems.kovasznay import Kovasznay


def mlp(problem, width=12, depth=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return po.MLP(problem.inputs, len(problem.fields), width=width, depth=depth, generator=generator)


@pytest.fixture(scope="module")
def heat():
    """A small network that solves the heat equation at κ = 0.05."""
    settings = po.Pretraining(adam_steps=100, natural_gradient_steps=60, interior=400, target=1e-4)
    return po.pretrain(Heat(kappa=0.05), mlp(Heat()), settings=settings)


@pytest.fixture(scope="module")
def family(heat):
    return po.family(heat, Heat(), kappa=(0.05, 0.1), budget=po.Budget(steps=70), tolerance=1e-4, most=9)


def error_of(u):
    return errors(u.problem, po.Solution(u.problem, u.net), 2048)["error/rel_l2"]


# Ranges.


@pytest.mark.parametrize(("ends", "scale"), [((0.05, 0.006), "log"), ((3.0, 6.0), "linear"), ((-1.0, 4.0), "linear")])
def test_coordinates_and_values_are_inverse(ends, scale):
    interval = Interval.of("nu", ends)
    assert interval.scale == scale
    assert (interval.low, interval.high) == (min(ends), max(ends))
    assert (interval.value(0.0), interval.value(1.0)) == (min(ends), max(ends))
    for x in (0.0, 0.31, 0.77, 1.0):
        assert interval.coordinate(interval.value(x)) == pytest.approx(x, abs=1e-12)


def test_a_logarithmic_coordinate_is_even_in_ratios():
    interval = Interval.of("nu", (1e-3, 1e-1))
    assert interval.value(0.5) == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("problem", "ends", "said"),
    [
        (Burgers(), {"nu": (0.1,)}, "the two ends of its range"),
        (Burgers(), {"nu": (0.1, 0.1)}, "two different ends"),
        (Burgers(), {"nu": (0.0, 0.1)}, "nu is 0.0, but it must be a finite number above 0"),
        (Burgers(), {"nu": "wide"}, "the two ends of its range"),
        (Burgers(), {"nuu": (0.1, 0.2)}, "did you mean 'nu'"),
        (Burgers(), {}, "the range of at least one parameter"),
        (Helmholtz(), {"k": (1, 4)}, "Unknown parameter of Helmholtz"),
    ],
)
def test_an_invalid_range_is_one_sentence(problem, ends, said):
    with pytest.raises(po.InputError, match=said):
        Ranges.of(problem, ends)


# The first guess.


def test_guesses_reproduce_affine_functions_of_the_parameters():
    rng = np.random.default_rng(3)
    stations, x = rng.random((7, 2)), np.array([0.37, 0.61])
    nearest, *others = guesses(stations, x)
    assert nearest.sum() == 1
    assert len(others) == 2
    for c in others:
        assert c.sum() == pytest.approx(1)
        np.testing.assert_allclose(c @ stations, x, atol=1e-9)


def test_the_polyharmonic_guess_is_the_natural_cubic_spline_in_one_parameter():
    nodes = np.array([0.0, 0.13, 0.4, 0.71, 1.0])
    values = np.exp(2 * nodes) * np.sin(5 * nodes)
    *_, c = guesses(nodes[:, None], np.array([0.53]))
    assert c @ values == pytest.approx(float(CubicSpline(nodes, values, bc_type="natural")(0.53)), rel=1e-9)


# The span.


@pytest.fixture(scope="module")
def parametric():
    return Parametric(mlp(Burgers(), seed=4), Burgers(), ("nu",), po.LoRA(rank=3))


def moved(parametric, seed, size=0.1):
    generator = torch.Generator().manual_seed(seed)
    noise = lambda x: size * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return {name: x + noise(x) for name, x in parametric.start.items()}


def test_the_jacobian_in_the_span_is_the_derivative_of_the_residuals(parametric):
    base, neighbours = moved(parametric, 0), [moved(parametric, k) for k in (1, 2, 3)]
    parametric.place(base, {"nu": 0.03})
    span, points = Span(parametric, base, neighbours), parametric.points(60, 0, "test")
    generator = torch.Generator().manual_seed(5)
    z, d = (torch.randn(span.dimension, generator=generator, dtype=torch.float64) for _ in range(2))
    here = span.at(0.3 * z)
    parametric.place(here)
    J = Linearisation(parametric.objective.sweep, points).columns(span.frames(here))
    ends = []
    for sign in (1, -1):
        parametric.place(span.at(0.3 * z + sign * 1e-5 * d))
        ends.append(parametric.residual_vector(points))
    assert J.shape == (len(ends[0]), span.dimension)
    torch.testing.assert_close(J @ d, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-7)


def test_the_span_holds_all_stations_that_span_it(parametric):
    base, neighbours = moved(parametric, 0), [moved(parametric, k) for k in (1, 2)]
    span = Span(parametric, base, neighbours)
    # Coordinates of the first neighbour, part by part, by least squares.
    for layer, own in span.directions.items():
        a, b = span.factors[layer]
        for c, V in enumerate(own.A):
            gap = neighbours[0][a][c] - base[a][c]
            assert torch.linalg.vector_norm(gap - V.T @ torch.linalg.lstsq(V.T, gap[:, None]).solution[:, 0]) < 1e-10
        for c, U in enumerate(own.B):
            gap = neighbours[0][b][:, c] - base[b][:, c]
            assert torch.linalg.vector_norm(gap - U @ torch.linalg.lstsq(U, gap[:, None]).solution[:, 0]) < 1e-10


def test_the_span_has_no_direction_twice(parametric):
    base, near = moved(parametric, 0), moved(parametric, 1)
    assert Span(parametric, base, [near]).dimension == Span(parametric, base, [near, near]).dimension


def test_steps_in_the_span_end_where_the_gradient_vanishes(heat, monkeypatch):
    # An answer ends sooner, after four linearisations or where one gains less than a tenth.
    monkeypatch.setattr("pinn_odelora.families.span.RENEWALS", 40)
    monkeypatch.setattr("pinn_odelora.families.span.SETTLED", 0.999)
    parametric = Parametric(heat, Heat(), ("kappa",))
    start = parametric.start
    others = [solve(parametric, start, {"kappa": k}, 1e-3, 0, 4).weights for k in (0.055, 0.06)]
    parametric.place(start, {"kappa": 0.0575})
    points = parametric.points(300, 0, "test")
    before = parametric.residual_vector(points).square().sum()
    span = Span(parametric, start, others)
    found = gauss_newton(span, points)
    around = Linearisation(parametric.objective.sweep, points)
    J = around.columns(span.frames(found.weights))
    assert found.loss < 5e-2 * before
    assert torch.linalg.vector_norm(J.mT @ around.r) < 1e-2 * torch.linalg.vector_norm(J) * torch.linalg.vector_norm(
        around.r
    )


# Estimates.


def test_the_estimate_sees_a_small_displacement_of_the_weights(family):
    """Displaced within the adapter, a solved member has the error that G finds from its residual."""
    parametric, station = family.parametric, family.stations[0]
    G = Linearised(parametric, 0).green(station)
    parametric.place(station.weights, station.values)
    before, residual = parametric.function(), Linearised(parametric, 0)
    r0 = residual.residuals()
    generator = torch.Generator().manual_seed(0)
    nudge = lambda x: 1e-4 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    parametric.place({name: x + nudge(x) for name, x in station.weights.items()})
    error = (parametric.function() - before).mT.flatten()
    r = residual.residuals()
    found = -G.error(Unseen(r.own - r0.own, r.further - r0.further))
    assert torch.linalg.vector_norm(found - error) < 0.05 * torch.linalg.vector_norm(error)


def equation(generator, rows=90, coordinates=60, decay=1e-10):
    """J, J' and U with singular values that fall by so much, as those of a network do."""
    mixing = torch.linalg.qr(torch.randn(coordinates, coordinates, generator=generator, dtype=torch.float64)).Q
    falling = torch.logspace(0, np.log10(decay), coordinates, dtype=torch.float64)
    drawn = lambda n: torch.randn(n, coordinates, generator=generator, dtype=torch.float64) * falling @ mixing.mT
    # What the network hardly resolves hardly moves r, and u more.
    functions = torch.randn(20, coordinates, generator=generator, dtype=torch.float64) * falling**0.5 @ mixing.mT
    return drawn(rows), drawn(rows // 2), functions, mixing


def test_the_error_is_that_of_the_coordinates_that_explain_the_residual(generator):
    J, further, U, mixing = equation(generator)
    move = mixing[:, :20] @ torch.randn(20, generator=generator, dtype=torch.float64)
    found = green(J, further, U).error(Unseen(-J @ move, -further @ move))
    assert torch.linalg.vector_norm(found - U @ move) < 1e-4 * torch.linalg.vector_norm(U @ move)


def test_what_is_no_consequence_of_an_error_is_not_taken_for_one(generator):
    """Noise of a tenth of the residual: undamped it is taken for errors that are a thousand times larger."""
    J, further, U, mixing = equation(generator)
    move = mixing[:, 0]
    noise = [0.1 * torch.randn(len(x), generator=generator, dtype=torch.float64) for x in (J, further)]
    found = green(J, further, U).error(Unseen(noise[0] - J @ move, noise[1] - further @ move))
    undamped = U @ torch.linalg.lstsq(J, J @ move - noise[0], driver="gels").solution
    size = torch.linalg.vector_norm(U @ move)
    assert size / 3 < torch.linalg.vector_norm(found) < 3 * size
    assert torch.linalg.vector_norm(undamped - U @ move) > 1e3 * size


def test_the_damping_is_the_smallest_that_explains_further_residuals_as_well(generator):
    J, further, U, mixing = equation(generator)
    move = mixing @ torch.logspace(0, 4, 60, dtype=torch.float64)
    noise = lambda x: torch.randn(len(x), generator=generator, dtype=torch.float64)
    r, beyond = (0.03 * noise(x) - x @ move for x in (J, further))
    trace, eye = J.square().sum(), torch.eye(J.shape[1], dtype=torch.float64)
    moves = [-torch.linalg.solve(J.mT @ J + mu * trace * eye, J.mT @ r) for mu in DAMPINGS]
    left = [float((beyond + further @ move).square().sum()) for move in moves]
    wanted = next(k for k, x in enumerate(left) if x <= (1 + (2 / len(beyond)) ** 0.5) * min(left))
    assert 0 < wanted < int(np.argmin(left))  # neither the smallest of all nor the best
    found = green(J, further, U).error(Unseen(r, beyond))
    expected = U @ moves[wanted]
    assert torch.linalg.vector_norm(found - expected) < 1e-4 * torch.linalg.vector_norm(expected)


def test_a_member_without_residual_has_no_error_and_one_that_is_not_finite_an_infinite_one(generator):
    J, further, U, _ = equation(generator)
    r, beyond = torch.zeros(len(J)).double(), torch.zeros(len(further)).double()
    operator = green(J, further, U)
    assert not operator.error(Unseen(r, beyond)).any()
    assert not operator.error(Unseen(r + float("nan"), beyond)).isfinite().any()


def test_random_combinations_of_many_coordinates_give_the_same_estimate(family, monkeypatch):
    parametric, station = family.parametric, family.stations[0]
    monkeypatch.setattr(estimate, "COORDINATES", parametric.dimension - 40)
    few, every = Linearised(parametric, 0), family._linearised
    assert few.coordinates == parametric.dimension - 40
    parametric.place(station.weights, {"kappa": 1.1 * station.values["kappa"]})
    found = []
    for linearised in (few, every):
        here = linearised.residuals()
        operator = linearised.green(station)
        found.append(relative(operator.error(here), parametric.function()))
        parametric.place(station.weights, {"kappa": 1.1 * station.values["kappa"]})
    assert found[0] == pytest.approx(found[1], rel=0.05)


def test_estimates_are_near_the_truth(family):
    found = [(family(kappa=k).error, error_of(family(kappa=k))) for k in (0.053, 0.055, 0.057, 0.07, 0.083, 0.096)]
    assert all(estimate > truth / 3 for estimate, truth in found)
    # Of members as good as these stations are estimates larger: the stations' own noise is in G.
    assert all(estimate < 3 * truth for estimate, truth in found if truth > 1.5e-6)
    assert sum(truth > 1.5e-6 for _, truth in found) >= 3


def test_relative_is_a_ratio_of_norms():
    u = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    assert relative(torch.tensor([0.3, 0.4]), u) == pytest.approx(0.1)


# A whole family.


def test_answers_are_good_between_stations(family):
    assert len(family.stations) >= 5
    found = [error_of(family(kappa=k)) for k in (0.0525, 0.066, 0.0815, 0.097)]
    assert max(found) < 2e-3


def test_an_answer_is_a_function_with_an_adapter(family, tmp_path):
    u = family(kappa=0.08)
    x, t = np.linspace(0, 1, 5), np.full(5, 0.3)
    assert u(x, t).shape == (5,)
    assert u.problem == Heat(kappa=0.08)
    u.adapter.save(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "kappa=0.08" in repr(u)
    assert [round(a.values["kappa"], 3) for a in family.answers(kappa=[0.06, 0.07])] == [0.06, 0.07]


def test_answers_do_not_depend_on_those_before(family):
    first = family(kappa=0.071)
    family(kappa=0.09)
    again = family(kappa=0.071)
    x, t = np.random.default_rng(0).random((2, 20))
    assert np.array_equal(first(x, t), again(x, t))
    assert first.error == again.error


def test_a_tolerance_takes_steps_on_the_manifold(family):
    plain = family(kappa=0.07)
    better = family(kappa=0.07, tolerance=plain.error / 4)
    assert better.corrections > 0
    assert better.error < plain.error
    assert error_of(better) < error_of(plain)
    assert family(kappa=0.07, tolerance=2 * plain.error).corrections == 0


def test_the_derivative_is_that_of_the_solution(family):
    rng = np.random.default_rng(0)
    x, t = rng.random((2, 300))
    kappa = 0.07
    u = lambda k: (
        Heat(kappa=k).reference(po.Points(x=torch.tensor(x)[:, None], t=torch.tensor(t)[:, None]))[:, 0].numpy()
    )
    exact = (u(kappa + 1e-5) - u(kappa - 1e-5)) / 2e-5
    found = family.derivative("kappa", kappa=kappa)(x, t)
    assert np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)


def test_the_derivative_does_not_depend_on_the_weight_of_the_loss(heat, family):
    """Its damping is relative to the largest entry of JᵀJ, which has the weight as a factor."""
    x, t = np.random.default_rng(1).random((2, 40))
    station, found = family.stations[2], []
    for weight in (1.0, 1e-6):
        parametric = Parametric(heat, Heat(weights={"pde": weight}), ("kappa",), family.parametric.lora)
        points = parametric.points(1000, 0, "test")
        slope = sensitivity(parametric, dict(station.values), station.weights, "kappa", 1e-4, points)
        found.append(slope(x, t))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-3 * np.abs(found[0]).max())


def test_what_lies_outside_is_refused_unless_asked_for(family):
    with pytest.raises(po.InputError, match=r"kappa is 0.2, but it must be from 0.05 to 0.1 in this family"):
        family(kappa=0.2)
    u = family(kappa=0.101, extrapolate=True)
    assert math.isfinite(u.error)
    with pytest.raises(po.InputError, match="kappa is not given"):
        family()
    with pytest.raises(po.InputError, match="Unknown parameter of the family"):
        family(nu=0.1)
    with pytest.raises(po.InputError, match="tolerance is 0"):
        family(kappa=0.07, tolerance=0)
    with pytest.raises(po.InputError, match="Unknown parameter of the family"):
        family.derivative("nu", kappa=0.07)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 2, "lora": po.LoRA()}, "rank and lora are both given"),
        ({"seconds": 3, "budget": po.Budget(steps=3)}, "budget and seconds are both given"),
        ({"tolerance": -1}, "tolerance is -1"),
        ({"most": 1}, "most is 1"),
        ({"lora": po.LoRA(rank="adaptive")}, "one rank"),
        ({"rank": 50}, "at most 12"),
        ({"scale": "cubic"}, "scale is 'cubic'"),
    ],
)
def test_invalid_settings_are_one_sentence(heat, settings, said):
    with pytest.raises(po.InputError, match=said):
        po.family(heat, Heat(), kappa=(0.05, 0.1), **settings)


def test_the_network_is_not_changed(heat):
    before = {name: x.clone() for name, x in heat.state_dict().items()}
    po.family(heat, Heat(), kappa=(0.05, 0.06), budget=po.Budget(steps=4), most=3)
    assert all(torch.equal(x, before[name]) for name, x in heat.state_dict().items())


def test_the_path_starts_where_the_network_solves_the_equation(heat):
    for ends in ((0.02, 0.05), (0.05, 0.2)):
        made = po.family(heat, Heat(), kappa=ends, budget=po.Budget(steps=1), most=2)
        assert made.stations[0].values["kappa"] == pytest.approx(0.05)


def test_a_station_out_of_reach_halves_the_distance(heat, monkeypatch):
    real = offline.solve

    def short_sighted(parametric, start, values, *args):
        station = real(parametric, start, values, *args)
        far = abs(math.log(values["kappa"] / last["kappa"])) > 0.2
        if far:
            return Station(station.values, station.weights, 1.0, 1.0, 1, 1, 0.0)
        last["kappa"] = values["kappa"]
        return station

    last = {"kappa": 0.05}
    monkeypatch.setattr(offline, "solve", short_sighted)
    monkeypatch.setitem(offline.GRIDS, 1, (2,))
    monkeypatch.setattr(offline.Construction, "_refine", lambda self: False)
    said = []
    made = po.family(heat, Heat(), kappa=(0.05, 0.08), budget=po.Budget(steps=40), most=9, say=said.append)
    reached = sorted(s.values["kappa"] for s in made.stations)
    assert reached[-1] == pytest.approx(0.08)
    assert all(b / a < math.exp(0.2001) for a, b in pairwise(reached))
    assert any("half the distance" in line for line in said)


def test_a_system_of_equations_has_families(monkeypatch):
    monkeypatch.setitem(offline.GRIDS, 1, (3,))
    problem = Kovasznay(re=20.0)
    net = po.pretrain(problem, mlp(problem), settings=po.Pretraining(natural_gradient_steps=60, interior=400))
    made = po.family(net, problem, re=(20, 24), budget=po.Budget(steps=18), most=3)
    u = made(re=22.0)
    assert u(0.3, 0.4).shape == (3,)
    assert error_of(u) < 0.05


def test_two_parameters(heat, monkeypatch):
    monkeypatch.setitem(offline.GRIDS, 2, (3,))
    problem = Burgers(nu=0.1)
    net = po.pretrain(problem, mlp(problem), settings=po.Pretraining(natural_gradient_steps=25, interior=300))
    made = po.family(net, problem, nu=(0.1, 0.15), amplitude=(0.9, 1.0), budget=po.Budget(steps=70), tolerance=1e-3)
    assert len(made.stations) >= 9
    u = made(nu=0.12, amplitude=0.96)
    assert error_of(u) < 5e-3
    corners = {(s.values["nu"], s.values["amplitude"]) for s in made.stations}
    assert {(0.1, 0.9), (0.15, 0.9), (0.1, 1.0), (0.15, 1.0)} <= corners


# Files.


def test_a_saved_family_gives_the_same_answers(family, heat, tmp_path):
    path = tmp_path / "heat.safetensors"
    family.save(path)
    found = po.load_family(path, heat, Heat())
    a, b = family(kappa=0.0777), found(kappa=0.0777)
    x, t = np.random.default_rng(0).random((2, 20))
    assert np.array_equal(a(x, t), b(x, t))
    assert np.array_equal(a.adapted(x, t), b.adapted(x, t))
    assert a.error == b.error
    assert [s.values for s in found.stations] == [s.values for s in family.stations]
    assert found.ranges == family.ranges


class Backwards(Heat):
    """Under the name of the heat equation another one."""

    def terms(self):
        pde = super().terms()["pde"]
        return super().terms() | {"pde": pde._replace(residual=lambda f: f.op("u", {"t": -1, "xx": -self.kappa}))}


Backwards.__name__ = "Heat"


def test_a_family_of_another_network_or_equation_is_refused(family, heat, tmp_path):
    path = tmp_path / "heat.safetensors"
    family.save(path)
    with pytest.raises(po.InputError, match="belongs to another pretrained network: its digest is"):
        po.load_family(path, mlp(Heat(), seed=7), Heat())
    with pytest.raises(po.InputError, match="is of another family: the equation"):
        po.load_family(
            path,
            heat,
            po.problem(
                coords="xt",
                region=po.Box(x=(0, 1), t=(0, 1)),
                kappa=po.parameter(0.05, 0.1),
                pde=lambda f, kappa: f.u_t - kappa * f.u_xx,
            ),
        )
    with pytest.raises(po.InputError, match="is of another equation: the pretrained network has a loss of"):
        po.load_family(path, heat, Backwards())
    with pytest.raises(po.InputError, match="There is no family at"):
        po.load_family(tmp_path / "none", heat, Heat())
    (tmp_path / "text").write_text("hello")
    with pytest.raises(po.InputError, match="is no family of this program"):
        po.load_family(tmp_path / "text", heat, Heat())
    with pytest.raises(po.InputError, match="the ranges there"):
        po.family(heat, Heat(), kappa=(0.05, 0.3), file=path, budget=po.Budget(steps=1))


def rewritten(path, change):
    """The file with another content, and no digest, as files of before have none."""
    with safetensors.safe_open(path, "pt") as file:
        content = json.loads(file.metadata()["family"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del content["sha256"]
    change(content, tensors)
    safetensors.torch.save_file(tensors, path, {"family": json.dumps(content)})


MALFORMED = {
    "a counter": lambda content, tensors: content["stations"][0].update(steps=-1),
    "a word": lambda content, tensors: content["stations"][0].update(loss="small"),
    "a parameter": lambda content, tensors: content["stations"][0]["values"].update(kappa=None),
    "no parameters": lambda content, tensors: content["stations"][0].pop("values"),
    "ranges": lambda content, tensors: content.update(ranges=[{"low": 1}]),
    "adapters": lambda content, tensors: content.update(lora={"rank": "large"}),
    "no conditions": lambda content, tensors: content.pop("conditions"),
    "a grid": lambda content, tensors: content.update(grid=None),
    "losses": lambda content, tensors: content.update(losses="none"),
    "NaN": lambda content, tensors: next(iter(tensors.values())).fill_(math.nan),
}


def test_a_file_that_changed_or_is_malformed_is_refused(family, heat, tmp_path):
    path = tmp_path / "heat.safetensors"
    family.save(path)
    whole = path.read_bytes()
    digit = whole.index(b'loss\\": ') + len(b'loss\\": ')
    for place in (digit, len(whole) - 9):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(po.InputError, match="has changed since it was written, or is damaged: its digest is"):
            po.load_family(path, heat, Heat())
    for change in MALFORMED.values():
        path.write_bytes(whole)
        rewritten(path, change)
        with pytest.raises(po.InputError, match="is no family of this program"):
            po.load_family(path, heat, Heat())
    path.write_bytes(whole)
    rewritten(path, lambda content, tensors: content.pop("losses"))  # of an earlier version
    assert len(po.load_family(path, heat, Heat()).stations) == len(family.stations)


def test_an_interrupted_family_goes_on_to_the_same_bytes(heat, tmp_path, monkeypatch):
    monkeypatch.setitem(offline.GRIDS, 1, (4,))
    settings = {"kappa": (0.05, 0.07), "budget": po.Budget(steps=36), "tolerance": 1e-6}
    po.family(heat, Heat(), file=tmp_path / "whole", **settings)
    real, kept = offline.save, []

    def save_and_stop(family, path):
        real(family, path)
        kept.append(len(family.stations))
        if len(kept) in (1, 3, 4):
            raise KeyboardInterrupt

    monkeypatch.setattr(offline, "save", save_and_stop)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            po.family(heat, Heat(), file=tmp_path / "parts", **settings)
    po.family(heat, Heat(), file=tmp_path / "parts", **settings)
    assert kept == sorted(kept)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_points_forget_what_was_kept_with_them():
    p = po.Points(x=torch.zeros(3, 1))
    p.kept("key", lambda: 1)
    assert fresh({"pde": p})["pde"].kept("key", lambda: 2) == 2


def test_distance_is_relative_to_the_second():
    u = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    assert distance(u, 2 * u) == pytest.approx(0.5)

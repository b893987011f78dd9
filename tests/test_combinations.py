"""Combinations of the stations' solutions: residuals and Jacobians, Gauss–Newton steps, and when there are none."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_families import error_of, family, heat, mlp  # noqa: F401  two of them are fixtures
from torch import Tensor

import pinn_odelora as po
from pinn_odelora.families.combination import Combinations, CombinedNetwork, gauss_newton
from pinn_odelora.families.estimate import Unseen
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.stations import Station
from pinn_odelora.lowrank.settings import LoRA
from pinn_odelora.nets import MLP, Scaled
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.units import Scales, Unit
from problems.allen_cahn import AllenCahn
from problems.burgers import Burgers
from problems.convection import Convection
from problems.heat import Heat
from problems.kovasznay import Kovasznay
from problems.reaction import Reaction


def ring(**settings):
    """A periodic condition that reads the solution at moved points, and a parameter in it."""
    return po.problem(
        name="Ring",
        coords="xt",
        region=po.Box(x=(0, 2), t=(0, 1)),
        nu=po.parameter(0.1, 0.2, above=0),
        pde=lambda f, nu: f.u_t + f.u * f.u_x - nu * f.u_xx,
        ends=(po.Box(x=(0, 0), t=(0, 1)), lambda f, nu: f.u - (1 + nu) * f.at(x=f.x + 2).u),
        **settings,
    )


def ramp(cutoff=lambda p, nu: p.x * (1 - p.x), **settings):
    """Two fields, an operator and an ansatz that depend on the parameter, and a product of fields."""
    return po.problem(
        name="Ramp",
        coords="xy",
        fields="uv",
        region=po.Box(x=(0, 1), y=(0, 1)),
        nu=po.parameter(0.1, 0.2, above=0),
        pde=lambda f, nu: (f.u * f.v_x - f.op("u", {"xx": nu, "yy": 1.0, "": -2.0}), f.v_y + nu**2 * f.u * f.u_x),
        walls=(po.Box(x=(0, 0), y=(0, 1)), lambda f, nu: f.u - nu * torch.exp(nu * f.y)),
        enforced="walls",
        ansatz=lambda p, nu: (nu * torch.exp(nu * p.y) * (1 - p.x), cutoff(p, nu)),
        **settings,
    )


CASES = {
    "burgers": (Burgers(), "nu", (0.02, 0.05)),
    "soft burgers": (Burgers(conditions="soft", weights={"pde": 3.0}), "nu", (0.02, 0.05)),
    "heat": (Heat(), "kappa", (0.05, 0.2)),
    "reaction": (Reaction(), "rho", (3.0, 5.0)),
    "convection": (Convection(), "beta", (10.0, 20.0)),
    "allen_cahn": (AllenCahn(), "d", (1e-4, 1e-3)),
    "kovasznay": (Kovasznay(), "re", (20.0, 60.0)),
    "ramp": (ramp(), "nu", (0.1, 0.3)),
    "ring": (ring(), "nu", (0.1, 0.3)),
}


def stations_of(parametric, name, ends, number=3):
    """Of random weights, at generic parameters."""
    found = []
    for k in range(number):
        generator = torch.Generator().manual_seed(k)
        draw = lambda x, g=generator: x + 0.3 * torch.randn(x.shape, generator=g, dtype=x.dtype)
        weights = {key: draw(x) for key, x in parametric.start.items()}
        value = ends[0] + (0.1 + 0.37 * k) * (ends[1] - ends[0])
        found.append(Station({name: value}, weights, 1.0, 0.0, 1, 1, 0.0))
    return found


def unseen(parametric):
    return Unseen(parametric.points(70, 0, "b"), parametric.points(30, 0, "c"))


@pytest.fixture(params=CASES)
def made(request):
    problem, name, ends = CASES[request.param]
    parametric = Parametric(mlp(problem, width=7), problem, (name,))
    combinations = Combinations(parametric, parametric.points(60, 0, "a"), unseen(parametric))
    combinations.take(stations_of(parametric, name, ends))
    values = [{name: float(x)} for x in np.linspace(*ends, 4)[1:3]]
    c = torch.tensor([[0.7, -0.4, 0.2], [0.1, 1.3, -0.6]], dtype=torch.float64)
    return combinations, values, c


def residuals_of_network(combinations, values, c, points):
    problem = combinations.parametric.problem_at(values)
    system = System(problem, Solution(problem, combinations.network(c)), derivatives="autograd")
    return system.residual_vector(points)


def test_residuals_are_those_of_the_sum_of_the_networks(made):
    combinations, values, c = made
    basis = combinations.steps
    found = basis.residuals(combinations._at(values), c)
    for r, v, x in zip(found, values, c, strict=True):
        expected = residuals_of_network(combinations, v, x, basis.points).detach()
        torch.testing.assert_close(r, expected, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(basis.residuals(combinations._at([v]), x[None])[0], expected, rtol=1e-9, atol=1e-10)


def test_the_jacobian_is_that_of_the_residuals(made):
    combinations, values, c = made
    basis = combinations.steps
    r, J = basis.linearised(combinations._at(values), c)
    torch.testing.assert_close(r, basis.residuals(combinations._at(values), c))
    for i, v in enumerate(values):
        at = combinations._at([v])
        ends = lambda k, i=i, at=at: (
            basis.residuals(at, (c[i] + s * 1e-6 * torch.eye(3, dtype=c.dtype)[k])[None])[0] for s in (1, -1)
        )
        for k in range(3):
            ahead, behind = ends(k)
            torch.testing.assert_close(J[i, :, k], (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)


def test_the_probes_have_the_solution(made):
    combinations, values, _ = made
    found = combinations.find(values, [0, 2])
    for one, v in zip(found, values, strict=True):
        problem = combinations.parametric.problem_at(v)
        solution = Solution(problem, combinations.network(one.coefficients))
        torch.testing.assert_close(one.u, solution(combinations.parametric.probes).detach(), rtol=1e-9, atol=1e-10)


def test_the_probes_of_a_network_in_units_have_fields_in_these(generator):
    """The error of an answer is relative to them, as G is."""
    problem = Kovasznay()
    units = {"u": Unit(1.0, 2.0), "v": Unit(0.0, 0.5), "p": Unit(-3.0, 7.0)}
    net = Scaled(MLP(2, 3, width=6, depth=3, generator=generator), Scales(dict.fromkeys("xy", Unit()), units, units))
    parametric = Parametric(net, problem, ("re",), LoRA(rank=2))
    points = parametric.points(30, 0, "test")
    combinations = Combinations(parametric, points, Unseen(points, points))
    combinations.take([Station({"re": 40.0}, parametric.weights(), 0.0, 0.0, 1, 1, 0.0)])
    (one,) = combinations.find([{"re": 40.0}], [0])
    u = Solution(problem, combinations.network(one.coefficients))(parametric.probes).detach()
    expected = (u - torch.tensor([1.0, 0.0, -3.0])) / torch.tensor([2.0, 0.5, 7.0])
    torch.testing.assert_close(one.u, expected, rtol=1e-8, atol=1e-9)


def test_enforced_conditions_hold_for_any_coefficients(made):
    combinations, values, c = made
    problem = combinations.parametric.problem_at(values[0])
    if problem.conditions == "soft":
        pytest.skip("its conditions are terms of the loss")
    system = System(replace(problem, conditions="hard"), Solution(problem, combinations.network(c[0])))
    system.terms = {name: problem.terms()[name] for name in problem.enforced}
    points = draw_points(system.terms, 20, 20, seed=1)
    assert all(float(r.detach().abs().max()) < 1e-12 for r in system.residuals(points).values())


def test_members_found_together_are_those_found_alone(made):
    combinations, values, _ = made
    together = combinations.find(values, [0, 2])
    for one, v, start in zip(together, values, (0, 2), strict=True):
        (alone,) = combinations.find([v], [start])
        torch.testing.assert_close(one.u, alone.u, rtol=1e-6, atol=1e-8)
        assert one.loss == pytest.approx(alone.loss, rel=1e-8)
        assert one.steps == alone.steps


def test_steps_end_where_the_gradient_vanishes(made):
    combinations, values, _ = made
    found = combinations.find(values, [0, 2])
    for one, v in zip(found, values, strict=True):
        r, J = combinations.steps.linearised(combinations._at([v]), one.coefficients[None])
        unit = J[0] / torch.linalg.vector_norm(J[0], dim=0)
        slope = float(torch.linalg.vector_norm(unit.mT @ r[0]))
        # At most a hundredth of the loss is left to gain, so that a tenth of r lies in the space of the columns. Some
        # equations have the solution u = 0, where nothing is left.
        assert slope <= 0.1 * float(torch.linalg.matrix_norm(unit, 2) * torch.linalg.vector_norm(r)) + 1e-12


def test_a_renewed_station_renews_its_tables(made):
    combinations, values, c = made
    combinations.steps.residuals(combinations._at(values[:1]), c[:1])
    stations = list(combinations.stations)
    (name,) = stations[0].values
    stations[1] = stations_of(combinations.parametric, name, (stations[0].values[name], stations[2].values[name]), 5)[4]
    combinations.take(stations)
    found = combinations.steps.residuals(combinations._at(values[:1]), c[:1])[0]
    expected = residuals_of_network(combinations, values[0], c[0], combinations.steps.points).detach()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def banana(some: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Rosenbrock's residuals, with a scale of each member's own."""
    a = torch.tensor([10.0, 3.0, 30.0], dtype=c.dtype)[some]
    r = torch.stack([a * (c[:, 1] - c[:, 0] ** 2), 1 - c[:, 0], 0.1 * torch.ones_like(a)], dim=1)
    J = torch.zeros(len(c), 3, 2, dtype=c.dtype)
    J[:, 0, 0], J[:, 0, 1], J[:, 1, 0] = -2 * a * c[:, 0], a, -1.0
    return r, J


def test_halved_steps_follow_a_curved_valley():
    start = torch.tensor([[-0.3, 0.7], [0.9, 0.3], [1.4, 2.2]], dtype=torch.float64)
    found = gauss_newton(banana, start)
    torch.testing.assert_close(found.coefficients, torch.ones(3, 2, dtype=torch.float64), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, torch.full((3,), 0.005, dtype=torch.float64), rtol=1e-3, atol=0)
    for k in range(3):
        alone = gauss_newton(lambda some, c, k=k: banana(some + k, c), start[k : k + 1])
        torch.testing.assert_close(alone.coefficients[0], found.coefficients[k])
        assert int(alone.steps) == int(found.steps[k])


def test_dependent_columns_are_harmless(generator):
    A = torch.randn(1, 30, 4, dtype=torch.float64, generator=generator)
    A = torch.cat([A, A[..., :1] + 1e-14 * A[..., 1:2]], dim=2)
    b = torch.randn(30, dtype=torch.float64, generator=generator)
    found = gauss_newton(lambda some, c: ((A @ c[..., None])[..., 0] - b, A), torch.zeros(1, 5, dtype=torch.float64))
    best = torch.linalg.lstsq(A[0, :, :4], b[:, None]).solution
    assert float(found.loss) == pytest.approx(float((A[0, :, :4] @ best - b[:, None]).square().sum() / 2), rel=1e-9)


def test_no_loss_that_is_no_number_is_accepted():
    def r(some: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([torch.log(c[:, 0]) + 2, c[:, 0]], dim=1), torch.stack([1 / c, torch.ones_like(c)], dim=1)

    found = gauss_newton(r, torch.tensor([[2.0]], dtype=torch.float64))
    assert math.isfinite(float(found.loss))
    assert 0 < float(found.coefficients) < 2


def test_a_network_is_the_sum_of_networks():
    nets = [mlp(Heat(), width=5, seed=k) for k in range(3)]
    c = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    x = torch.rand(7, Heat().inputs, dtype=torch.float64)
    expected = sum(float(c[k]) * net(x) for k, net in enumerate(nets))
    torch.testing.assert_close(CombinedNetwork(nets, c)(x), expected)


# What has no combinations, or no batches.


def combinations_of(problem, name="nu", ends=(0.1, 0.3)):
    parametric = Parametric(mlp(problem, width=6), problem, (name,))
    found = Combinations(parametric, parametric.points(40, 0, "a"), unseen(parametric))
    found.take(stations_of(parametric, name, ends))
    return found


def test_members_with_cutoffs_of_their_own_are_not_added():
    found = combinations_of(ramp(cutoff=lambda p, nu: p.x * (1 - p.x) ** (1 + nu)))
    assert found.reason == "the factor m of its ansatz depends on nu"
    assert not combinations_of(ramp()).reason


def test_residuals_that_read_several_points_are_not_combined():
    mean = po.Term(po.Box(x=(0, 1), t=(0, 1)), lambda f, nu: f.u - nu * f.u.mean(), coupled=True)
    whole = po.problem(
        coords="xt",
        region=po.Box(x=(0, 1), t=(0, 1)),
        nu=po.parameter(0.1, 0.2),
        pde=lambda f, nu: f.u_t - nu * f.u_xx,
        mean=mean,
    )
    assert combinations_of(whole).reason == "residual 'mean' reads several points at once"


def test_an_equation_written_for_numbers_is_solved_one_member_at_a_time():
    written = lambda f, nu: f.u_t - math.exp(nu) * f.u_xx
    made = po.problem(coords="xt", region=po.Box(x=(0, 1), t=(0, 1)), nu=po.parameter(0.1, 0.2), pde=written)
    found = combinations_of(made)
    assert not found.batched
    assert combinations_of(ring()).batched
    values = [{"nu": 0.13}, {"nu": 0.28}]
    for one, v in zip(found.find(values, [0, 1]), values, strict=True):
        r = residuals_of_network(found, v, one.coefficients, found.steps.points)
        assert one.loss == pytest.approx(float(r.square().sum() / 2), rel=1e-8)


# In a family.


def test_a_family_answers_in_either_form(family):  # noqa: F811
    plain, adapter = family(kappa=0.068), family(kappa=0.068, form="adapter")
    assert (plain.form, adapter.form) == ("combination", "adapter")
    assert error_of(plain) < 1e-4
    assert error_of(adapter) < 1e-4
    assert plain.adapted.form == "adapter"
    assert error_of(plain.adapted) == pytest.approx(error_of(adapter))
    assert adapter.adapted is adapter
    x, t = np.random.default_rng(0).random((2, 9))
    assert np.allclose(plain(x, t), adapter(x, t), atol=1e-3)


def test_a_combination_is_not_trained_by_accident(family):  # noqa: F811
    assert not any(p.requires_grad for p in family(kappa=0.068).net.parameters())


def test_answers_found_together_are_those_found_one_by_one(family):  # noqa: F811
    values = [0.052, 0.068, 0.091]
    for u, value in zip(family.answers(kappa=values), values, strict=True):
        alone = family(kappa=value)
        assert u.values == alone.values
        assert u.error == pytest.approx(alone.error, rel=1e-3)
        assert u(0.3, 0.4) == pytest.approx(float(alone(0.3, 0.4)), rel=1e-7)


def test_where_a_combination_solves_worse_than_its_neighbours_the_adapter_is_tried(family, monkeypatch):  # noqa: F811
    monkeypatch.setattr(family, "loss_beside", lambda x: 0.0)  # which the steps of an adapter aim at, too
    found = family(kappa=0.068)
    better = family(kappa=0.068, form="adapter")
    assert found.error == min(better.error, family(kappa=0.068, form="combination").error)


def test_a_form_that_there_is_not_is_one_sentence(family, monkeypatch):  # noqa: F811
    with pytest.raises(po.InputError, match="form is 'sum', but it must be auto, combination or adapter"):
        family(kappa=0.068, form="sum")
    monkeypatch.setattr(family._of_stations("cpu"), "reason", "it is a test")
    with pytest.raises(po.InputError, match="Heat has no combinations, since it is a test; form=adapter is possible"):
        family(kappa=0.068, form="combination")
    assert family(kappa=0.068).form == "adapter"


@pytest.mark.gpu
def test_members_found_on_the_device_are_those_found_here(family):  # noqa: F811
    values = np.linspace(0.051, 0.099, 40)
    for u, v in zip(family.answers(kappa=values, device="cuda"), family.answers(kappa=values), strict=True):
        assert u.error == pytest.approx(v.error, rel=1e-2)
        assert u(0.3, 0.4) == pytest.approx(float(v(0.3, 0.4)), rel=1e-6)

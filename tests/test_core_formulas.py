"""What breaks made on purpose (``tests/robustness/breaks.py``) showed that no other test asserts: bounds where equality
counts, orders of arguments, and formulas on which only speed or a rare branch depends."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toys import Linear, normal

import pinn_odelora as po
from pinn_odelora.derivatives.plan import Operator, Plan
from pinn_odelora.derivatives.rehearsal import _gradient
from pinn_odelora.families import adapted, combination, stations
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.span import Found
from pinn_odelora.flows import balanced_flow, euler, scaled_flow
from pinn_odelora.flows.damped import Damped
from pinn_odelora.flows.start import is_zero
from pinn_odelora.geometry import sobol
from pinn_odelora.gradient import Gradient
from pinn_odelora.integrators import ROS2, tableau
from pinn_odelora.linalg import gram
from pinn_odelora.linalg.conjugate_gradients import Nystrom
from pinn_odelora.linalg.plan import Shape, predicted
from pinn_odelora.linearisation import Sweep
from pinn_odelora.lowrank.settings import LoRA
from pinn_odelora.lowrank.wiring import _is_large
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.system import Solution, System, draw_points
from problems.heat import Heat
from problems.kovasznay import Kovasznay

# Flows and schemes.


def test_eulers_step_in_single_precision_is_the_same_on_any_device(generator, monkeypatch):
    """Neither way hands it to the decompositions, which would hide that it was not taken."""
    pairs = [Factors(normal(3, 7, generator=generator), normal(9, 3, generator=generator)) for _ in range(2)]
    gradients = [Factors(*(0.1 * torch.randn(x.shape, generator=generator) for x in y)) for y in pairs]
    single = [Factors(y.A.float(), y.B.float()) for y in pairs]
    by_host = euler.euler_step(single, gradients, 0.7, 0.05)
    monkeypatch.setattr(euler, "HOSTS", ())
    by_device = euler.euler_step(single, gradients, 0.7, 0.05)
    assert by_host is not None
    assert by_device is not None
    for a, b in zip(by_host, by_device, strict=True):
        assert a.A.dtype == b.A.dtype == torch.float32
        assert torch.allclose(a.A, b.A, atol=1e-5)
        assert torch.allclose(a.B, b.B, atol=1e-5)


def test_steps_of_ros2_do_not_depend_on_the_unit_of_the_residuals(generator):
    """r → c r makes the flow c² times as fast: the same steps in h c², from the first on."""
    D, b, y = (normal(*size, generator=generator) for size in ((9, 4), (9,), (4,)))
    found = []
    for c in (1.0, 1e3):
        scheme = ROS2(rtol=1e-2, atol=1e-300)
        z, state, steps = y, scheme.init(), []
        for _ in range(3):
            z, state, report = scheme.step(Linear(c * D, c * b), z, state)
            steps.append((report.h * c**2, report.rejected))
        found.append((z, steps))
    (z, steps), (other, others) = found
    assert torch.allclose(z, other, rtol=1e-9)
    assert np.allclose(steps, others, rtol=1e-9)
    assert len({h for h, _ in steps}) == 3


def test_a_damped_flow_stays_finite_where_both_factors_lack_a_direction(generator):
    """At B = 0 with A of rank 2: dA/dt = 0 and dB/dt = -s⁻² g_B (S_A + δI)⁻¹, as g_A = s BᵀG vanishes."""
    A, g_B = normal(3, 7, generator=generator), normal(9, 3, generator=generator)
    A[2] = 0
    y, g = Factors(A, torch.zeros_like(g_B)), Factors(torch.zeros_like(A), g_B)
    found = balanced_flow(y, g, 0.7, damping=0.3)
    expected = -torch.linalg.solve(A @ A.mT + 0.3 * torch.eye(3, dtype=torch.float64), g_B.mT).mT / 0.7**2
    assert torch.equal(found.A, torch.zeros_like(A))
    assert torch.allclose(found.B, expected, rtol=1e-10)


def test_only_where_the_factors_are_integrated_may_they_stay_unbalanced():
    explicit = po.RungeKutta(tableau.RK4, h=0.1)
    for integrator, chart in ((po.LinearlyImplicit(), None), (explicit, "manifold")):
        with pytest.raises(po.InputError, match=r"^retract is False, but it must be True, since \w+ works on the mani"):
            po.methods.odelora(integrator, retract=False, chart=chart)
        assert po.methods.odelora(integrator, chart=chart).settings["retract"]
    assert not po.methods.odelora(explicit, retract=False).settings["retract"]
    assert not po.methods.odelora(explicit, retract=False, chart="factors").settings["retract"]


def test_a_damped_flow_is_the_flow_with_its_damping(generator):
    """In its own order of arguments; S + δI by a linear solve."""
    y, g = (Factors(*(normal(*size, generator=generator) for size in ((3, 7), (9, 3)))) for _ in range(2))
    scale, damping, eye = 0.7, 0.3, torch.eye(3, dtype=torch.float64)
    found = Damped(scaled_flow, damping)(y, g, scale)
    dA = torch.linalg.solve(y.B.mT @ y.B + damping * eye, g.A) / scale**2
    dB = torch.linalg.solve(y.A @ y.A.mT + damping * eye, g.B.mT).mT / scale**2
    assert torch.allclose(found.A, -dA, rtol=1e-10)
    assert torch.allclose(found.B, -dB, rtol=1e-10)
    for own, given in zip(
        Damped(balanced_flow, damping)(y, g, scale), balanced_flow(y, g, scale, damping), strict=True
    ):
        assert torch.equal(own, given)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1e-9, 1.0), (1e7, 1e-9), (3e-8, 2e-8), (1e8, 1e8)])
def test_whether_a_product_vanishes_does_not_depend_on_the_size_of_the_factors(a, b, generator):
    A, B = normal(2, 3, 7, generator=generator), normal(2, 9, 3, generator=generator)
    A[1, 2] = A[1, 0] - 2 * A[1, 1]
    B[1] -= B[1] @ A[1] @ torch.linalg.pinv(A[1])  # so that B A is rounding, and neither factor is
    assert is_zero(Factors(a * A, b * B), 2**-52).tolist() == [False, True]


# Derivatives and linear algebra.


def test_a_sketch_of_a_matrix_of_low_rank_has_its_range_and_no_more(generator):
    J = normal(30, 5, generator=generator) @ normal(5, 40, generator=generator)
    sketch = Nystrom(J, 12)
    sketch.prepare(1e-3, J[0])
    _, S, V = torch.linalg.svd(J)
    assert sketch.columns == 12
    assert sketch.vectors.shape == (40, 5)
    assert sketch.last == 0.0
    assert torch.allclose(sketch.values, S[:5].square())
    assert torch.allclose(sketch.vectors @ sketch.vectors.mT, V[:5].mT @ V[:5], atol=1e-9)


def test_a_plan_is_blind_where_no_coefficient_is_a_tensor_at_any_point():
    number, column = Operator("u", {"xx": 2.0}), Operator("u", {"xx": torch.ones(3, 1)})
    make = lambda operator, moved=(): Plan(frozenset(), (), (operator,), (None,), moved)
    assert make(number).blind
    assert make(number, (make(number),)).blind
    assert not make(column).blind
    assert not make(number, (make(column),)).blind
    assert not make(column, (make(number),)).blind


def test_the_part_of_order_zero_of_an_operator_has_its_sign():
    """A u_xx + u_tt - 3 u in one channel, against reverse mode."""
    box, residual = po.Box(x=(0, 1), t=(0, 1)), lambda f: f.op("u", {"xx": 2.0, "tt": 1.0, "": -3.0})
    problem = po.problem(name="Shifted", coords="xt", region=box, pde=residual)
    net = po.MLP(2, 1, width=5, depth=2, generator=torch.Generator().manual_seed(0)).double()
    by_jets, exact = (System(problem, Solution(problem, net), derivatives=way) for way in ("jets", "autograd"))
    points = draw_points(by_jets.terms, 9, 5, seed=1)
    found, expected = (system.residual_vector(points).detach() for system in (by_jets, exact))
    assert by_jets.engine("pde").plan.carried < 5
    assert torch.allclose(found, expected, rtol=1e-9)


def test_a_residual_without_a_graph_has_the_gradient_zero():
    w = torch.full((2, 3), 0.5, requires_grad=True)
    (g,) = _gradient(torch.ones(4, 1), {w})
    assert torch.equal(g, torch.zeros(2, 3))
    assert not _gradient((w * 2).sum(), set())
    (g,) = _gradient((w**2).sum()[None], {w})
    assert torch.equal(g, torch.ones(2, 3))


@pytest.mark.parametrize("P", [3, 8, 13])
def test_the_gram_matrix_is_whole_whatever_is_copied(P, generator, monkeypatch):
    monkeypatch.setattr(gram, "SMALL", 2)
    J = normal(9, P, generator=generator)
    assert torch.allclose(gram.gram(J), J.mT @ J, atol=1e-13)


def test_residuals_are_weighted_term_by_term_and_component_by_component():
    problem = Kovasznay(re=30.0, weights={"pde": 3.0})
    net = po.MLP(2, 3, width=5, depth=2, generator=torch.Generator().manual_seed(0)).double()
    system = System(problem, Solution(problem, net))
    points = draw_points(system.terms, 7, 5, seed=1)
    r = system.residual_vector(points).detach()
    expected = [
        math.sqrt(2 * system.terms[name].weight / len(found)) * found[:, k].detach()
        for name, found in system.residuals(points).items()
        for k in range(found.shape[1])
    ]
    assert system.components("pde") == 3
    assert torch.allclose(r, torch.cat(expected), rtol=1e-12)
    assert float(r.square().sum() / 2) == pytest.approx(float(system.loss(points).total.detach()))


def test_multipliers_weigh_the_terms_of_gradient_and_total_and_leave_the_terms():
    problem = Kovasznay(re=30.0, conditions="soft")
    net = po.MLP(2, 3, width=4, depth=2, generator=torch.Generator().manual_seed(0)).double()
    system, parameters = System(problem, Solution(problem, net)), [*net.parameters()]
    points = draw_points(system.terms, 7, 5, seed=1)
    multipliers = {name: 0.3 + k for k, name in enumerate(system.terms)}
    (loss, found), (plain, _) = (Gradient(system, parameters)(points, x) for x in (multipliers, None))
    total = sum(multipliers[name] * x for name, x in system.loss(points).terms.items())
    assert len(multipliers) > 1
    assert torch.allclose(loss.total, total.detach())
    assert all(torch.allclose(x, plain.terms[name]) for name, x in loss.terms.items())
    for own, exact in zip(found, torch.autograd.grad(total, parameters), strict=True):
        assert torch.allclose(own, exact)


@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_a_ring_has_both_circles_for_its_boundary_wherever_it_lies(shift):
    """ε is relative to the extent, which the place does not change."""
    ring = po.Ball(1.0, x=shift, y=0.0) - po.Ball(0.5, x=shift, y=0.0)
    p = ring.boundary().sample(512, lambda n, d: sobol(n, d, seed=0))
    radius = (p.x - shift).hypot(p.y)
    outer = radius > 0.75
    assert torch.allclose(radius, torch.where(outer, 1.0, 0.5).double(), atol=1e-9)
    assert float(outer.double().mean()) == pytest.approx(2 / 3, abs=0.02)
    outwards = ((p.x - shift) * p.nx + p.y * p.ny) / radius
    assert torch.allclose(outwards, torch.where(outer, 1.0, -1.0).double(), atol=1e-6)


def test_a_coefficient_of_the_equation_does_not_keep_its_term_from_one_sweep():
    net = po.MLP(2, 1, width=5, depth=2, generator=torch.Generator().manual_seed(0)).double()
    solution = Solution(Heat(), net, ("kappa",))
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, torch.nn.Linear)}
    sweep = Sweep(System(solution.problem, solution), layers, dict(solution.coefficients))
    assert sweep.paired("pde")
    assert sweep.alone("pde") == 1


def test_multiplications_of_the_forms_of_a_step():
    """Half of the symmetric products and a Cholesky factor; kernel and normal equations change places with R and P."""
    for R, P in ((7, 11), (400, 30), (30, 400)):
        costs, turned = predicted(Shape(R, P, R + P, False)), predicted(Shape(P, R, R + P, False))
        assert costs["normal"].operations == pytest.approx(R * P * P / 2 + P**3 / 6)
        assert costs["kernel"].operations == pytest.approx(R * R * P / 2 + R**3 / 6)
        assert costs["kernel"].operations == turned["normal"].operations
        assert costs["kernel"].bytes == turned["normal"].bytes


def test_a_large_layer_has_more_than_half_of_the_others():
    assert _is_large(5, 8, 3)
    assert not _is_large(4, 8, 3)
    assert not _is_large(3, 2, 3)
    assert _is_large(4, 7, 3)


# Families.


def test_a_station_ends_after_two_small_changes_in_a_row(monkeypatch):
    net = po.MLP(2, 1, width=6, depth=2, generator=torch.Generator().manual_seed(0))
    parametric = Parametric(net, Heat(), ("kappa",), LoRA(rank=2))
    few = po.Sampling(fresh=True, interior=20, boundary=8, batch_size=None, initial_batch_size=None)
    monkeypatch.setattr(stations, "sampling", lambda parametric: few)
    for changes, steps in (((1e-9, 1e-9, 1.0), 2), ((1e-9, 1.0, 1e-9, 1e-6, 1.0), 4), ((1.0, 1e-5, 1e-9), 5)):
        script = iter([*changes, 1.0, 1.0, 1.0])
        monkeypatch.setattr(stations, "distance", lambda u, v, script=script: next(script))
        made = stations.solve(parametric, parametric.start, {"kappa": 0.06}, 1e-6, seed=0, steps=5)
        assert made.steps == steps


def test_an_answer_as_good_as_the_tolerance_takes_no_further_steps(monkeypatch):
    """And a round is the last that leaves more than a part of the estimate."""
    estimates = iter(())
    family = SimpleNamespace(
        space=SimpleNamespace(values=lambda x: {"nu": float(x[0])}),
        estimate=lambda x: next(estimates),
        parametric=None,
        seed=3,
    )
    solved = SimpleNamespace(steps=5, weights={"w": 1}, loss=0.1)
    monkeypatch.setattr(adapted, "in_span", lambda family, x: Found({"w": 0}, 0.5, 4))
    asked = []
    monkeypatch.setattr(adapted, "solve", lambda *given: asked.append(given[3:]) or solved)
    for found, tolerance, corrections, error, loss in (
        ([0.5], 0.5, 0, 0.5, 0.5),
        ([0.5], None, 0, 0.5, 0.5),
        ([0.5, 0.25], 0.25, 5, 0.25, 0.1),
        ([0.5, 0.4], 0.1, 5, 0.4, 0.1),
        ([0.5, 0.5], 0.1, 5, 0.5, 0.5),
        ([0.5, 0.3, 0.2, 0.15], 0.1, 15, 0.15, 0.1),
    ):
        estimates = iter(found)
        made = adapted.adapted(family, np.array([0.02]), tolerance)
        assert (made.corrections, made.error, made.loss, made.steps) == (corrections, error, loss, 4), found
        assert next(estimates, None) is None
    assert asked[-3:] == [(0.025, 3, 12), (0.025, 4, 12), (0.025, 5, 12)]


@pytest.mark.parametrize(
    ("values", "points", "batched", "sizes"),
    [(5, 50, True, [2, 2, 1]), (5, 50, False, [1] * 5), (1, 10, True, [1]), (3, 10**6, True, [1] * 3)],
)
def test_members_are_found_in_batches_of_as_many_as_are_evaluated_at_once(values, points, batched, sizes, monkeypatch):
    monkeypatch.setattr(combination, "AT_ONCE", 100)
    seen = []
    find = lambda some, starts: seen.append((some, starts)) or some
    combinations = SimpleNamespace(steps=SimpleNamespace(number=points), batched=batched, _find=find)
    asked = [{"nu": k} for k in range(values)], [*range(values)]
    assert combination.Combinations.find(combinations, *asked) == asked[0]
    assert [len(some) for some, _ in seen] == sizes
    assert all([v["nu"] for v in some] == starts for some, starts in seen)

"""Explicit schemes on fixed-rank matrices: order, robustness to small singular values, invariance, truncation."""

import math

import pytest
import torch
from torch import linalg
from toys import Layers, Rotating, Sensing, ambient, followed, normal, point

from pinn_odelora.integrators import RKC, Field, RungeKutta, Tableau, rk_step, tableau
from pinn_odelora.integrators.rkc import rkc_step
from pinn_odelora.integrators.stability import largest_eigenvalue
from pinn_odelora.manifolds.factors import Factors, balance_defect
from pinn_odelora.manifolds.fixed_rank import Thin, low_rank, retract, truncate
from pinn_odelora.manifolds.projected import FixedRank, project
from pinn_odelora.manifolds.space import FLAT

TABLEAUX = {name: value for name, value in vars(tableau).items() if isinstance(value, Tableau)}
FIXED = FixedRank()


def rk(scheme):
    return lambda f, y, h, space: rk_step(f, y, h, scheme, f(y), space)


def rkc(order, s):
    scheme = RKC(order).scheme(s)
    return lambda f, y, h, space: rkc_step(f, y, h, scheme, f(y), space)


# Every explicit scheme: a step of given size, and its order.
STEPS = {name.lower(): (rk(scheme), scheme.order) for name, scheme in TABLEAUX.items()}
STEPS |= {f"rkc{order}_{s}": (rkc(order, s), order) for order, s in [(1, 2), (1, 7), (2, 2), (2, 7)]}
by_scheme = pytest.mark.parametrize(("step", "order"), STEPS.values(), ids=STEPS.keys())


def charts(toy):
    """The same flow in full matrices of rank r and in factors: velocity, start, space, product of a state."""
    product = lambda y: [y[1] @ y[0], y[3] @ y[2], y[4]]
    return {
        "manifold": (toy.velocity, toy.start, FIXED, lambda y: y),
        "factors": (toy.factors_velocity, toy.factors_start(), FLAT, product),
    }


@pytest.fixture(scope="module")
def layers():
    """A smooth flow on two matrices of rank 2 and a bias, and where it is after a while."""
    toy, time = Layers.random(torch.Generator().manual_seed(7)), 2.0
    step = lambda y: rk(tableau.DORMAND_PRINCE)(toy.velocity, y, time / 60, FIXED)
    return toy, time, ambient(followed(step, toy.start, 60))


@by_scheme
@pytest.mark.parametrize("chart", ["manifold", "factors"])
def test_order_by_slope_in_both_charts(chart, step, order, layers):
    toy, time, end = layers
    f, start, space, product = charts(toy)[chart]

    def error(n):
        return float((ambient(product(followed(lambda y: step(f, y, time / n, space), start, n))) - end).norm())

    # The fifth-order scheme was made for a small error constant, behind which the next order still shows here.
    above = 1.5 if order == 5 else 0.35
    assert order - 0.35 < math.log2(error(10) / error(20)) < order + above


@by_scheme
def test_with_full_rank_it_is_the_flat_scheme(step, order, generator):
    """Everything is tangent there, and nothing is left out."""
    toy, y = Sensing.random(25, 6, 5, generator, bent=0.4), point(6, 5, [2, 1.5, 1, 0.7, 0.3], generator)
    flat = step(lambda y: [-toy.gradient(y[0])], [y.matrix()], 0.2, FLAT)
    assert torch.allclose(step(toy.velocity, [y], 0.2, FIXED)[0].matrix(), flat[0], atol=1e-12)
    assert float((flat[0] - y.matrix()).norm()) > 0.1


def test_slopes_are_tangent_projections_and_stay_thin(generator):
    y, D = point(8, 6, [1, 0.1], generator), normal(8, 6, generator=generator)
    P_U, P_V = y.U @ y.U.mT, y.V.mT @ y.V
    slope = project(y, D)
    assert slope.left.shape == (8, 4)
    assert torch.allclose(slope.matrix(), P_U @ D + D @ P_V - P_U @ D @ P_V, atol=1e-13)
    thin = Thin(normal(8, 3, generator=generator), normal(3, 6, generator=generator))
    assert torch.allclose(project(y, thin).matrix(), project(y, thin.matrix()).matrix(), atol=1e-13)
    assert torch.allclose(y.frame.vector(y.frame.coordinates(D)), slope.matrix(), atol=1e-13)
    assert float(slope.norm()) == pytest.approx(float(linalg.matrix_norm(slope.matrix())), rel=1e-13)


def test_difference_quotients_are_tangent_where_they_are_asked_for_and_do_not_grow_in_rank(generator):
    ys = [point(8, 6, [1, 0.1], generator) for _ in range(3)]
    a, b = (project(y, normal(8, 6, generator=generator)) for y in ys[1:])
    bias = normal(2, 4, generator=generator)
    quotient, rate = FIXED.quotient([ys[0], bias[0]], [a, bias[0]], [b, bias[1]], 0.01)
    expected = project(ys[0], (b.matrix() - a.matrix()) / 0.01)
    assert torch.allclose(quotient.matrix(), expected.matrix(), atol=1e-10)
    assert quotient.left.shape == (8, 4)
    assert torch.allclose(rate, (bias[1] - bias[0]) / 0.01)


def test_what_a_tolerance_is_held_against_has_the_norm_of_the_matrix_and_no_basis(generator):
    k = project(point(8, 6, [1, 0.1], generator), normal(8, 6, generator=generator))
    (entries,) = FIXED.entries([k])
    assert float(entries.norm()) == pytest.approx(float(linalg.matrix_norm(k.matrix())), rel=1e-12)
    assert len(entries) == k.matrix().numel()
    Q = linalg.qr(normal(8, 8, generator=generator)).Q
    assert torch.allclose(FIXED.entries([Thin(Q @ k.left, k.right)])[0], entries)


# Small singular values.

SMALL, ORDINARY = [1, 1e-2, 1e-4, 1e-6, 1e-8], [1, 0.8, 0.5, 0.3, 0.2]
by_order = pytest.mark.parametrize("scheme", [tableau.EULER, tableau.HEUN], ids=["euler", "heun"])


def rotated(sigma, eps, growth):
    """A start with singular values ``sigma``, its flow, and the exact end after unit time."""
    generator = torch.Generator().manual_seed(7)
    y = point(12, 10, sigma, generator)
    toy = Rotating.random(y, eps, growth, generator)
    return y, toy, toy.exact(y.matrix(), 1.0)


def errors(sigma, eps, growth, scheme, numbers, chart="manifold"):
    y, toy, exact = rotated(sigma, eps, growth)
    clock = torch.zeros((), dtype=torch.float64)

    def error(n):
        if chart == "manifold":
            Y = followed(lambda y: rk(scheme)(toy.velocity, y, 1 / n, FIXED), [y, clock], n)[0].matrix()
        else:
            step = lambda y: rk(scheme)(toy.factors_velocity, y, 1 / n, FLAT)
            A, B, _ = followed(step, [*y.factors(1.0), clock], n)
            Y = B @ A
        return float(linalg.matrix_norm(Y - exact))

    return [error(n) for n in numbers]


@by_order
@pytest.mark.parametrize("eps", [0, 1e-6])
@pytest.mark.parametrize("growth", [0, 0.5])
def test_projected_schemes_keep_their_order_from_tiny_singular_values(scheme, eps, growth):
    """Kieri and Vandereycken (2019): the constant in front of h^p does not know the smallest singular value."""
    small = errors(SMALL, eps, growth, scheme, (16, 32))
    assert math.log2(small[0] / small[1]) == pytest.approx(scheme.order, abs=0.25)
    ordinary = errors(ORDINARY, eps, growth, scheme, (32,))
    assert small[1] < 3 * ordinary[0]


def test_the_normal_part_of_the_field_sets_the_floor_of_the_error():
    """Between the distance of the exact end from rank r and ε times the time; without ε the order goes on."""
    _, _, exact = rotated(SMALL, 1e-6, 0)
    least = float(linalg.svdvals(exact)[len(SMALL) :].norm())
    floor, none = (errors(SMALL, eps, 0, tableau.RK4, (100,))[0] for eps in (1e-6, 0))
    assert 1e-8 < least <= floor < 1e-6
    assert none < 1e-8


@by_order
@pytest.mark.parametrize("eps", [0, 1e-6])
def test_the_factor_chart_is_thrown_off_where_small_singular_values_grow(scheme, eps):
    """There the factors move like 1/√σ, and h² Ḃ Ȧ of one step is as large as h²/σ: an error of h²/σ whatever the
    order, far above the solution's own size. The projected scheme sees none of it.
    """
    factors, manifold = (errors(SMALL, eps, 0.5, scheme, (16, 32), chart) for chart in ("factors", "manifold"))
    assert factors[1] > 1e3 * manifold[1]
    assert factors[1] > 10
    assert math.log2(factors[0] / factors[1]) == pytest.approx(2, abs=0.05)
    factors, manifold = (errors(ORDINARY, eps, 0.5, scheme, (32,), chart)[0] for chart in ("factors", "manifold"))
    assert factors < 10 * manifold


@by_order
@pytest.mark.parametrize("eps", [0, 1e-6])
def test_the_factor_chart_keeps_its_order_where_small_singular_values_stay(scheme, eps):
    """A rotation moves the factors along themselves, however small they are."""
    error = errors(SMALL, eps, 0, scheme, (16, 32), "factors")
    assert math.log2(error[0] / error[1]) == pytest.approx(scheme.order, abs=0.1)


# What a step does not depend on.


def change_of_factors(y, P):
    return Factors(linalg.solve(P, y.A), y.B @ P)


@by_scheme
def test_on_the_manifold_a_step_depends_on_the_product_alone(step, order, generator):
    toy, scale = Sensing.random(30, 8, 6, generator, bent=0.4), 0.7
    y = Factors(normal(2, 6, generator=generator), normal(8, 2, generator=generator))
    P = normal(2, 2, generator=generator) + 2 * torch.eye(2, dtype=torch.float64)
    rescaled = Factors(y.A * 5, y.B)

    def after(factors, scale):
        (reached,) = step(toy.velocity, [low_rank(factors, scale)], 0.05, FIXED)
        pair = reached.factors(scale)
        assert float(balance_defect(pair)) < 1e-13
        return scale * pair.B @ pair.A

    once = after(y, scale)
    assert float(linalg.matrix_norm(once - scale * y.B @ y.A)) > 0.1
    assert torch.allclose(after(change_of_factors(y, P), scale), once, atol=1e-11)
    assert torch.allclose(after(rescaled, scale / 5), once, atol=1e-11)


@by_scheme
def test_in_the_factor_chart_a_step_is_blind_to_rotations_only(step, order, generator):
    """From a balanced start. Another P changes the order-h² terms of the product."""
    toy = Layers.random(generator)
    start = toy.factors_start()
    h = 0.5

    def after(P):
        y = [*change_of_factors(Factors(*start[0:2]), P), *change_of_factors(Factors(*start[2:4]), P), start[4]]
        return ambient(charts(toy)["factors"][3](step(toy.factors_velocity, y, h, FLAT)))

    once = after(torch.eye(2, dtype=torch.float64))
    Q = linalg.qr(normal(2, 2, generator=generator)).Q
    assert torch.allclose(after(Q), once, atol=1e-12)
    skewed = torch.tensor([[2.0, 0.5], [0.0, 0.4]], dtype=torch.float64)
    assert float((after(skewed) - once).norm()) > 1e-8


# Truncation and retraction.


def test_truncation_is_the_best_approximation_and_says_what_it_leaves_out(generator):
    x = Thin(normal(3, 9, 7, generator=generator), normal(3, 7, 8, generator=generator))
    point, discarded = truncate(x, 3)
    for i in range(3):
        U, sigma, V = linalg.svd(x.matrix()[i], full_matrices=False)
        best = U[:, :3] * sigma[:3] @ V[:3]
        reached = point.U[i] * point.sigma[i] @ point.V[i]
        assert torch.allclose(reached, best, atol=1e-12)
        assert float(linalg.matrix_norm(reached - x.matrix()[i])) == pytest.approx(float(discarded[i]), rel=1e-12)


def test_a_step_changes_the_function_by_the_discarded_part_only(generator):
    """Combining on the manifold and in full matrices differ by a matrix of the norm that is written down."""
    toy, y, lost = Sensing.random(30, 8, 6, generator), point(8, 6, [1.2, 0.8], generator), []
    slope, h = toy.velocity([y]), 0.1
    (reached,) = FixedRank(lost).combine([(1.0, [y])], [(h, slope)])
    full = y.matrix() + h * slope[0].matrix()
    assert float(linalg.matrix_norm(reached.matrix() - full)) == pytest.approx(float(lost[-1]), rel=1e-10)
    assert float(lost[-1]) > 1e-3
    change = linalg.vector_norm(toy.residuals_at(reached.matrix()) - toy.residuals_at(full))
    assert float(change) <= float(linalg.matrix_norm(toy.M.flatten(1), ord=2)) * float(lost[-1])


def test_discarded_parts_of_all_matrices_count_and_batches_agree_with_single_ones(generator):
    ys = [point(8, 6, [1.2, 0.8], generator) for _ in range(2)] + [point(5, 6, [1.0, 0.3], generator)]
    ks = [project(y, normal(len(y.U), 6, generator=generator)) for y in ys]
    bias = normal(4, generator=generator)
    together = []
    reached = FixedRank(together).combine([(1.0, [*ys, bias])], [(0.2, [*ks, bias])])
    assert torch.allclose(reached[-1], 1.2 * bias)
    alone = []
    for y, k, z in zip(ys, ks, reached, strict=False):
        (single,) = FixedRank(alone).combine([(1.0, [y])], [(0.2, [k])])
        assert torch.allclose(single.matrix(), z.matrix(), atol=1e-13)
    assert float(together[0]) == pytest.approx(float(linalg.vector_norm(torch.stack(alone))), rel=1e-12)


def test_the_retraction_is_of_second_order_and_loses_what_it_says(generator):
    """R(tD) - (Y + tD) is O(t²), its tangent part O(t³): the curve has no acceleration along the manifold."""
    y = point(8, 6, [1.5, 0.6], generator)
    frame = y.frame
    z = normal(frame.dimension, generator=generator)
    z /= z.norm()

    def gap(t):
        reached, discarded = retract(y, frame, t * z)
        defect = reached.matrix() - y.matrix() - t * frame.vector(z)
        assert float(linalg.matrix_norm(defect)) == pytest.approx(float(discarded), rel=1e-8)
        return float(linalg.matrix_norm(defect)), float(frame.coordinates(defect).norm())

    (whole, along), (half_whole, half_along) = gap(0.04), gap(0.02)
    assert math.log2(whole / half_whole) == pytest.approx(2, abs=0.2)
    assert math.log2(along / half_along) == pytest.approx(3, abs=0.2)


def test_a_sum_that_is_not_finite_is_said_to_be(generator):
    y = point(5, 4, [1.0, 0.5], generator)
    with pytest.raises(FloatingPointError, match="not finite"):
        FIXED.combine([(1.0, [y])], [(1.0, [Thin(y.U * math.inf, y.V)])])


# Step sizes on the manifold.


def test_the_largest_eigenvalue_is_that_of_the_tangent_flow(generator):
    """The dense Jacobian in coordinates at y, by differences; small singular values make its curvature part large."""
    toy, y = Sensing.random(30, 7, 5, generator, bent=0.3), point(7, 5, [1.0, 0.4], generator)
    frame, t = y.frame, 1e-6

    def along(z):
        return frame.coordinates(toy.velocity([retract(y, frame, z).point])[0].matrix())

    eye = torch.eye(frame.dimension, dtype=torch.float64)
    J = torch.stack([(along(t * e) - along(-t * e)) / (2 * t) for e in eye], dim=1)
    expected = float(linalg.eigvalsh((J + J.mT) / 2).abs().max())
    flow = Field(toy.velocity, FIXED)
    found = largest_eigenvalue(flow, [y], flow.velocity([y]), iterations=60)
    assert found == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("scheme", [s for s in TABLEAUX.values() if s.embedded], ids=lambda s: f"order{s.order}")
@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_an_embedded_pair_meets_its_tolerance_on_the_manifold(scheme, rtol):
    y, toy, _ = rotated(SMALL, 0, 0.5)
    integrator = RungeKutta(scheme, rtol=rtol, atol=rtol)
    reached, state, t = [y, torch.zeros((), dtype=torch.float64)], integrator.init(), 0.0
    while t < 1:
        reached, state, report = integrator.step(Field(toy.velocity, FIXED), reached, state)
        t += report.h
    defect = reached[0].matrix() - toy.exact(y.matrix(), t)
    assert float(linalg.matrix_norm(defect)) / defect.numel() ** 0.5 < 10 * rtol


def test_a_scheme_without_pair_stays_stable_on_the_manifold(generator):
    toy, y = Sensing.random(40, 7, 5, generator), [point(7, 5, [1.0, 0.4], generator)]
    integrator, losses = RungeKutta(tableau.HEUN), []
    state = integrator.init()
    for _ in range(60):
        losses.append(float(toy.residuals(y[0]).square().sum()))
        y, state, _ = integrator.step(Field(toy.velocity, FIXED), y, state)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]

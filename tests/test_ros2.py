"""The linearly implicit schemes on a manifold: stability functions, order, limits, invariance, step size."""

import math

import pytest
import torch
from torch import linalg
from toys import Linear, Sensing, followed, normal, point

from pinn_odelora.errors import InputError
from pinn_odelora.integrators import ROS2, LinearlyImplicit, rk_step, tableau
from pinn_odelora.integrators.base import Local
from pinn_odelora.integrators.linearly_implicit import _Here, half_square
from pinn_odelora.integrators.ros2 import Ros2State, ros2_stages
from pinn_odelora.linalg.damped import Damped
from pinn_odelora.linalg.solvers import solver_for
from pinn_odelora.manifolds.factors import Factors, balance_defect
from pinn_odelora.manifolds.fixed_rank import low_rank
from pinn_odelora.manifolds.projected import FixedRank

LOW, HIGH = 1 - 1 / math.sqrt(2), 1 + 1 / math.sqrt(2)


def euler(h):
    return LinearlyImplicit(h=h, correction=False)


SCHEMES = {"linearly_implicit": (euler, 1), "ros2": (lambda h: ROS2(h=h), 2)}
by_scheme = pytest.mark.parametrize(("scheme", "order"), SCHEMES.values(), ids=SCHEMES.keys())
# More residuals than the 20 coordinates of a 7 x 5 matrix of rank 2, and fewer: two forms of the linear algebra.
by_number = pytest.mark.parametrize("number", [40, 12])


def sensing(number, generator, bent=0.4):
    return Sensing.random(number, 7, 5, generator, bent), point(7, 5, [1.2, 0.6], generator)


def one(integrator, flow, y):
    """Where the first step leads."""
    return integrator.step(flow, y, integrator.init()).y


def along(toy, y, time):
    """The point of the flow at a time, by a hundred steps of fifth order."""

    def fine(y):
        return rk_step(toy.velocity, y, time / 100, tableau.DORMAND_PRINCE, toy.velocity(y), FixedRank())

    return followed(fine, [y], 100)[0]


def ros2_function(gamma):
    return lambda z: (1 + (1 - 2 * gamma) * z + (0.5 - 2 * gamma + gamma**2) * z**2) / (1 - gamma * z) ** 2


@pytest.mark.parametrize(
    ("integrator", "R"),
    [
        (euler(1.0), lambda z: 1 / (1 - z)),
        (ROS2(h=1.0), ros2_function(LOW)),
        (ROS2(h=1.0, gamma=HIGH), ros2_function(HIGH)),
        (ROS2(h=1.0, gamma=0.5), ros2_function(0.5)),
    ],
    ids=["linearly_implicit", "ros2", "ros2_large", "ros2_half"],
)
def test_stability_function_on_the_linear_test_equation(integrator, R):
    """Residuals √|z|·y give the flow y' = z y; all z ≤ 0 at once."""
    z = -torch.cat([torch.zeros(1), torch.logspace(-3, 5, 60)]).double()
    system = Linear(torch.diag((-z).sqrt()), torch.zeros_like(z))
    y = one(integrator, system, torch.ones_like(z))
    assert torch.allclose(y, R(z), atol=1e-9)
    assert float(R(z).abs().max()) <= 1


def test_both_usual_gammas_forget_the_stiff_modes():
    for gamma in (LOW, HIGH):
        assert abs(ros2_function(gamma)(-1e9)) < 1e-7


@by_number
@by_scheme
def test_order_by_slope_on_the_manifold(scheme, order, number, generator):
    """Residuals are bent and do not vanish: JᵀJ is not the Jacobian, and a Rosenbrock method would lose an order."""
    toy, y = sensing(number, generator)
    time = 1.0
    end = along(toy, y, time).matrix()
    assert float(toy.residuals_at(end).norm()) > 0.5

    def error(n):
        reached = followed(lambda y: one(scheme(time / n), toy, y), y, n)
        return float(linalg.matrix_norm(reached.matrix() - end))

    assert math.log2(error(40) / error(80)) == pytest.approx(order, abs=0.2)


@by_number
def test_stages_solve_their_equations(number, generator):
    toy, y = sensing(number, generator)
    local, h = toy.linearise(y), 0.7
    k1, k2 = ros2_stages(toy, local, Damped(local.J), h, LOW)
    left = torch.eye(len(k1), dtype=torch.float64) + LOW * h * local.J.mT @ local.J
    (second,) = toy.velocity([local.retract(h * k1)])
    assert torch.allclose(left @ k1, -local.J.mT @ local.r, atol=1e-11)
    assert torch.allclose(left @ k2, local.coordinates(second.matrix()) - 2 * k1, atol=1e-11)


@by_number
@by_scheme
def test_a_small_step_is_the_flow(scheme, order, number, generator):
    toy, y = sensing(number, generator)
    moved = one(scheme(1e-6), toy, y)
    velocity = (moved.matrix() - y.matrix()) / 1e-6
    (expected,) = toy.velocity([y])
    assert torch.allclose(velocity, expected.matrix(), atol=1e-4)
    assert float(expected.norm()) > 0.5


@by_number
def test_an_endless_step_is_the_gauss_newton_step_of_minimal_norm(number, generator):
    toy, y = sensing(number, generator)
    local = toy.linearise(y)
    d = -linalg.pinv(local.J) @ local.r
    moved = one(euler(1e9), toy, y)
    assert torch.allclose(moved.matrix(), local.retract(d).matrix(), atol=1e-6)
    assert float(d.norm()) > 0.3


@by_scheme
def test_a_step_depends_on_the_product_alone_and_ends_balanced(scheme, order, generator):
    toy, _ = sensing(40, generator)
    y, s = Factors(normal(2, 5, generator=generator), normal(7, 2, generator=generator)), 0.7
    P = normal(2, 2, generator=generator) + 2 * torch.eye(2, dtype=torch.float64)

    def after(factors, scale):
        pair = one(scheme(0.8), toy, low_rank(factors, scale)).factors(scale)
        assert float(balance_defect(pair)) < 1e-13
        return scale * pair.B @ pair.A

    once = after(y, s)
    assert float(linalg.matrix_norm(once - s * y.B @ y.A)) > 0.1
    assert torch.allclose(after(Factors(linalg.solve(P, y.A), y.B @ P), s), once, atol=1e-10)
    assert torch.allclose(after(Factors(y.A * 5, y.B), s / 5), once, atol=1e-10)


@by_number
def test_without_a_step_size_it_reaches_the_end_of_the_flow(number, generator):
    """With steps beyond what an explicit scheme could take. Where residuals do not vanish, Ĵ is not exact there."""
    toy, y = sensing(number, generator)
    slope = lambda y: float(toy.velocity([y])[0].norm())
    state, start, best = ROS2().init(), slope(y), y
    for _ in range(60):
        y, state, report = ROS2().step(toy, y, state)
        best = min(best, y, key=slope)
    assert slope(best) < {40: 1e-2, 12: 1e-6}[number] * start
    assert float(toy.residuals(y).norm()) < 1.01 * float(toy.residuals(best).norm()) + 1e-6
    assert report.h * float(linalg.matrix_norm(toy.linearise(y).J, ord=2)) ** 2 > 10
    assert all(isinstance(x, float) for x in vars(state).values())


def test_a_tighter_tolerance_follows_the_flow_more_closely(generator):
    toy, start = sensing(40, generator)
    distances = []
    for rtol in (1e-1, 1e-2, 1e-3):
        y, state, t = start, ROS2().init(), 0.0
        while t < 0.5:
            y, state, report = ROS2(rtol=rtol).step(toy, y, state)
            t += report.h
        distances.append(float(linalg.matrix_norm(y.matrix() - along(toy, start, t).matrix())))
    assert distances[0] > 3 * distances[1] > 9 * distances[2]
    assert distances[1] < 0.05


class Edge(Linear):
    """Residuals with no value from y = edge on."""

    edge = 1.0

    def residuals(self, y):
        return torch.where(y < self.edge, self.D @ y - self.b, math.nan)


def test_a_step_to_residuals_without_value_is_retried_with_a_smaller_one_and_refused_when_none_is_left():
    system = Edge(torch.ones(1, 1, dtype=torch.float64), torch.full((1,), 3.0, dtype=torch.float64))
    start = torch.zeros(1, dtype=torch.float64)
    taken = ROS2(rtol=10.0).step(system, start, Ros2State(h=100.0))
    assert 0 < float(taken.y) < 1
    assert taken.report.rejected > 0
    with pytest.raises(FloatingPointError, match="second stage"):
        one(ROS2(h=100.0), system, start)
    with pytest.raises(FloatingPointError, match="where the step starts"):
        one(ROS2(), system, start + 1)
    system.edge = 1e-300
    with pytest.raises(FloatingPointError, match="No step down"):
        one(ROS2(), system, start)


@pytest.mark.parametrize("rows", [20, 10])
def test_steps_go_on_at_round_off(rows):
    generator = torch.Generator().manual_seed(3)
    D = normal(rows, 10, generator=generator)
    solution, start = (normal(10, generator=generator) for _ in range(2))

    class Curved(Linear):
        def residuals(self, y):
            return D @ torch.tanh(y) - self.b

        def linearise(self, y):
            same = lambda z: z
            return Local(self.residuals(y), D / torch.cosh(y).square(), lambda z: y + z, same, same)

    system, scheme = Curved(D, D @ torch.tanh(solution)), ROS2()
    y, state = solution + 0.2 * start, scheme.init()
    for _ in range(300):
        y, state, _ = scheme.step(system, y, state)
    assert linalg.vector_norm(system.residuals(y)) < 1e-11 * linalg.vector_norm(system.b)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"h": 0.0}, "h is 0.0"), ({"rtol": -1.0}, "rtol is -1.0"), ({"gamma": 0.2}, "gamma is 0.2.*at least 0.25")],
)
def test_bad_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        ROS2(**settings)


# The second-order correction of the implicit Euler step.


def correction_at(toy, y, mu, length):
    """The system around y, the step d of that damping shortened to a length, and what the correction of it is."""
    local = toy.linearise(y)
    solver = solver_for(local.J)
    d = -solver(local.r, mu)
    d = length * d / d.norm()
    here = _Here(toy, local, solver, half_square(local.r), correction=True)
    return local, solver, d, here.second_order(d, local.J @ d, mu)


@by_number
def test_the_correction_is_half_the_damped_solution_for_the_second_derivative_along_the_step(number, generator):
    """r'' by central differences along the retraction, solved by the normal equations."""
    toy, y = sensing(number, generator)
    mu, t = 0.3, 1e-4
    local, _, d, found = correction_at(toy, y, mu, 1e-3)
    unit = d / d.norm()
    at = lambda step: toy.residuals(local.retract(step * unit))
    second = (at(t) - 2 * local.r + at(-t)) / t**2 * float(d.norm()) ** 2
    J = local.J
    H = J.mT @ J + mu * torch.eye(J.shape[1], dtype=J.dtype)
    expected = -linalg.solve(H, J.mT @ second) / 2
    assert float((found - expected).norm()) < 1e-2 * float(expected.norm())


def test_a_corrected_step_leaves_a_residual_of_third_order(generator):
    """As many residuals as coordinates, hardly damped: d leaves O(t²) of a residual t v, d + a leaves O(t³)."""
    _, y = sensing(20, generator)
    toy = Sensing.random(20, 7, 5, generator, bent=0.4)
    v = torch.randn(20, generator=generator, dtype=torch.float64)
    here = toy.residuals(y) + toy.b
    left = {False: [], True: []}
    for t in (2e-3, 1e-3):
        toy.b = here - t * v
        for corrected in left:
            integrator = LinearlyImplicit(h=1e13, correction=corrected)
            reached, _, report = integrator.step(toy, y, integrator.init())
            assert report.corrected == corrected
            left[corrected].append(float(toy.residuals(reached).norm()))
    order = {corrected: math.log2(a / b) for corrected, (a, b) in left.items()}
    assert order[False] == pytest.approx(2, abs=0.1)
    assert order[True] == pytest.approx(3, abs=0.2)

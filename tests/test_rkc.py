"""Runge–Kutta–Chebyshev: stability polynomials and limits, the number of stages, the choice of the step."""

import math

import pytest
import torch
from numpy.polynomial import chebyshev as series
from toys import Sensing, normal, point

from pinn_odelora.errors import InputError
from pinn_odelora.integrators import RKC, Field, RungeKutta, Velocity, rkc
from pinn_odelora.integrators.rkc import rkc_step
from pinn_odelora.integrators.runge_kutta import ExplicitState
from pinn_odelora.integrators.stability import kept_eigenvalue
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.manifolds.projected import FixedRank
from pinn_odelora.manifolds.space import FLAT

by_order = pytest.mark.parametrize("order", [1, 2])
by_stages = pytest.mark.parametrize(
    ("order", "s"), [(1, 1), (1, 2), (1, 3), (1, 10), (1, 50), (2, 2), (2, 3), (2, 10), (2, 51)]
)


def amplified(order, s, z, damping=None):
    """y⁺ on y' = z y from y = 1 with h = 1."""
    f = lambda y: [z * y[0]]
    y = [torch.ones_like(z)]
    return rkc_step(f, y, 1.0, RKC(order, damping=damping).scheme(s), f(y))[0]


def polynomial(order, s, z, damping):
    """P_s from numpy's Chebyshev series and its derivatives."""
    w0 = 1 + damping / s**2
    T = series.Chebyshev.basis(s)
    t, d = T(w0), T.deriv()(w0)
    if order == 1:
        return T(w0 + t / d * z) / t
    dd = T.deriv(2)(w0)
    return 1 + dd / d**2 * (T(w0 + d / dd * z) - t)


@by_stages
@pytest.mark.parametrize("damping", [None, 0.3])
def test_stability_function_is_the_damped_chebyshev_polynomial(order, s, damping):
    z = -torch.linspace(0, RKC(order, damping=damping).scheme(s).limit, 101, dtype=torch.float64)
    expected = polynomial(order, s, z.numpy(), damping or rkc.DAMPING[order])
    assert torch.allclose(amplified(order, s, z, damping), torch.as_tensor(expected), atol=1e-9)


@by_stages
def test_it_is_stable_up_to_the_stated_limit_and_not_five_percent_beyond(order, s):
    limit = RKC(order).scheme(s).limit
    inside = amplified(order, s, -torch.linspace(1e-3, 1, 4001, dtype=torch.float64) * limit).abs()
    assert float(inside.max()) <= 1
    if s >= 3 + order:
        # Damping: away from both ends of the interval nothing is kept whole.
        assert float(inside[200:-200].max()) < 0.97
        assert float(amplified(order, s, torch.tensor([-1.05 * limit], dtype=torch.float64)).abs()) > 1


def test_limits_grow_with_the_square_of_the_stages():
    assert rkc.rkc1(40).limit == pytest.approx((2 - 4 * 0.05 / 3) * 40**2, rel=2e-3)
    assert rkc.rkc2(40).limit == pytest.approx(2 / 3 * (40**2 - 1) * (1 - 2 / 15 * 2 / 13), rel=2e-3)
    assert rkc.rkc1(1)[:2] == (1, ())


@by_order
@pytest.mark.parametrize("reach", [0.1, 1.9, 7.0, 333.0, 4e4])
def test_the_number_of_stages_is_the_smallest_that_is_stable(order, reach):
    integrator = RKC(order)
    s = integrator.fewest(reach)
    assert integrator.scheme(s).limit >= reach
    assert s == order or integrator.scheme(s - 1).limit < reach


class Stiff:
    """y' = -M y with eigenvalues from 1 to 3,000 in a random basis; counts its evaluations."""

    def __init__(self, generator):
        self.Q = torch.linalg.qr(normal(6, 6, generator=generator)).Q
        rates = torch.tensor([1.0, 3.0, 10.0, 100.0, 1000.0, 3000.0], dtype=torch.float64)
        self.M = self.Q @ torch.diag(rates) @ self.Q.mT
        self.start = [normal(6, generator=generator)]
        self.evaluations = 0

    def __call__(self, y):
        self.evaluations += 1
        return [-self.M @ y[0]]

    def exact(self, time):
        return torch.linalg.matrix_exp(-time * self.M) @ self.start[0]


@by_order
def test_a_given_step_is_taken_with_the_stages_that_it_needs(order, generator):
    f = Stiff(generator)
    integrator, y = RKC(order, h=0.05), f.start
    state = integrator.init()
    for _ in range(20):
        y, state, report = integrator.step(Field(f), y, state)
        assert report.h == 0.05
    slow, fast = (f.Q.mT @ (y[0] - f.exact(1.0))).split(3)
    assert float(slow.abs().max()) < {1: 3e-2, 2: 3e-3}[order]
    # Stiff modes are damped a little in each step, not followed.
    assert float(fast.abs().max()) < 0.5 * float(f.start[0].norm())
    # Eight of them estimated the eigenvalue; Euler's scheme would take 1,500.
    assert f.evaluations == 8 + 20 * integrator.fewest(0.05 * state.eigenvalue / integrator.safety)
    assert f.evaluations < 600


def test_the_first_order_scheme_steps_as_far_as_its_stages_reach(generator):
    f, stages = Stiff(generator), 20
    integrator = RKC(1, stages=stages)
    report = integrator.step(Field(f), f.start, integrator.init()).report
    # One more looks at the end, and is the first of the next step.
    assert f.evaluations == 8 + stages + 1
    assert report.h == pytest.approx(0.5 * rkc.rkc1(stages).limit / 3000, rel=0.1)
    assert report.h > 100 * 2 / 3000


@pytest.mark.parametrize("rtol", [1e-2, 1e-4])
def test_the_second_order_scheme_meets_its_tolerance(rtol, generator):
    f = Stiff(generator)
    integrator, y, t = RKC(2, rtol=rtol, atol=rtol), f.start, 0.0
    state, limit = integrator.init(), integrator.scheme(integrator.stages).limit
    while t < 1:
        y, state, report = integrator.step(Field(f), y, state)
        assert report.h <= integrator.safety * limit / state.eigenvalue * 1.001
        t += report.h
    assert float((y[0] - f.exact(t)).abs().max()) < 10 * rtol
    assert f.evaluations < 2500


def test_a_trial_step_that_is_not_finite_is_retried_with_a_smaller_one():
    """y' = 1/(1 - y) leaves the real line at y = 1."""

    def f(y):
        if float(y[0]) >= 1:
            raise FloatingPointError
        return [1 / (1 - y[0])]

    start = [torch.zeros(1, dtype=torch.float64)]
    y, _, report = RKC(2, safety=1e9).step(Field(f), start, ExplicitState(h=5.0))
    assert 0 < report.h < 0.5
    assert report.rejected > 0
    assert float(y[0]) == pytest.approx(1 - math.sqrt(1 - 2 * report.h), rel=1e-2)

    def nowhere(y):
        if float(y[0]) != 0:
            raise FloatingPointError
        return [y[0] + 1]

    state = ExplicitState(h=1.0, eigenvalue=1.0, age=1, speed=1.0)
    with pytest.raises(FloatingPointError, match="No step down"):
        RKC(2).step(Field(nowhere), start, state)


def test_the_estimate_is_kept_until_it_is_old_or_velocity_or_loss_grow(generator):
    f = Stiff(generator)
    y, k = f.start, f(f.start)

    def kept(last, slope=k, loss=math.nan):
        return kept_eigenvalue(Field(f), y, Velocity(slope, loss), last, renew=3)

    first = kept(None)
    assert first.eigenvalue == pytest.approx(3000, rel=0.05)
    assert all(isinstance(x, int | float) for x in first)

    def renewed(last, slope=k, loss=math.nan):
        before = f.evaluations
        kept(last, slope, loss)
        return f.evaluations > before

    assert not renewed(first)
    assert not renewed(first._replace(age=2))
    assert renewed(first._replace(age=3))
    assert not renewed(first, [1.05 * k[0]])
    assert renewed(first, [1.2 * k[0]])
    assert renewed(None)
    lower = kept(first, loss=2.0)
    assert not renewed(lower, loss=2.1)
    assert renewed(lower, loss=2.3)
    # The least speed of all steps counts, so that slow growth is seen too.
    slower = kept(first, [0.5 * k[0]])
    assert renewed(slower, [0.6 * k[0]])


class Decay:
    """y' = -y, with a loss of one's choice; counts its evaluations."""

    space = FLAT

    def __init__(self, loss):
        self.loss, self.evaluations = loss, 0

    def velocity(self, y):
        self.evaluations += 1
        return Velocity([-y[0]], self.loss)


@pytest.mark.parametrize("integrator", [RungeKutta(EULER), RKC(1, stages=3), RKC(2, stages=3)])
def test_a_loss_that_has_grown_asks_for_a_new_estimate(integrator):
    """Between two steps from the same state, as on other points: the velocity has not grown."""
    y = [torch.ones(3, dtype=torch.float64)]
    state = integrator.step(Decay(1.0), y, integrator.init()).state

    def spent(loss):
        flow = Decay(loss)
        integrator.step(flow, y, state)
        return flow.evaluations

    assert spent(1.05) < 8 < spent(1.5)


@by_order
def test_on_the_manifold_it_descends_further_than_its_stages_of_euler(order, generator):
    toy, y = Sensing.random(40, 7, 5, generator), [point(7, 5, [1.0, 0.4], generator)]
    integrator, losses = RKC(order, stages=10, rtol=0.05, atol=0.05), []
    state = integrator.init()
    for _ in range(15):
        losses.append(float(toy.residuals(y[0]).square().sum()))
        y, state, report = integrator.step(Field(toy.velocity, FixedRank()), y, state)
    assert losses == sorted(losses, reverse=True)
    if order == 1:
        assert report.h * state.eigenvalue > 10 * 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"order": 3}, "order is 3, but it must be 1 or 2"),
        ({"h": -1.0}, "h is -1.0"),
        ({"damping": 0.0}, "damping is 0.0"),
        ({"safety": math.inf}, "safety is inf"),
        ({"order": 2, "stages": 1}, "stages is 1.*whole number of at least 2"),
        ({"stages": 2.5}, "whole number of at least 1 and at most 1000"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        RKC(**settings)


def test_a_step_beyond_any_number_of_stages_is_refused(generator):
    f = Stiff(generator)
    with pytest.raises(InputError, match="more than 1000 stages"):
        RKC(1).step(Field(f), f.start, RKC(1).init(), 1e5)

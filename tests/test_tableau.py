"""Butcher tableaux: order conditions, order by slope, stability intervals."""

import math

import numpy as np
import pytest
import torch

from pinn_odelora.integrators import Field, RungeKutta, Tableau, rk_step, tableau
from pinn_odelora.integrators.runge_kutta import ExplicitState
from pinn_odelora.integrators.stability import largest_eigenvalue

TABLEAUX = {name: value for name, value in vars(tableau).items() if isinstance(value, Tableau)}
by_name = pytest.mark.parametrize("scheme", TABLEAUX.values(), ids=TABLEAUX.keys())


def test_rooted_trees_are_counted_as_in_the_literature():
    assert [len(tableau.trees(n)) for n in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]


@by_name
def test_order_conditions_hold_up_to_the_stated_order_and_no_further(scheme):
    for p in range(1, scheme.order + 1):
        assert tableau.order_defect(scheme.matrix, np.array(scheme.b), p) < 1e-13
    assert tableau.order_defect(scheme.matrix, np.array(scheme.b), scheme.order + 1) > 1e-5


@by_name
def test_order_shows_as_a_slope_on_a_nonlinear_equation(scheme):
    """A pendulum with friction, against the same scheme at a sixteenth of the step."""

    def end(n):
        y = [torch.tensor([2.0, 0.3], dtype=torch.float64)]
        swing = lambda y: [torch.stack([y[0][1], -torch.sin(y[0][0]) - 0.1 * y[0][1]])]
        for _ in range(n):
            y = rk_step(swing, y, 2 / n, scheme, swing(y))
        return y[0]

    exact = end(512)
    slope = math.log2(float((end(16) - exact).norm() / (end(32) - exact).norm()))
    assert slope == pytest.approx(scheme.order, abs=0.25)


@pytest.mark.parametrize("entry", ["a", "b"])
def test_a_mistyped_tableau_cannot_be_built(entry):
    wrong = {"a": [list(row) for row in tableau.RK4.a], "b": list(tableau.RK4.b)}
    wrong["a"][3][2] += 0.01 * (entry == "a")
    wrong["b"][1] += 0.01 * (entry == "b")
    with pytest.raises(ValueError, match="order"):
        Tableau(**wrong, order=4)


def test_an_embedded_solution_of_the_wrong_order_is_refused():
    scheme = tableau.BOGACKI_SHAMPINE
    with pytest.raises(ValueError, match="order 3"):
        Tableau(scheme.a, scheme.b, 3, scheme.embedded, embedded_order=3)


# Real stability intervals from the stability polynomials of s-stage schemes of order s (Hairer and Wanner, IV.2).
@pytest.mark.parametrize(
    ("scheme", "limit"),
    [("EULER", 2.0), ("MIDPOINT", 2.0), ("HEUN", 2.0), ("KUTTA3", 2.5127453), ("RK4", 2.7852936)],
)
def test_real_stability_interval(scheme, limit):
    scheme = TABLEAUX[scheme]
    assert scheme.real_stability == pytest.approx(limit, abs=1e-6)

    def growth(x):
        f = lambda y: [-x * y[0]]
        y = [torch.ones(1, dtype=torch.float64)]
        return abs(float(rk_step(f, y, 1.0, scheme, f(y))[0]))

    assert growth(0.999 * limit) < 1 < growth(1.001 * limit)


EXPONENTIAL = [1 / math.factorial(k) for k in range(6)]


@pytest.mark.parametrize(
    ("scheme", "coefficients"),
    [
        ("EULER", EXPONENTIAL[:2]),
        ("MIDPOINT", EXPONENTIAL[:3]),
        ("HEUN", EXPONENTIAL[:3]),
        ("KUTTA3", EXPONENTIAL[:4]),
        ("BOGACKI_SHAMPINE", EXPONENTIAL[:4]),
        ("RK4", EXPONENTIAL[:5]),
        # Dormand and Prince (1980): six stages count, the last coefficient is not that of the exponential.
        ("DORMAND_PRINCE", [*EXPONENTIAL, 1 / 600]),
    ],
)
def test_stability_function_on_the_linear_test_equation(scheme, coefficients):
    z = torch.linspace(-5, 1, 61, dtype=torch.float64)
    f, y = lambda y: [z * y[0]], [torch.ones_like(z)]
    (reached,) = rk_step(f, y, 1.0, TABLEAUX[scheme], f(y))
    assert torch.allclose(reached, sum(c * z**k for k, c in enumerate(coefficients)), rtol=1e-12, atol=1e-12)


def stiff(generator):
    """A linear system with eigenvalues from -1 to -300 in a random basis, and its exact flow."""
    Q = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    rates = torch.tensor([1.0, 3.0, 10.0, 40.0, 120.0, 300.0], dtype=torch.float64)
    M = -Q @ torch.diag(rates) @ Q.T
    return M, lambda t, y: torch.linalg.matrix_exp(t * M) @ y


@pytest.mark.parametrize("scheme", [s for s in TABLEAUX.values() if s.embedded], ids=lambda s: f"order{s.order}")
@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_an_embedded_pair_meets_its_tolerance(scheme, rtol, generator):
    M, flow = stiff(generator)
    y0 = torch.randn(6, generator=generator, dtype=torch.float64)
    integrator, y, t = RungeKutta(scheme, rtol=rtol, atol=rtol), [y0], 0.0
    state, evaluations = integrator.init(), 0

    def f(y):
        nonlocal evaluations
        evaluations += 1
        return [M @ y[0]]

    while t < 1:
        y, state, report = integrator.step(Field(f), y, state)
        t += report.h
    assert float((y[0] - flow(t, y0)).abs().max()) < 10 * rtol
    assert evaluations < 3000


def test_a_trial_step_that_is_not_finite_is_retried_with_a_smaller_one():
    """y' = 1/(1 - y) leaves the real line at y = 1; the first trial step jumps over it."""

    def f(y):
        if float(y[0]) >= 1:
            raise FloatingPointError
        return [1 / (1 - y[0])]

    integrator = RungeKutta(tableau.DORMAND_PRINCE)
    y, _, report = integrator.step(Field(f), [torch.zeros(1, dtype=torch.float64)], ExplicitState(h=5.0))
    assert 0 < report.h < 0.5
    assert report.rejected > 0
    assert float(y[0]) == pytest.approx(1 - math.sqrt(1 - 2 * report.h), rel=1e-3)


def test_largest_eigenvalue_is_found_and_a_scheme_without_pair_stays_stable(generator):
    M, _ = stiff(generator)
    flow = Field(lambda y: [M @ y[0]])
    y = [torch.randn(6, generator=generator, dtype=torch.float64)]
    assert largest_eigenvalue(flow, y, flow.velocity(y)) == pytest.approx(300, rel=0.05)
    integrator = RungeKutta(tableau.HEUN)
    state = integrator.init()
    for _ in range(200):
        y, state, _ = integrator.step(flow, y, state)
    assert float(y[0].abs().max()) < 0.6

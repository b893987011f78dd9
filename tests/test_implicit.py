"""The linearly implicit scheme on networks: its linear algebra, its charts, and what a training run sees of it."""

import copy
import itertools
import math
from itertools import pairwise

import pytest
import torch
from test_optim import SCALE, adapted, products
from torch import linalg

from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.flows import balanced_flow, gradient_flow, scaled_flow
from pinn_odelora.integrators import RKC, ROS2, LinearlyImplicit, Local, RungeKutta, linearly_implicit
from pinn_odelora.integrators.linearly_implicit import ImplicitState
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.linalg import damped
from pinn_odelora.linalg.damped import Damped
from pinn_odelora.lowrank.layer import adapters
from pinn_odelora.lowrank.start import zero
from pinn_odelora.manifolds.factors import balance_defect
from pinn_odelora.manifolds.variables import LowRankPair
from pinn_odelora.methods import lora_gd, odelora, scaled_gd
from pinn_odelora.objective import Batch, Objective
from pinn_odelora.optim import ODELoRA, factor_pairs
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers


def objective_of(net, n=60, conditions="soft"):
    problem = Burgers(conditions=conditions)
    system = System(problem, Solution(problem, net))
    parameters = [p for group in factor_pairs(net) for p in group["params"]]
    made = Objective(system, parameters, adapters(net))
    made.begin(Batch(0, draw_points(system.terms, n, 12, seed=3)))
    return made


def odelora_of(net, integrator=None, flow=balanced_flow):
    return ODELoRA(factor_pairs(net), integrator=integrator or LinearlyImplicit(), flow=flow)


def step(net, flow=balanced_flow, **settings):
    """One step of a copy: its products, and the optimiser."""
    moved = copy.deepcopy(net)
    optimizer = odelora_of(moved, LinearlyImplicit(**settings), flow)
    optimizer.step(objective_of(moved))
    return products(moved), optimizer, moved


SOLVERS = [(1e-2, None, torch.float32), (1e-6, None, torch.float64), (1e-17, "qr", torch.float64)]


def least_squares(shape, generator):
    R, P = shape
    J = torch.randn(R, P, generator=generator, dtype=torch.float64) * torch.logspace(0, -5, P, dtype=torch.float64)
    return J, torch.randn(R, generator=generator, dtype=torch.float64)


def stacked_solution(J, w, mu):
    stacked = torch.cat([J, math.sqrt(mu) * torch.eye(J.shape[1], dtype=torch.float64)])
    return linalg.lstsq(stacked, torch.cat([w, w.new_zeros(J.shape[1])])[:, None]).solution[:, 0]


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
@pytest.mark.parametrize(("mu", "form", "dtype"), SOLVERS)
def test_damped_least_squares_by_every_solver(shape, mu, form, dtype, generator):
    J, w = least_squares(shape, generator)
    expected, S = stacked_solution(J, w, mu), Damped(J)
    assert linalg.vector_norm(S(w, mu) - expected) < 1e-8 * linalg.vector_norm(expected)
    assert S.used == (form or ("normal" if J.shape[1] <= J.shape[0] else "kernel"), dtype)


def test_few_rows_are_factored_without_a_matrix_of_all_columns(generator):
    J, w = least_squares((20, 300), generator)
    S = Damped(J)
    expected = stacked_solution(J, w, 1e-17)
    assert linalg.vector_norm(S(w, 1e-17) - expected) < 1e-8 * linalg.vector_norm(expected)
    assert S.used.form == "qr"
    assert max(x.untyped_storage().nbytes() for x in S._kept[2]) <= 8 * 20 * 300


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_a_refinement_that_does_not_converge_returns_to_float64(shape, generator, monkeypatch):
    J, w = least_squares(shape, generator)
    monkeypatch.setattr(damped, "SINGLE", 1e-4)
    mu, S = 1e-8, Damped(J)
    # The factor of another matrix, far from the one that is asked for.
    other = lambda mu, dtype, found=S._gram: found(1e-3 if dtype == torch.float32 else mu, dtype)
    monkeypatch.setattr(S, "_gram", other)
    expected = stacked_solution(J, w, mu)
    assert linalg.vector_norm(S(w, mu) - expected) < 1e-6 * linalg.vector_norm(expected)
    assert S.used.dtype == torch.float64
    assert not S.single


def test_a_gram_matrix_that_rounding_has_made_indefinite_is_not_trusted(generator):
    left, right = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((40, 12), (12, 25)))
    J = left @ right
    # Rows that can be met exactly: else the answer itself turns with the square of the condition number.
    w = J @ torch.randn(25, generator=generator, dtype=torch.float64)
    shortest, S = linalg.pinv(J, rtol=1e-10) @ w, Damped(J)
    assert linalg.vector_norm(S(w, 1e-13) - shortest) < 1e-6 * linalg.vector_norm(shortest)
    assert S.used.form == "qr"
    assert S.used.fallback


def test_the_evaluation_of_a_linearisation_is_that_of_the_gradient():
    by_gradient, by_linearisation = objective_of(net := adapted()), objective_of(net)
    by_gradient()
    by_linearisation.linearise()
    a, b = by_gradient.first, by_linearisation.first
    torch.testing.assert_close(b.total, a.total, rtol=1e-13, atol=0)
    assert list(a.terms) == list(b.terms) == ["pde", "ic", "bc"]
    for x, y in zip([*a.terms.values(), *a.gradients], [*b.terms.values(), *b.gradients], strict=True):
        torch.testing.assert_close(y, x, rtol=1e-11, atol=1e-14)
    for name in a.weights:
        torch.testing.assert_close(b.weights[name], a.weights[name], rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(by_linearisation.residuals().square().sum() / 2, a.total, rtol=1e-13, atol=0)
    assert by_linearisation.count == 2


def test_a_small_step_is_the_projected_flow_and_a_step_in_factors_is_plain_lora():
    net, h = adapted(), 1e-7
    made = objective_of(net)
    made()
    for flow in (balanced_flow, gradient_flow):
        moved, _, _ = step(net, flow, h=h, correction=False)
        velocity = []
        for name, layer in adapters(net).items():
            G, (A, B) = made.first.weights[name], (x.detach() for x in layer.factors)
            if flow is balanced_flow:
                P_B, P_A = B @ linalg.pinv(B), linalg.pinv(A) @ A
                velocity.append(-(P_B @ G + G @ P_A - P_B @ G @ P_A))
            else:
                velocity.append(-(SCALE**2) * (B @ B.mT @ G + G @ A.mT @ A))
        expected = torch.cat([v.flatten() for v in velocity])
        assert linalg.vector_norm((moved - products(net)) / h - expected) < 1e-4 * linalg.vector_norm(expected)


@pytest.mark.parametrize("correction", [True, False])
def test_a_step_on_the_manifold_sees_neither_gauge_nor_scale(correction, generator):
    net = adapted()
    expected, _, _ = step(net, h=30.0, correction=correction)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for layer in adapters(other).values():
            P = torch.randn(2, 2, generator=generator, dtype=torch.float64) + 2 * torch.eye(2)
            layer.A.copy_(linalg.solve(P, layer.A))
            layer.B.copy_(layer.B @ P)
            layer.scale, factor = 3.1, SCALE / 3.1
            layer.A.mul_(factor)
            layer.start_A.mul_(factor)
    torch.testing.assert_close(products(other), products(net), rtol=1e-10, atol=1e-12)
    found, _, moved = step(other, h=30.0, correction=correction)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert all(balance_defect(layer.factors) < 1e-13 for layer in adapters(moved).values())


def test_a_step_in_the_factors_sees_no_rotation_of_them_but_every_other_change(generator):
    expected, _, _ = step(adapted(), gradient_flow, h=3.0)

    def after(P):
        net = adapted()
        with torch.no_grad():
            for layer in adapters(net).values():
                layer.A.copy_(linalg.solve(P, layer.A))
                layer.B.copy_(layer.B @ P)
        return step(net, gradient_flow, h=3.0)[0]

    P = torch.randn(2, 2, generator=generator, dtype=torch.float64) + 2 * torch.eye(2)
    torch.testing.assert_close(after(linalg.qr(P).Q), expected, rtol=1e-7, atol=1e-9)
    assert float((after(P) - expected).norm()) > 1e-2 * float(expected.norm())


def descended(A, B, correction, steps=3):
    """Products of the layer after a few steps with momentum from these factors."""
    net = adapted()
    made = objective_of(net)
    with torch.no_grad():
        for layer, a, b in zip(adapters(net).values(), A, B, strict=True):
            layer.A.copy_(a)
            layer.B.copy_(b)
    optimizer = odelora_of(net, LinearlyImplicit(h=30.0, momentum=0.8, correction=correction))
    for _ in range(steps):
        made.begin(made.batch)
        optimizer.step(made)
    return products(net)


@pytest.mark.parametrize("correction", [True, False])
def test_momentum_is_carried_along_the_manifold_whatever_the_gauge(correction, generator):
    layers = list(adapters(adapted()).values())
    A, B = ([getattr(layer, name).detach() for layer in layers] for name in "AB")
    P = torch.randn(2, 2, generator=generator, dtype=torch.float64) + 2 * torch.eye(2)
    expected = descended(A, B, correction)
    found = descended([linalg.solve(P, a) for a in A], [b @ P for b in B], correction)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


class LeastSquares:
    """Residuals J y - b in a flat space; an ``integrators.base.ResidualFlow``."""

    def __init__(self, J, b):
        self.J, self.b = J, b

    def residuals(self, y):
        return self.J @ y - self.b

    def linearise(self, y):
        same = lambda z: z
        return Local(self.residuals(y), self.J, lambda z: y + z, vector=same, coordinates=same)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_a_step_with_momentum_is_the_nearest_to_what_is_carried(shape, generator):
    """d minimises ½‖r + J d‖² + (1/2h) ‖d - β d_last‖², by an independent solution of the stacked system."""
    J, b = least_squares(shape, generator)
    y, last = (torch.randn(shape[1], generator=generator, dtype=torch.float64) for _ in range(2))
    h, beta = 3.0, 0.6
    taken = LinearlyImplicit(h=h, momentum=beta).step(LeastSquares(J, b), y, ImplicitState(last=last))
    stacked = torch.cat([J, torch.eye(shape[1], dtype=torch.float64) / math.sqrt(h)])
    wanted = torch.cat([b - J @ y, beta * last / math.sqrt(h)])
    d = linalg.lstsq(stacked, wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(taken.y - y, d, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(taken.state.last, taken.y - y, rtol=1e-10, atol=1e-12)


class Curved(LeastSquares):
    """Residuals that bend: J y - b + ¼ (J y)²."""

    def residuals(self, y):
        return self.J @ y - self.b + (self.J @ y).square() / 4

    def linearise(self, y):
        same, bent = lambda z: z, self.J * (1 + self.J @ y / 2)[:, None]
        return Local(self.residuals(y), bent, lambda z: y + z, vector=same, coordinates=same)


def test_what_is_carried_on_is_the_whole_step_its_correction_included(generator):
    J = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    y, b = torch.randn(5, generator=generator, dtype=torch.float64), torch.full((8,), 0.5, dtype=torch.float64)
    taken = LinearlyImplicit(h=0.1, momentum=0.5).step(Curved(J, b), y, ImplicitState())
    plain = LinearlyImplicit(h=0.1, correction=False).step(Curved(J, b), y, ImplicitState())
    assert taken.report.corrected
    torch.testing.assert_close(taken.state.last, taken.y - y, rtol=1e-10, atol=1e-12)
    assert float((taken.y - plain.y).norm()) > 1e-3 * float((plain.y - y).norm())
    chosen = LinearlyImplicit(momentum=0.5).step(Curved(J, b), y, ImplicitState(mu=10.0))
    torch.testing.assert_close(chosen.state.last, chosen.y - y, rtol=1e-10, atol=1e-12)


class Bent(LeastSquares):
    """r = J y - b + κ (u·y)³ v, with u soft and v in the range of stiff directions."""

    def __init__(self, kappa):
        generator = torch.Generator().manual_seed(3)
        U, V = (linalg.qr(torch.randn(n, 6, generator=generator, dtype=torch.float64)).Q for n in (9, 6))
        sigma = torch.tensor([1.0, 0.9, 0.8, 1e-3, 1e-3, 1e-3], dtype=torch.float64)
        super().__init__(U * sigma @ V.mT, U[:, 3] * 1e-3)
        self.u, self.v, self.kappa = V[:, 3], U[:, 0], kappa

    def residuals(self, y):
        return self.J @ y - self.b + self.kappa * (self.u @ y) ** 3 * self.v

    def linearise(self, y):
        same, rank_one = lambda z: z, torch.outer(self.v, self.u)
        J = self.J + 3 * self.kappa * (self.u @ y) ** 2 * rank_one
        return Local(self.residuals(y), J, lambda z: y + z, vector=same, coordinates=same)


def test_a_long_soft_step_is_brought_to_the_residuals_that_the_linearisation_promises(monkeypatch):
    """From y = 0 neither J nor the second derivative tells of the cubic term; the iterations remove it."""
    flow, y = Bent(kappa=0.05), torch.zeros(6, dtype=torch.float64)
    promised = lambda mu: half_square_of(flow, stacked_solution(flow.J, flow.b, mu))
    taken = LinearlyImplicit().step(flow, y, ImplicitState(mu=1e-8))
    assert taken.report.rejected == 0
    assert taken.report.loss_after < 1.2 * promised(1e-8) + 0.1 * taken.report.loss
    # What remains of the soft component is that of the linear problem.
    assert float(flow.u @ taken.y) == pytest.approx(1e-6 / (1e-6 + 1e-8), rel=1e-3)
    monkeypatch.setattr(linearly_implicit, "ITERATIONS", 0)
    without = LinearlyImplicit().step(flow, y, ImplicitState(mu=1e-8))
    assert without.report.rejected > 3
    assert float(flow.u @ without.y) < 0.5


def half_square_of(flow, y):
    return float((flow.J @ y - flow.b).square().sum()) / 2


def test_iterations_end_where_the_loss_rises_or_the_decrease_is_that_of_the_linearisation():
    """At most four, and none on residuals that are linear."""
    calls = []

    class Counted(Bent):
        def residuals(self, y):
            calls.append(y)
            return super().residuals(y)

    y = torch.zeros(6, dtype=torch.float64)
    LinearlyImplicit().step(Counted(kappa=0.0), y, ImplicitState(mu=1e-8))
    # Where the step starts, for the second derivative, and at its end.
    assert len(calls) == 3
    calls.clear()
    LinearlyImplicit(h=1e8).step(Counted(kappa=1e3), y, ImplicitState())
    assert len(calls) <= 3 + linearly_implicit.ITERATIONS + 1


def test_damping_stays_above_the_rounding_errors_of_the_gram_matrix():
    J = torch.diag(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    flow, y = LeastSquares(J, torch.zeros(2).double()), torch.ones(2, dtype=torch.float64)
    state = ImplicitState(mu=1e-30)
    for _ in range(3):
        y, state, report = LinearlyImplicit(momentum=0.0).step(flow, y, state)
        assert 1 / report.h >= 10 * torch.finfo(torch.float64).eps
        assert not report.solver.fallback


def test_momentum_moves_soft_directions_faster_and_stiff_ones_as_before():
    """Where h λ = 1e-4, log y falls 1/(1 - β) times as fast a step; where h λ = 1e4, all is gone at once."""
    J = torch.diag(torch.tensor([1e2, 1e-2], dtype=torch.float64))
    ends = {}
    for beta in (0.0, 0.75):
        scheme, y = LinearlyImplicit(h=1.0, momentum=beta, correction=False), torch.ones(2).double()
        state = scheme.init()
        for _ in range(500):
            y, state, _ = scheme.step(LeastSquares(J, torch.zeros(2).double()), y, state)
        ends[beta] = y
    slow, fast = (-math.log(float(ends[beta][1])) for beta in (0.0, 0.75))
    assert fast / slow == pytest.approx(4.0, rel=0.02)
    assert all(float(y[0].abs()) < 1e-12 for y in ends.values())


def test_momentum_is_dropped_where_it_leads_up():
    """After a very long step the wrong way three trials end higher, and the step taken is one without momentum."""
    J, b = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    y = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    taken = LinearlyImplicit().step(LeastSquares(J, b), y, ImplicitState(mu=1.0, last=1e4 * y))
    torch.testing.assert_close(taken.y, y * (1 - 1 / (1 + 64.0)), rtol=1e-10, atol=0)
    assert taken.report.loss_after < taken.report.loss == float(y @ y) / 2
    assert taken.report.rejected == linearly_implicit.PATIENCE


def test_momentum_is_that_of_the_default_only_where_h_is_free():
    """A step is carried on to the next one only where there is momentum; what is carried then changes that step."""
    flow = LeastSquares(torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64)), torch.zeros(2).double())
    y, last = torch.ones(2).double(), torch.tensor([-0.05, 0.1], dtype=torch.float64)

    def carries(scheme, h=None):
        first, second = (scheme.step(flow, y, ImplicitState(1.0, x), h) for x in (last, None))
        assert (first.state.last is not None) == (not torch.equal(first.y, second.y))
        return first.state.last is not None

    assert carries(LinearlyImplicit())
    assert not carries(LinearlyImplicit(), h=0.1)
    assert not carries(LinearlyImplicit(h=0.1))
    assert not carries(LinearlyImplicit(momentum=0.0))
    assert carries(LinearlyImplicit(h=0.1, momentum=0.5))
    default, stated = (LinearlyImplicit(momentum=x).step(flow, y, ImplicitState(1.0, last)) for x in (None, 0.7))
    assert torch.equal(default.y, stated.y)


LEAST = 10 * torch.finfo(torch.float64).eps
"""The least damping for a J with tr JᵀJ = 1 and soft directions beside that."""


def soft():
    """Residuals with one stiff direction, and one along which damping allows a 10,000th a step."""
    J = torch.diag(torch.tensor([1.0, 0.01 * math.sqrt(LEAST)], dtype=torch.float64))
    return LeastSquares(J, torch.zeros(2).double()), torch.ones(2, dtype=torch.float64)


def soft_components(scheme, state, steps=80):
    """The soft component of every iterate, and the last state."""
    flow, y = soft()
    found = [1.0]
    for _ in range(steps):
        y, state, _ = scheme.step(flow, y, state)
        found.append(float(y[1]))
    return found, state


def test_steps_at_the_largest_h_are_those_of_the_accelerated_proximal_point_method():
    """x' = (x + β (x - x_last)) / (1 + h λ) with β = k / (k + 3) where that is above 0.7."""
    found, state = soft_components(LinearlyImplicit(), ImplicitState(mu=1e-30))
    wanted = [1.0, 1.0]  # before the first step, and there
    for k in range(80):
        beta = max(0.7, k / (k + 3))
        wanted.append((wanted[-1] + beta * (wanted[-1] - wanted[-2])) / (1 + 1e-4))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted[1:]), rtol=1e-9, atol=0)
    assert state.at_least == 80
    constant, _ = soft_components(LinearlyImplicit(momentum=0.7), ImplicitState(mu=1e-30))
    assert -math.log(found[-1]) > 3 * -math.log(constant[-1])


def test_momentum_begins_again_after_a_rejected_trial_and_above_the_least_damping():
    flow, y = soft()
    scheme = LinearlyImplicit()
    momenta = [scheme._momentum_after(k, None) for k in (0, 7, 8, 97)]
    assert momenta == [0.7, 0.7, 8 / 11, 0.97]
    assert scheme._momentum_after(97, h=0.1) == 0.0
    assert LinearlyImplicit(momentum=0.7)._momentum_after(97, None) == 0.7
    after = lambda mu, last: scheme.step(flow, y, ImplicitState(mu, last, at_least=50)).state.at_least
    assert after(1e-30, None) == 51
    assert after(2 * LEAST, None) == 0
    uphill = torch.tensor([0.0, 1e10], dtype=torch.float64)
    assert after(1e-30, uphill) == 0


def test_a_trial_step_that_overflows_is_rejected():
    """Also where the end of a step so long cannot be represented on the manifold."""

    class Bounded(LeastSquares):
        def linearise(self, y):
            def retract(z):
                if float(z.norm()) > 1.5:
                    raise FloatingPointError("too far")
                return y + z

            return super().linearise(y)._replace(retract=retract)

    flow = Bounded(torch.eye(3, dtype=torch.float64), torch.full((3,), 10.0, dtype=torch.float64))
    y = torch.zeros(3, dtype=torch.float64)
    taken = LinearlyImplicit().step(flow, y, ImplicitState(mu=1.0))
    assert taken.report.rejected > 0
    assert 0 < float(taken.y.norm()) <= 1.5
    with pytest.raises(FloatingPointError, match="too far"):
        LinearlyImplicit(h=1.0).step(flow, y, ImplicitState())


def test_the_solver_reported_is_that_of_the_step_and_not_of_its_corrector():
    """At 1/h a factor of float64 serves, at 100/h one of float32."""
    flow, y = Bent(kappa=0.05), torch.zeros(6, dtype=torch.float64)
    taken = LinearlyImplicit().step(flow, y, ImplicitState(mu=1e-6))
    assert taken.report.corrected
    assert taken.report.rejected == 0
    solver = Damped(flow.J)
    for mu, dtype in ((1e-6, torch.float64), (1e-4, torch.float32)):
        solver(flow.b, mu)
        assert solver.used.dtype == dtype
    assert taken.report.solver.dtype == torch.float64


def test_a_refinement_that_overflows_returns_to_float64(generator):
    J, w = 1e15 * torch.eye(5, 4, dtype=torch.float64), torch.full((5,), 1e25, dtype=torch.float64)
    S = Damped(J)
    torch.testing.assert_close(S(w, 1e29), w[:4] * 1e15 / (1e30 + 1e29), rtol=1e-12, atol=0)
    assert S.used.dtype == torch.float64


@pytest.mark.parametrize("scheme", [LinearlyImplicit, ROS2])
def test_the_solver_of_a_step_whose_size_is_chosen_is_reported(scheme):
    net = adapted()
    optimizer = odelora_of(net, scheme(gram_dtype="float64"))
    optimizer.step(objective_of(net))
    assert (optimizer.report.solver.bits, optimizer.report.solver.fallback) == (64, False)


@pytest.mark.parametrize("scheme", [LinearlyImplicit, ROS2])
def test_the_precision_of_gram_matrices_can_be_fixed_and_is_reported(scheme):
    found = {}
    for precision in ("float32", "float64"):
        net = adapted()
        optimizer = odelora_of(net, scheme(h=1e-3, gram_dtype=precision))
        optimizer.step(objective_of(net))
        solver = optimizer.report.solver
        found[precision] = (solver.bits, solver.fallback, products(net))
    assert found["float32"][:2] == (32, False)
    assert found["float64"][:2] == (64, False)
    torch.testing.assert_close(found["float32"][2], found["float64"][2], rtol=1e-8, atol=1e-10)


def test_the_factors_start_at_rest_where_plain_lora_does_and_the_manifold_needs_no_full_rank():
    """From B = 0 the product has no singular vectors of its own: any will do, and the step is defined."""
    moved, _, net = step(adapted(zero), h=10.0)
    assert bool(torch.isfinite(moved).all())
    assert linalg.vector_norm(moved) > 1e-3
    assert all(balance_defect(layer.factors) < 1e-13 for layer in adapters(net).values())


def test_the_loss_falls_and_h_is_found():
    net = adapted()
    made, optimizer = objective_of(net), odelora_of(net)
    losses = []
    for _ in range(12):
        made.begin(made.batch)
        losses.append(float(optimizer.step(made)))
    assert all(b < a for a, b in pairwise(losses))
    assert losses[-1] < 0.2 * losses[0]
    assert optimizer.report.discarded >= 0


def test_an_optimiser_goes_on_from_its_state_as_if_it_had_never_stopped():
    net = adapted()
    made, optimizer = objective_of(net), odelora_of(net)
    for _ in range(3):
        made.begin(made.batch)
        optimizer.step(made)
    there = copy.deepcopy(net)
    other, again = objective_of(there), odelora_of(there)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for objective, o in ((made, optimizer), (other, again)):
        objective.begin(made.batch)
        o.step(objective)
    assert bool((products(there) == products(net)).all())


def test_a_trial_that_overflows_is_shortened_and_a_point_that_does_is_refused():
    net = adapted()
    made = objective_of(net)
    residuals, calls = made.residuals, []

    def overflowing():
        calls.append(residuals())
        return calls[-1] * math.nan if len(calls) < 6 else calls[-1]

    made.residuals = overflowing
    optimizer = odelora_of(net)
    loss = optimizer.step(made)
    assert len(calls) >= 6
    assert optimizer.report.rejected > 0
    assert residuals().square().sum() / 2 < loss
    before = products(net)
    made.system.solution.net.linears[0].bias.data[0] = math.nan
    made.begin(made.batch)
    with pytest.raises(FloatingPointError, match="loss term 'pde'"):
        odelora_of(net).step(made)
    torch.testing.assert_close(products(net), before, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_is_named_though_a_step_keeps_no_graph(monkeypatch):
    net = adapted()
    made = objective_of(net)
    A = net.linears[1].A
    A.register_hook(lambda g: g * math.inf)
    pulled_back = made._pulled_back
    infinite = lambda G: [g * math.inf if p is A else g for p, g in zip(made.parameters, pulled_back(G), strict=True)]
    monkeypatch.setattr(made, "_pulled_back", infinite)
    with pytest.raises(NonFiniteError, match="The gradient of loss term 'pde'"):
        odelora_of(net).step(made)
    assert made.count == 1


@pytest.mark.parametrize("integrator", [LinearlyImplicit(), LinearlyImplicit(h=0.1, correction=False), ROS2()])
def test_a_step_reports_the_loss_where_it_ended_on_its_own_points(integrator):
    net = adapted()
    optimizer = odelora_of(net, integrator)
    began = optimizer.step(objective_of(net))
    ended = optimizer.report.loss_after
    assert ended == pytest.approx(float(objective_of(net)()), rel=1e-12)
    assert ended != pytest.approx(float(began), rel=1e-3)


def test_the_discarded_part_is_that_of_the_trial_that_is_taken(monkeypatch):
    """Of all points that trials reached, the one where the pair ended, with what its own retraction left out."""
    reached, move = [], LowRankPair.move

    def recording(self, y, frame, z):
        reached.append(move(self, y, frame, z))
        return reached[-1]

    monkeypatch.setattr(LowRankPair, "move", recording)
    # Both trials are always made, so that the second may be the one that is not taken.
    monkeypatch.setattr(linearly_implicit, "MOSTLY_GONE", 0.0)
    monkeypatch.setattr(linearly_implicit, "KEPT", math.inf)
    monkeypatch.setattr(linearly_implicit, "ITERATIONS", 0)
    last = []
    for seed, h in itertools.product((1, 2, 3), (0.1, 3.0)):
        reached.clear()
        _, optimizer, net = step(adapted(seed=seed), h=h)
        parts = []
        for layer in adapters(net).values():
            product = layer.scale * (layer.B @ layer.A).detach()
            own = [m for m in reached if m.point.matrix().shape == product.shape]
            parts.append(min(own, key=lambda m: float((m.point.matrix() - product).norm())))
            assert float((parts[-1].point.matrix() - product).norm()) < 1e-12
        found = optimizer.report.discarded
        assert found == pytest.approx(math.hypot(*(float(m.discarded) for m in parts)), rel=1e-9)
        last.append(parts[-1] is reached[-1])
    assert any(last)
    assert not all(last)


def test_a_pair_in_single_precision_moves_in_double(generator):
    """Singular values from 1 to 1e-3: their inverses would cost single precision three digits."""
    A, B = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((3, 9), (7, 3)))
    Q, P = linalg.qr(A.mT).Q.mT, linalg.qr(B).Q
    sigma = torch.tensor([1.0, 3e-2, 1e-3], dtype=torch.float64).sqrt()
    single = [(sigma[:, None] * Q).float(), (P * sigma).float()]
    z = torch.randn(3 * (7 + 9 - 3), generator=generator, dtype=torch.float64) / 10
    ends = []
    for factors in (single, [x.double() for x in single]):
        pair = LowRankPair(factors, 1.0)
        y = pair.start()
        assert y.matrix().dtype == torch.float64
        ends.append(pair.move(y, pair.frame(y), z).point.matrix())
    assert float((ends[0] - ends[1]).norm()) < 1e-13


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match=r"^h is -1"):
        LinearlyImplicit(h=-1)
    with pytest.raises(InputError, match=r"^momentum is 1.0, but it must be a number of at least 0 and below 1"):
        LinearlyImplicit(momentum=1.0)
    for scheme in (LinearlyImplicit, ROS2):
        with pytest.raises(InputError, match="must be float32 or float64"):
            scheme(gram_dtype="float16")


@pytest.mark.parametrize(
    ("method", "integrator", "settings", "sentence"),
    [
        (odelora, LinearlyImplicit(), {"retract": False}, "always balanced"),
        (odelora, RungeKutta(EULER), {"retract": False, "chart": "manifold"}, "always balanced"),
        (odelora, LinearlyImplicit(), {"chart": "factors"}, "chart is 'factors', but it must be manifold or None"),
        (odelora, ROS2(), {"chart": "angles"}, "chart is 'angles', but it must be factors or manifold or None"),
        (scaled_gd, LinearlyImplicit(), {}, "choose an explicit integrator"),
    ],
)
def test_a_flow_is_not_labelled_as_another(method, integrator, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        method(integrator, **settings)


@pytest.mark.parametrize(
    ("method", "integrator", "flow", "chart"),
    [
        (odelora, LinearlyImplicit(), balanced_flow, "manifold"),
        (odelora, RungeKutta(EULER), balanced_flow, "factors"),
        (odelora, RKC(), balanced_flow, "manifold"),
        (lora_gd, LinearlyImplicit(), gradient_flow, "manifold"),
        (lora_gd, RungeKutta(EULER), gradient_flow, "factors"),
        (lora_gd, RKC(), gradient_flow, "factors"),
        (scaled_gd, RKC(), scaled_flow, "factors"),
    ],
)
def test_a_method_follows_its_own_flow_by_any_scheme(method, integrator, flow, chart):
    optimizer = method(integrator).optimizer(factor_pairs(adapted()))
    assert (optimizer.flow, optimizer.chart) == (flow, chart)

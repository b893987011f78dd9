"""Self-scaled Broyden takes the steps of the formulas, and keeps what quasi-Newton methods keep."""

import copy
import math

import numpy as np
import pytest
import torch
from formulas import ssbroyden as formula
from torch import linalg

import pinn_odelora as po
from pinn_odelora.errors import InputError
from pinn_odelora.rivals.ssbroyden import SSBroyden, broyden_update, full_ssbroyden, scaling, self_scaled_update


def rosenbrock(x):
    """In any even number of unknowns."""
    odd, even = x[::2], x[1::2]
    return (100 * (even - odd**2) ** 2 + (1 - odd) ** 2).sum()


def quadratic(n=12, condition=1e6):
    """Ill-conditioned in directions that are no axes, with its minimum 0 off the origin."""
    Q = linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    A = Q @ torch.diag(torch.logspace(0, math.log10(condition), n, dtype=torch.float64)) @ Q.mT
    centre = torch.linspace(-1, 1, n, dtype=torch.float64)
    return lambda x: (x - centre) @ A @ (x - centre) / 2


def network(x):
    """A least-squares fit by a small network, all of whose weights are in one vector."""
    t = torch.linspace(-1, 1, 15, dtype=torch.float64)
    a, b, c = x.reshape(3, -1)
    return (torch.tanh(t[:, None] * a + b) @ c - torch.sin(3 * t)).square().mean()


def closure_of(loss, x):
    def closure():
        x.grad = None
        value = loss(x)
        value.backward()
        return value

    return closure


def start(n, seed=5):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def of_arrays(loss):
    """A loss and its gradient as functions of arrays."""

    def f(z):
        return float(loss(torch.as_tensor(z)))

    def gradient(z):
        x = torch.as_tensor(z).clone().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0].numpy()

    return f, gradient


@pytest.mark.parametrize("initial_scale", [False, True])
@pytest.mark.parametrize(("loss", "n"), [(network, 12), (quadratic(8, 1e2), 8)])
def test_twenty_steps_are_those_of_the_formulas(loss, n, initial_scale):
    expected = formula.path(*of_arrays(loss), start(n).numpy(), 20, initial_scale)
    x = start(n).requires_grad_()
    optimizer, closure = SSBroyden([x], initial_scale=initial_scale), closure_of(loss, x)
    for point in expected[1:]:
        optimizer.step(closure)
        np.testing.assert_allclose(x.detach().numpy(), point, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("initial_scale", [False, True])
@pytest.mark.parametrize(("loss", "n"), [(rosenbrock, 4), (network, 12), (quadratic(8, 1e2), 8)])
def test_each_of_twenty_steps_is_that_of_the_formulas_from_where_it_began(loss, n, initial_scale):
    """From the same x and H: along Rosenbrock's valley differences of rounding would grow from step to step."""
    f, gradient = of_arrays(loss)
    x = start(n).requires_grad_()
    optimizer, closure = SSBroyden([x], initial_scale=initial_scale), closure_of(loss, x)
    H, before = formula.first(f, gradient, start(n).numpy())
    for k in range(20):
        began = x.detach().numpy().copy()
        point, inverse = formula.step(f, gradient, began, H, before, initial_scale and k == 0)
        optimizer.step(closure)
        np.testing.assert_allclose(x.detach().numpy(), point, rtol=1e-10, atol=1e-10)
        H, before = optimizer.state[x]["H"].numpy().copy(), f(began)
        np.testing.assert_allclose(H, inverse, rtol=1e-8, atol=1e-10 * np.abs(inverse).max())


def spd(n, generator, condition=1e3):
    Q = linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    return Q @ torch.diag(torch.logspace(-1, math.log10(condition) - 1, n, dtype=torch.float64)) @ Q.mT


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_update_solves_the_secant_equation_and_stays_positive_definite(size, generator):
    for k in range(10):
        H, A, g = size * spd(6, generator), spd(6, generator), start(6, seed=k)
        alpha, s = 0.7, -0.7 * H @ g
        y = A @ s
        self_scaled_update(H, s, y, g, alpha)
        assert torch.allclose(H @ y, s, rtol=1e-9, atol=1e-9 * float(s.norm()))
        assert torch.allclose(H, H.mT, rtol=1e-9, atol=1e-9 * float(H.norm()))
        assert linalg.eigvalsh(H).min() > 0


def test_the_inverse_of_the_update_is_a_scaled_one_of_broydens_class(generator):
    """Its inverse is τ (B - BssᵀB/sᵀBs + θ sᵀBs wwᵀ) + yyᵀ/yᵀs with w = y/yᵀs - Bs/sᵀBs; then Hy = s."""
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    for k in range(10):
        R, S = draw(6, 6), (0.05 if k % 2 else 1) * draw(6, 6)
        H, A = R @ R.mT + 0.3 * torch.eye(6), S @ S.mT + (1e-3 if k % 2 else 0.3) * torch.eye(6)
        g, alpha = draw(6), 0.7
        s = -alpha * H @ g
        y, B = A @ s, linalg.inv(H)
        new = H.clone()
        self_scaled_update(new, s, y, g, alpha)
        assert torch.allclose(new @ y, s, atol=1e-9)
        assert torch.allclose(new, new.mT, atol=1e-10)
        assert linalg.eigvalsh(new).min() > 0
        Bs, ys = B @ s, y @ s
        w = y / ys - Bs / (s @ Bs)
        basis = torch.stack([B - torch.outer(Bs, Bs) / (s @ Bs), (s @ Bs) * torch.outer(w, w)]).flatten(1).mT
        rest = (linalg.inv(new) - torch.outer(y, y) / ys).flatten()
        tau, scaled = linalg.lstsq(basis, rest).solution
        assert torch.allclose(basis @ torch.stack([tau, scaled]), rest, atol=1e-7 * float(rest.norm()))
        b, h = float(s @ Bs / ys), float(y @ H @ y / ys)
        a = b * h - 1
        rho = min(1.0, h * (1 - math.sqrt(a / (a + 1))))
        theta = sorted([(rho - 1) / a, (1 - b) / b, 1 / rho])[1]
        assert float(scaled / tau) == pytest.approx(theta, rel=1e-6)
        root = (1 + a * theta) ** (-1 / 5)
        limit = min(root, 1 / theta) if theta > 0 else min(root, (1 + a * theta) * max(1, b))
        assert float(tau) == pytest.approx(min(1, 1 / b) * limit, rel=1e-6)


def test_without_scaling_and_with_theta_zero_it_is_bfgs(generator):
    H, A, s = spd(6, generator), spd(6, generator), start(6)
    y = A @ s
    rho = 1 / (y @ s)
    left = torch.eye(6, dtype=torch.float64) - rho * torch.outer(s, y)
    bfgs = left @ H @ left.mT + rho * torch.outer(s, s)
    broyden_update(H, s, y, 1.0, 1.0)
    assert torch.allclose(H, bfgs, rtol=1e-10)


def test_without_scaling_and_with_theta_one_it_is_dfp(generator):
    H, A, s = spd(6, generator), spd(6, generator), start(6)
    y = A @ s
    dfp = H - torch.outer(H @ y, H @ y) / (y @ H @ y) + torch.outer(s, s) / (y @ s)
    broyden_update(H, s, y, 0.0, 1.0)
    assert torch.allclose(H, dfp, rtol=1e-10)


@pytest.mark.parametrize("h", [1e-9, 0.3, 1.0, 2.0, 1e9])
@pytest.mark.parametrize("excess", [0.0, 1e-17, 1e-9, 0.7, 1e18])
def test_the_scaling_is_finite_and_keeps_the_update_positive_definite(h, excess):
    """σ and τ are above 0 wherever hb ≥ 1, rounding included."""
    b = (1 + excess) / h
    theta, sigma, tau = scaling(h, b, 50)
    assert math.isfinite(theta)
    assert 0 < sigma < math.inf
    assert 0 < tau < math.inf


def test_where_a_is_zero_theta_is_the_limit():
    for h in (0.5, 2.0):
        near, exact = scaling(h, (1 + 1e-12) / h, 9), scaling(h, 1 / h, 9)
        assert near == pytest.approx(exact, rel=1e-5)


def minimised(loss, x, steps):
    x = x.clone().requires_grad_()
    optimizer, closure, calls = SSBroyden([x]), closure_of(loss, x), []
    for _ in range(steps):
        optimizer.step(lambda: calls.append(1) or closure())
    return float(loss(x.detach())), len(calls)


def test_it_solves_ill_conditioned_problems():
    end, _ = minimised(quadratic(), start(12), 80)
    assert end < 1e-18
    end, calls = minimised(rosenbrock, torch.tensor([-1.2, 1.0], dtype=torch.float64), 60)
    assert end < 1e-20
    assert calls < 200


def test_every_iterate_is_lower_by_what_the_line_search_promises():
    x = start(12).requires_grad_()
    optimizer, closure = SSBroyden([x]), closure_of(network, x)
    for _ in range(30):
        optimizer.step(closure)
        assert float(network(x.detach())) < optimizer.report.loss


def split(x):
    return [x[:5].clone().requires_grad_(), x[5:].reshape(1, -1).clone().requires_grad_()]


def test_groups_are_one_vector():
    x, parts = start(12).requires_grad_(), split(start(12))
    whole = lambda: torch.cat([p.reshape(-1) for p in parts])
    one, several = SSBroyden([x]), SSBroyden([{"params": [parts[0]], "name": "a"}, {"params": [parts[1]]}])

    def closure():
        several.zero_grad()
        value = network(whole())
        value.backward()
        return value

    for _ in range(5):
        one.step(closure_of(network, x))
        several.step(closure)
    assert torch.equal(whole(), x)


def test_a_group_may_hold_a_generator_or_a_tensor():
    x, parts = start(12).requires_grad_(), split(start(12))
    optimizer = SSBroyden([{"params": (p for p in parts)}, {"params": x}])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1]


def test_it_continues_from_its_state_with_the_same_bits():
    x = start(12).requires_grad_()
    optimizer = SSBroyden([x])
    for _ in range(4):
        optimizer.step(closure_of(network, x))
    other = x.detach().clone().requires_grad_()
    resumed = SSBroyden([other])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(4):
        optimizer.step(closure_of(network, x))
        resumed.step(closure_of(network, other))
    assert torch.equal(x, other)


def test_points_where_the_loss_fails_are_no_candidates():
    """As an objective that refuses infinite values tells of them; the search goes on nearer to the start."""
    x = torch.tensor([0.3, 2.0], dtype=torch.float64).requires_grad_()
    loss = lambda x: 1e4 * (x[0] - 1) ** 2 - torch.log(x[1]) + x[1]

    def closure():
        if x[1] <= 0 or x[0] > 2:
            raise FloatingPointError("outside")
        return closure_of(loss, x)()

    optimizer = SSBroyden([x])
    for _ in range(25):
        optimizer.step(closure)
    assert x.detach().tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_search_that_fails_begins_again_and_then_waits():
    x = start(12).requires_grad_()
    optimizer, calls, up = SSBroyden([x]), [], [False]

    def closure():
        calls.append(1)
        value = closure_of(network, x)()
        return value + 1.0 if up[0] and len(calls) > 1 else value

    for _ in range(3):
        optimizer.step(closure)
    here, up[0] = x.detach().clone(), True
    asked = []
    for _ in range(4):  # all that is tried is higher: from H, along the gradient, and then nothing is asked
        calls.clear()
        optimizer.step(closure)
        asked.append(len(calls))
    assert asked[0] > 2
    assert asked[1] > 2
    assert asked[2:] == [1, 1]
    assert torch.equal(x, here)
    up[0] = False
    optimizer.state[x]["failed"] = None
    optimizer.step(closure)
    assert not torch.equal(x, here)


def test_a_failing_closure_leaves_everything_as_it_was():
    x = start(12).requires_grad_()
    before, calls = x.detach().clone(), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError
        return closure_of(network, x)()

    with pytest.raises(RuntimeError):
        SSBroyden([x]).step(closure)
    assert torch.equal(x, before)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(InputError, match="needs a closure"):
        SSBroyden([start(3).requires_grad_()]).step()
    with pytest.raises(InputError, match="the closure must return the loss"):
        SSBroyden([start(3).requires_grad_()]).step(lambda: None)
    with pytest.raises(InputError, match="12001 numbers are trained"):
        SSBroyden([torch.zeros(12_001, requires_grad=True)])
    with pytest.raises(InputError, match="initial_scale is 1"):
        full_ssbroyden(initial_scale=1)


def test_pairs_of_peft_are_trained():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["0"]), autocast_adapter_dtype=False)
    x = torch.randn(32, 3, dtype=torch.float64)
    optimizer = SSBroyden(po.factor_pairs(model))

    def closure():
        model.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True).sin()).square().mean()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(15)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]

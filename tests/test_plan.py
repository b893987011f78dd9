"""The dry run: what a residual requests, which engine evaluates it, and which residuals are rejected."""

import logging
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.autograd import grad

from pinn_odelora.derivatives import AutogradField, Engine, rehearse
from pinn_odelora.derivatives.plan import Recorder, plan
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System
from problems.burgers import Burgers

N = 20


def columns(coords, generator, n=N):
    return Points({c: 0.1 + 0.8 * torch.rand(n, 1, generator=generator, dtype=torch.float64) for c in coords})


def network(coords, fields, generator, **shape):
    net = MLP(len(coords), len(fields), **({"width": 7, "depth": 2} | shape), generator=generator)
    with torch.no_grad():
        for linear in net.linears:
            linear.bias.uniform_(-1, 1, generator=generator)
    return net


def solution_of(net, coords):
    return lambda p: net(torch.cat([p[c] for c in coords], dim=1))


def rehearsed(rows, coords="xt", fields="u", engine="auto", seed=0, coupled=False):
    """The engine of a residual, the network it is asked of, and points."""
    generator = torch.Generator().manual_seed(seed)
    net = network(coords, fields, generator)
    p = columns(coords, generator)
    made = rehearse("pde", rows, solution_of(net, coords), p, fields, coords, engine=engine, coupled=coupled)
    return made, net, p


def agrees(engine, net, p, more=(), tolerance=1e-12):
    """Residual and gradient of its square as by nested reverse mode."""
    reverse = Engine(engine.solution, engine.fields, engine.coords, engine.rows, None)
    found, exact = engine.residual(p), reverse.residual(p)
    assert_close(found, exact, tolerance)
    leaves = [*net.parameters(), *more]
    for a, b in zip(*(grad(r.square().sum(), leaves, materialize_grads=True) for r in (found, exact)), strict=True):
        assert_close(a, b, tolerance)
    return True


def assert_close(found, exact, tolerance=1e-12):
    assert found.shape == exact.shape
    assert float((found - exact).detach().norm()) <= tolerance * float(exact.detach().norm())


# Counting. Products with a hidden weight: the figures of the measurements behind the design.


def burgers(f):
    return f.u_t + f.u * f.u_x - 0.02 * f.u_xx


def burgers_collapsed(f):
    return f.op("u", {"t": 1, "xx": -0.02}) + f.u * f.u_x


def korteweg_de_vries(f):
    return f.u_t + 6 * f.u * f.u_x + f.u_xxx


def korteweg_de_vries_collapsed(f):
    return f.op("u", {"t": 1, "xxx": 1}) + 6 * f.u * f.u_x


def navier_stokes(f):
    return torch.cat(
        [
            f.u * f.u_x + f.v * f.u_y + f.p_x - 0.05 * f.lap("u"),
            f.u * f.v_x + f.v * f.v_y + f.p_y - 0.05 * f.lap("v"),
            f.u_x + f.v_y,
        ],
        dim=1,
    )


def laplacian(f):
    return f.lap("u") - 1


@pytest.mark.parametrize(
    ("rows", "coords", "fields", "jets", "reverse", "derivatives"),
    [
        (burgers, "xt", "u", 4, 4, ("t", "x", "xx")),
        (burgers_collapsed, "xt", "u", 3, 4, ("x",)),
        (korteweg_de_vries, "xt", "u", 5, 8, ("t", "x", "xx", "xxx")),
        (korteweg_de_vries_collapsed, "xt", "u", 4, 8, ("x", "xx")),
        (navier_stokes, "xy", "uvp", 4, 12, ("x", "y")),
        *((laplacian, "abcdefghij"[:d], "u", d + 2, 2 + 2 * d, tuple("abcdefghij"[:d])) for d in (2, 3, 5, 10)),
        (lambda f: f.op("u", {"t": 1, "x": 3.0}), "xt", "u", 2, 2, ()),
        (lambda f: f.op("u", {"tt": 1, "xt": 0.3, "xx": -2.0}), "xt", "u", 4, 6, ("t", "x")),
        (lambda f: f.u_xy, "xy", "u", 4, 4, ("x", "y", "xy")),
        (lambda f: f.u, "xy", "u", 1, 1, ()),
    ],
)
def test_counts(rows, coords, fields, jets, reverse, derivatives):
    engine, net, p = rehearsed(rows, coords, fields)
    assert engine.plan.derivatives == derivatives
    assert (engine.plan.carried, engine.plan.reverse) == (jets, reverse)
    assert agrees(engine, net, p)


def recorded(rows, coords="xt", fields="u", seed=0):
    generator = torch.Generator().manual_seed(seed)
    net = network(coords, fields, generator)
    recorder = Recorder(AutogradField(solution_of(net, coords), columns(coords, generator), fields, coords))
    rows(recorder)
    return recorder


def test_plans_are_closed_downwards():
    made = plan(recorded(lambda f: f.u_txx), [])
    assert made.derivatives == ("t", "x", "tx", "xx", "txx")
    assert made.words == {"txx"}
    made = plan(recorded(lambda f: f.op("u", {"txx": 1, "ttt": 2, "xxx": 1})), [True])
    assert made.derivatives == ("t", "x", "tt", "tx", "xx")
    assert made.channel == (0,)


def test_an_operator_is_collapsed_where_that_saves_a_channel():
    channel = lambda rows, allowed=True: plan(recorded(rows), [allowed]).channel
    op = lambda f: f.op("u", {"t": 1, "xx": -0.1})
    assert channel(op) == (0,)
    assert channel(op, allowed=False) == (None,)
    assert channel(lambda f: f.op("u", {"xx": 1})) == (None,), "u_xx alone costs the same"
    assert channel(lambda f: op(f) + f.u_t) == (None,), "u_t is carried anyway"
    assert channel(lambda f: f.op("u", {"": 2.0})) == (None,)


def test_nested_reverse_mode_is_chosen_where_it_is_cheaper(caplog):
    """The eikonal equation in five dimensions: one gradient against five forward channels."""
    rows = lambda f: f.u_a**2 + f.u_b**2 + f.u_c**2 + f.u_d**2 + f.u_e**2 - 1
    with caplog.at_level(logging.INFO):
        engine, net, p = rehearsed(rows, "abcde")
    assert engine.plan is None
    assert "reverse mode needs 2 products a layer, jets 6" in engine.reason
    assert engine.reason in caplog.text
    assert isinstance(engine.field(p), AutogradField)
    forced, net, p = rehearsed(rows, "abcde", engine="jets")
    assert forced.plan.carried == 6
    assert agrees(forced, net, p)


def test_equal_operators_of_two_fields_share_a_channel():
    engine, net, p = rehearsed(lambda f: f.lap("u") * f.lap("v") + f.lap("u"), "xy", "uv")
    assert engine.plan.channel == (0, 0, 0)
    assert engine.plan.carried == 4
    assert agrees(engine, net, p)


def test_operators_with_other_numbers_do_not_share_a_channel():
    engine, net, p = rehearsed(lambda f: f.lap("u") + f.op("v", {"xx": 1.0, "yy": 2.0}), "xy", "uv")
    assert engine.plan.channel == (0, 1)
    assert agrees(engine, net, p)


@pytest.mark.parametrize("n", [1, N])
def test_a_trained_coefficient_shares_no_channel_with_the_number_it_equals(n):
    """κ starts at 1, which is no reason to move the other equation's coefficient with it."""
    kappa = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def rows(f):
        c = kappa * torch.ones_like(f.x) if n == N else kappa
        return torch.cat([f.op("u", {"xx": c, "yy": c}), f.op("v", {"xx": 1.0, "yy": 1.0})], dim=1)

    engine, net, p = rehearsed(rows, "xy", "uv")
    assert engine.plan.channel == (0, 1)
    assert agrees(engine, net, p, [kappa])


# Coefficients.


def test_trained_coefficients_get_their_gradient(generator):
    """An inverse problem: a diffusivity as a scalar, and a velocity that a small network gives at every point."""
    log_nu = torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)
    velocity = network("xt", "c", generator, width=3, depth=1)

    def rows(f):
        c = velocity(torch.cat([f.x, f.t], dim=1))
        return f.op("u", {"t": 1, "xx": -log_nu.exp(), "x": c, "": 0.5}) + f.u * f.u_x

    engine, net, p = rehearsed(rows)
    assert (engine.plan.channel, engine.plan.carried) == ((0,), 3)
    trained = [log_nu, *velocity.parameters()]
    assert agrees(engine, net, p, trained)
    assert all(g.abs().max() > 1e-3 for g in grad(engine.residual(p).square().sum(), trained))

    before = engine.residual(p).detach()
    with torch.no_grad():
        log_nu += 1.0
    assert agrees(engine, net, p, trained), "the next evaluation sees the new value"
    assert (engine.residual(p).detach() - before).abs().max() > 0.01


@pytest.mark.parametrize(
    "coefficient",
    [
        lambda f: -f.u.square(),
        lambda f: torch.where(f.u > 1e3, 3.0, torch.sin(f.x)),
        lambda f: torch.where(f.u_x.abs() < 1e6, 0.3, 3.0),
        lambda f: 1.0 + 0.1 * (f.u.detach() > -1e4),
    ],
    ids=["of values", "by a threshold never met", "of a derivative", "cut from the graph"],
)
def test_coefficients_that_depend_on_the_solution_are_not_collapsed(coefficient):
    """Not even where the dry run meets one branch only: elsewhere the other may hold."""
    engine, net, p = rehearsed(lambda f: f.op("u", {"t": 1, "xx": coefficient(f)}))
    assert engine.plan.channel == (None,)
    assert engine.plan.derivatives == ("t", "x", "xx")
    assert agrees(engine, net, p)


def test_two_phases_of_the_solution(generator):
    """The conductivity jumps at u = c, which no point of the dry run reaches and many others do."""
    net = network("xt", "u", generator)
    p = columns("xt", generator, 200)
    u = net(p.rows("xt")).detach()
    p = p.from_rows("xt", p.rows("xt")[u[:, 0].argsort()])
    level = float(u.median())
    rows = lambda f: f.op("u", {"t": 1, "xx": -torch.where(f.u > level, 1.0, 0.1)})
    engine = rehearse("pde", rows, solution_of(net, "xt"), p, "u", "xt")
    assert agrees(engine, net, p)


def test_coefficients_by_place_are_collapsed():
    engine, net, p = rehearsed(lambda f: f.op("u", {"t": 1, "xx": -torch.where(f.x > 0.5, 1.0, 0.1)}))
    assert engine.plan.channel == (0,)
    assert agrees(engine, net, p)


# Requests outside the plan.


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda f: f.u_xx, r"requests u_xx, which it did not request in the dry run \(x\)"),
        (lambda f: f.u_x + f.op("u", {"t": 1, "xx": -0.5}), "'t': 1, 'xx': -0.5.*must not depend on values"),
        (lambda f: f.u_x + f.op("u", {"t": 1}), "must not depend on values"),
        (lambda f: 2 * (f.u_x + f.op("u", {"t": 1, "xx": -0.1})) + f.op("u", {"t": 1, "xx": -0.1}), "must not depend"),
        (lambda f: f.at(x=f.x + 1).u, "at moved points.*more often than in the dry run"),
    ],
    ids=["derivative", "number", "operator", "one more", "place"],
)
def test_a_request_outside_the_plan_is_refused(other, message):
    changed = []

    def rows(f):
        return other(f) if changed else f.u_x + f.op("u", {"t": 1, "xx": -0.1})

    engine, _, p = rehearsed(rows)
    assert engine.plan.derivatives == ("x",)
    engine.residual(p)
    changed.append(True)
    with pytest.raises(InputError, match=message):
        engine.residual(p)


def test_a_word_that_is_carried_may_be_asked_in_any_order():
    engine, net, p = rehearsed(lambda f: f.u_xt + f.u_tx + f.op("u", {"tx": 1.0, "xt": 2.0, "x": 1.0}))
    assert engine.plan.derivatives == ("t", "x", "tx")
    assert agrees(engine, net, p)


def test_a_derivative_that_does_not_exist_is_refused():
    engine, _, p = rehearsed(burgers)
    with pytest.raises(AttributeError, match="the solution has no 'u_z'"):
        _ = engine.field(p).u_z
    with pytest.raises(InputError, match="derivatives engine"):
        rehearsed(burgers, engine="finite-differences")


# Networks that jets cannot follow.


class Flipped(nn.Module):
    """Uses a function that has no rule."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(torch.flip(x, [1]))


class Written(Flipped):
    """Writes into a tensor."""

    def forward(self, x):
        y = torch.zeros_like(x)
        y[:, :1] = x[:, :1] * x[:, 1:]
        y[:, 1:] = x[:, 1:]
        return self.net(y)


class Transposed(Flipped):
    """A jet is no tensor: here it fails otherwise than by a missing rule."""

    def forward(self, x):
        return self.net(torch.sin(x.T).T)


class Sine(torch.autograd.Function):
    """With a backward pass of its own, which the rules inside forward never meet."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * torch.cos(x)


class OwnBackward(Flipped):
    def forward(self, x):
        *hidden, last = self.net.linears
        for linear in hidden:
            x = Sine.apply(linear(x))
        return last(x)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Transposed, "a jet has no attribute 'T'"),
        (Flipped, "flip has no jet rule"),
        (Written, "__setitem__ has no jet rule"),
        (OwnBackward, "gradient of its residual"),
    ],
)
@pytest.mark.parametrize("grad_mode", [True, False])
def test_a_network_without_rules_falls_back_and_says_why(module, why, grad_mode, generator, caplog):
    net = module(network("xt", "u", generator))
    p = columns("xt", generator)
    with caplog.at_level(logging.INFO), torch.set_grad_enabled(grad_mode):
        engine = rehearse("pde", burgers_collapsed, solution_of(net, "xt"), p, "u", "xt")
    assert engine.plan is None
    assert why in engine.reason
    assert f"pde: derivatives by nested reverse mode, since {engine.reason}" in caplog.text
    assert agrees(engine, net, p)
    with pytest.raises(InputError, match=f"derivatives=jets cannot differentiate the solution in 'pde': .*{why}"):
        rehearse("pde", burgers_collapsed, solution_of(net, "xt"), p, "u", "xt", engine="jets")


def test_orders_without_a_rule_fall_back(generator):
    """GELU ends at the third order; the fourth is by nested reverse mode."""
    net = network("xt", "u", generator, activation="gelu")
    engine = rehearse("pde", lambda f: f.u_xxxx, solution_of(net, "xt"), columns("xt", generator), "u", "xt")
    assert engine.plan is None
    assert "gelu has jet rules up to order 3" in engine.reason


def test_a_rule_that_is_wrong_is_found_out(monkeypatch):
    from pinn_odelora.derivatives import RULES, pointwise

    monkeypatch.setitem(RULES, "tanh", pointwise(lambda z, k: [torch.tanh(z), *[torch.ones_like(z)] * k]))
    engine, net, p = rehearsed(burgers)
    assert "by jets differs by" in engine.reason
    assert agrees(engine, net, p)


# Rows belong to one point each.


class Centred(Flipped):
    """Subtracts the mean of the batch, as batch normalisation does."""

    def forward(self, x):
        z = self.net.linears[0](x)
        return self.net.linears[-1](torch.tanh(z - z.mean(dim=0)))


@pytest.mark.parametrize("engine", ["auto", "jets", "autograd"])
def test_networks_that_mix_rows_are_refused(engine, generator):
    batch_norm = nn.Sequential(nn.Linear(2, 4).double(), nn.BatchNorm1d(4).double(), nn.Linear(4, 1).double())
    for net in (Centred(network("xt", "u", generator)), batch_norm):
        with pytest.raises(InputError, match="a layer mixes rows"):
            rehearse("pde", burgers, solution_of(net, "xt"), columns("xt", generator), "u", "xt", engine=engine)
    dropout = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 1)).double()
    with pytest.raises(InputError, match=r"other values .*'pde'\): a layer draws at random; call net\.eval\(\)"):
        rehearse("pde", burgers, solution_of(dropout, "xt"), columns("xt", generator), "u", "xt", engine=engine)
    rehearse("pde", burgers, solution_of(dropout.eval(), "xt"), columns("xt", generator), "u", "xt")
    fixed = batch_norm.eval()
    made = rehearse("pde", burgers, solution_of(fixed, "xt"), columns("xt", generator), "u", "xt")
    assert agrees(made, fixed, columns("xt", generator))


@pytest.mark.parametrize(
    "rows",
    [lambda f: f.u_t - f.u.mean(), lambda f: f.u - f.u.roll(1, 0), lambda f: f.u + f.x.mean(), lambda f: f.u.flip(0)],
    ids=["mean", "roll", "mean of points", "flip"],
)
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_rows_that_read_other_points_must_be_declared(rows, engine):
    with pytest.raises(InputError, match=r"'pde' depends on points other than its own.*coupled=True"):
        rehearsed(rows, engine=engine)
    made, net, p = rehearsed(rows, engine=engine, coupled=True)
    assert agrees(made, net, p)


def soft_pair(f):
    there = f.at(x=f.x + 2.0)
    return torch.cat([f.u - there.u, f.u_x - there.u_x, f.lap("u") - there.lap("u") + f.x * there.x], dim=1)


@pytest.mark.parametrize("engine", ["auto", "jets", "autograd"])
def test_soft_periodic_pairs_by_hand(engine):
    made, net, p = rehearsed(soft_pair, engine=engine)
    if engine != "autograd":
        assert made.plan.carried == 8
        assert made.plan.moved[0].derivatives == ("t", "x")

    x, t = p.x.clone().requires_grad_(), p.t.clone().requires_grad_()
    sides = []
    for shift in (0.0, 2.0):
        u = net(torch.cat([x + shift, t], dim=1))
        u_x, u_t = grad(u.sum(), (x, t), create_graph=True)
        laplacian = grad(u_x.sum(), x, create_graph=True)[0] + grad(u_t.sum(), t, create_graph=True)[0]
        sides.append((u, u_x, laplacian))
    (u, u_x, lap), (w, w_x, lap_w) = sides
    exact = torch.cat([u - w, u_x - w_x, lap - lap_w + x * (x + 2.0)], dim=1)
    assert_close(made.residual(p), exact)
    weights = list(net.parameters())
    for a, b in zip(*(grad(r.square().sum(), weights) for r in (made.residual(p), exact)), strict=True):
        assert_close(a, b)


def test_fields_at_moved_points_may_themselves_be_moved():
    rows = lambda f: f.u_x - f.at(x=-f.x).u_x * f.at(x=-f.x).at(t=2 * f.t).op("u", {"t": 1.0, "xx": f.x})
    made, net, p = rehearsed(rows)
    assert len(made.plan.moved) == 2
    assert agrees(made, net, p)


def test_extra_columns_ride_along():
    """Measured values are no coordinates: neither differentiated nor moved."""
    generator = torch.Generator().manual_seed(1)
    net = network("xt", "u", generator)
    p = Points({**columns("xt", generator), "d": torch.rand(N, 1, generator=generator, dtype=torch.float64)})
    rows = lambda f: f.op("u", {"t": 1, "xx": f.d}) - f.d
    assert agrees(rehearse("data", rows, solution_of(net, "xt"), p, "u", "xt"), net, p)


# Through a problem.


@dataclass(frozen=True, kw_only=True)
class Sector(Problem):
    """Δu = 0 on a sector, the network seeing polar coordinates, which have no jet rules, and so does its ansatz."""

    coords = ("x", "y")
    region = Box(x=(0.2, 1), y=(0.2, 1))

    a: float = parameter(1.0, 1.5)

    def terms(self):
        return {
            "pde": Term(self.region, lambda f: f.lap("u") + self.a * f.u),
            "mean": Term(self.region, lambda f: f.u_x - f.u.mean(), coupled=True),
        }

    def embed(self, p):
        return torch.cat([torch.hypot(p.x, p.y), torch.atan2(p.y, p.x)], dim=1)

    def ansatz(self, p):
        return torch.hypot(p.x, p.y), torch.atan2(p.y, p.x - 0.1) - 1


def test_ansatz_and_embedding_without_rules_work_through_jets(generator):
    problem = Sector()
    net = network("xy", "u", generator)
    solution = Solution(problem, net)
    p = columns("xy", generator)
    points = {"pde": p, "mean": p}
    jets, reverse = (System(problem, solution, derivatives=engine) for engine in ("jets", "autograd"))
    a, b = jets.loss(points), reverse.loss(points)
    assert jets.engine("pde").plan.carried == 4
    assert reverse.engine("pde").plan is None
    for name in ("pde", "mean"):
        assert_close(a.terms[name], b.terms[name])
    weights = list(net.parameters())
    for x, y in zip(grad(a.total, weights), grad(b.total, weights), strict=True):
        assert_close(x, y)
    assert math.isclose(float(a.total.detach()), float(sum(a.terms.values()).detach()), rel_tol=1e-15)
    # What was found of the points at first serves again, with other weights.
    with torch.no_grad():
        for x in weights:
            x *= 1.1
    for x, y in zip(*(grad(system.loss(points).total, weights) for system in (jets, reverse)), strict=True):
        assert_close(x, y)


@dataclass(frozen=True, kw_only=True)
class Undeclared(Sector):
    """The same, without the word that one of its terms is coupled."""

    def terms(self):
        return {name: term._replace(coupled=False) for name, term in super().terms().items()}


def test_a_term_must_declare_that_it_is_coupled(generator):
    solution = Solution(Undeclared(), network("xy", "u", generator))
    p = columns("xy", generator)
    with pytest.raises(InputError, match="'mean' depends on points other than its own"):
        System(Undeclared(), solution).loss({"pde": p, "mean": p})


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("module", [nn.Sequential, OwnBackward])
def test_the_engine_does_not_depend_on_what_is_trained_at_that_moment(module, trained, generator):
    """By jets the network with a backward pass of its own has the right values and no gradient."""
    net = module(network("xt", "u", generator)).requires_grad_(trained)
    problem = Burgers()
    system = System(problem, Solution(problem, net))
    with torch.no_grad():
        system.loss({"pde": columns("xt", generator)})
    assert (system.engine("pde").plan is None) == (module is OwnBackward)
    assert all(x.requires_grad == trained for x in net.parameters())
    net.requires_grad_(True)
    loss, exact = (
        s.loss({"pde": columns("xt", torch.Generator().manual_seed(1))}).total
        for s in (system, System(problem, Solution(problem, net), derivatives="autograd"))
    )
    for a, b in zip(grad(loss, [*net.parameters()]), grad(exact, [*net.parameters()]), strict=True):
        assert_close(a, b)


def test_the_engine_does_not_depend_on_the_points_of_a_step(generator):
    """One point cannot show that residuals depend on each other, and points where nothing is finite show nothing."""
    p = columns("xy", generator)
    alone = Points({name: x[:1] for name, x in p.items()})
    singular = Points({name: torch.full_like(x, math.nan) for name, x in p.items()})
    plans = []
    for first in (p, alone, singular):
        problem = Sector()
        system = System(problem, Solution(problem, network("xy", "u", torch.Generator().manual_seed(2))))
        system.loss({"pde": first, "mean": first})
        plans.append([system.engine(name).plan for name in ("pde", "mean")])
        undeclared = Undeclared()
        with pytest.raises(InputError, match="'mean' depends on points other than its own"):
            System(undeclared, Solution(undeclared, network("xy", "u", generator))).loss({"mean": first})
    assert plans[0] == plans[1] == plans[2]


def test_nested_reverse_mode_differentiates_where_gradients_are_switched_off(generator):
    net = network("xt", "u", generator)
    p = columns("xt", generator)
    exact = burgers(AutogradField(solution_of(net, "xt"), p, "u", "xt")).detach()
    with torch.no_grad():
        assert torch.equal(burgers(AutogradField(solution_of(net, "xt"), p, "u", "xt")), exact)

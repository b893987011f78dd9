"""DeepXDE models as they are: our rows are DeepXDE's errors, condition by condition and with their derivatives."""

import copy
import logging
import math

import numpy as np
import pytest
import torch
from test_linearisation import assert_linearises, make

import pinn_odelora as po
from pinn_odelora.deepxde.conditions import PARTNER
from pinn_odelora.deepxde.derivatives import answered
from pinn_odelora.deepxde.problem import posed
from pinn_odelora.deepxde.regions import Filtered, coordinates, domain, with_columns
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.errors import InputError
from pinn_odelora.geometry import Box, Cloud, sobol
from pinn_odelora.geometry.deepxde import Shape, default_device, library
from pinn_odelora.lowrank.adapter_files import merged_state_dict
from pinn_odelora.points import Points
from pinn_odelora.pretraining import stages
from pinn_odelora.system import Solution, System, draw_points


@pytest.fixture(scope="module")
def dde():
    return library()


@pytest.fixture
def double(dde):
    """DeepXDE in double precision, and torch's default as it was afterwards."""
    dde.config.set_default_float("float64")
    yield dde
    dde.config.set_default_float("float32")


def network(dde, inputs=2, outputs=1, width=8, seed=0, activation="tanh"):
    torch.manual_seed(seed)
    return dde.nn.FNN([inputs, width, width, outputs], activation, "Glorot normal")


def compiled(dde, data, net, **settings):
    model = dde.Model(data, net)
    model.compile("adam", lr=1e-3, verbose=0, **settings)
    return model


def nothing(x, y):
    return y[:, 0:1]


def left(x, on):
    return on and np.isclose(x[0], 0.0)


def edges(dde):
    return dde.geometry.Rectangle([0, 0], [1, 2])


def in_time(dde):
    return dde.geometry.GeometryXTime(dde.geometry.Disk([0.3, -0.2], 0.7), dde.geometry.TimeDomain(0.5, 1.5))


SET = np.random.default_rng(3).uniform(0.1, 0.9, (7, 2))
CONDITIONS = {
    "DirichletBC": (edges, lambda d, g: d.DirichletBC(g, lambda x: np.sin(x[:, 0:1]), lambda _, on: on, component=1)),
    "DirichletBC in time": (in_time, lambda d, g: d.DirichletBC(g, lambda x: x[:, 2:3] ** 2, lambda _, on: on)),
    "DirichletBC of a number": (edges, lambda d, g: d.DirichletBC(g, lambda x: 3, left)),
    "NeumannBC": (edges, lambda d, g: d.NeumannBC(g, lambda x: np.cos(x[:, 1:2]), lambda _, on: on, component=1)),
    "NeumannBC in time": (in_time, lambda d, g: d.NeumannBC(g, lambda x: x[:, 0:1], lambda _, on: on)),
    "RobinBC": (edges, lambda d, g: d.RobinBC(g, lambda x, y: y[:, 0:1] ** 2 + torch.tensor(x[:, 0:1]), left)),
    "PeriodicBC": (edges, lambda d, g: d.PeriodicBC(g, 0, left, component=1)),
    "PeriodicBC of a derivative": (edges, lambda d, g: d.PeriodicBC(g, 1, lambda x, on: on and np.isclose(x[1], 0),
                                                                    derivative_order=1)),
    "OperatorBC": (edges, lambda d, g: d.OperatorBC(g, operator, lambda _, on: on)),
    "PointSetBC": (edges, lambda d, g: d.PointSetBC(SET, np.exp(SET[:, :1]), component=1)),
    "PointSetBC of a number": (edges, lambda d, g: d.PointSetBC(SET, 2.0)),
    "PointSetBC of both": (edges, lambda d, g: d.PointSetBC(SET, SET**2, component=[0, 1])),
    "PointSetOperatorBC": (edges, lambda d, g: d.PointSetOperatorBC(SET, SET[:, 1:2], operator)),
    "IC": (in_time, lambda d, g: d.IC(g, lambda x: x[:, 0:1] * x[:, 1:2], lambda _, on: on, component=1)),
    "Interface2DBC normal": (edges, lambda d, g: d.Interface2DBC(g, lambda x: x[:, 1:2], left, right)),
    "Interface2DBC tangent": (edges, lambda d, g: d.Interface2DBC(g, lambda x: x[:, 1:2], left, right, "tangent")),
}  # fmt: skip


def right(x, on):
    return on and np.isclose(x[0], 1.0)


def operator(x, y, X):
    """∂u1/∂x ∂u2/∂y + x u1, by slices of outputs and of derivatives."""
    d = library()
    u = y[:, 0:1]
    row = d.grad.jacobian(u, x, i=0)
    return row[:, 0:1] * d.grad.jacobian(y, x, i=1, j=1) + torch.as_tensor(X[:, 0:1]) * u


def modelled(dde, name):
    geometry, make = CONDITIONS[name]
    g = geometry(dde)
    bc = make(dde.icbc, g)
    more = {"num_initial": 30} if isinstance(g, dde.geometry.GeometryXTime) else {}
    kind = dde.data.TimePDE if more else dde.data.PDE
    if "Interface" in name:
        more["train_distribution"] = "uniform"
    return compiled(dde, kind(g, nothing, [bc], num_domain=9, num_boundary=40, **more), network(dde, g.dim, 2)), bc


def at(term, X, coords):
    """Points of a term at given rows, with its columns."""
    if isinstance(term.where, Cloud):
        return term.where.points
    return with_columns(coords, X, term.where.columns)


@pytest.mark.parametrize("name", CONDITIONS)
def test_rows_are_the_errors_of_the_condition_and_so_are_their_gradients(double, name):
    dde = double
    model, bc = modelled(dde, name)
    system = System(model := posed(model).problem, Solution(model, net := modelled(dde, name)[0].net))
    term, coords = system.terms["bc1"], model.coords
    data = dde.data.PDE(bc.geom, None, [], num_boundary=40) if hasattr(bc, "geom") else None
    X = bc.collocation_points(data.train_x_all if data else SET)
    X = X if len(X) else bc.collocation_points(bc.geom.random_initial_points(25))
    if "Interface" in name:
        X = np.vstack([at(term, X, coords).rows(coords), partners(term, coords)])
    paired = "Periodic" in name or "Interface" in name
    p = at(term, X[: len(X) // 2] if paired else X, coords)
    x = torch.tensor(X, requires_grad=True)
    wanted = bc.error(X, x, net(x), 0, len(X))
    dde.grad.clear()
    found = system.engine("bc1").residual(p)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    weights = [*net.parameters()]
    ours, theirs = (torch.autograd.grad(r.square().sum(), weights, materialize_grads=True) for r in (found, wanted))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


def partners(term, coords):
    return term.where.points.rows([PARTNER + c for c in coords])


@pytest.mark.parametrize("name", CONDITIONS)
def test_points_are_where_the_condition_holds_and_drawn_again_the_same(dde, name):
    model, bc = modelled(dde, name)
    term = posed(model).problem.terms()["bc1"]
    draw = lambda seed: term.where.sample(50, lambda n, d: sobol(n, d, seed=seed))
    state = np.random.get_state()[1].copy()
    p, q, other = draw(1), draw(1), draw(2)
    assert (np.random.get_state()[1] == state).all()
    assert all(torch.equal(p[c], q[c]) for c in p)
    X = p.rows(coordinates(model.data.geom)).numpy()
    if hasattr(bc, "filter"):
        assert len(bc.filter(X.astype(np.float32))) == len(X)
    if isinstance(term.where, Filtered):
        assert p.number == 50
        assert not torch.equal(p.rows(model_coords(model)), other.rows(model_coords(model)))


def model_coords(model):
    return coordinates(model.data.geom)


# The equation.


def system_of_two(x, y):
    """Two losses: third derivatives, and products of the outputs."""
    d = library()
    u_xx = d.grad.hessian(y, x, component=0, i=0, j=0)
    first = d.grad.jacobian(u_xx, x, j=1) - 2 * y[:, 1:2] * d.grad.jacobian(y, x, i=1, j=0)
    second = d.grad.jacobian(y, x, i=0, j=1) + d.grad.hessian(y, x, component=1, i=0, j=1) - torch.sin(x[:, 0:1])
    return [first, second]


def two(dde, weights=None, pde=system_of_two):
    g = edges(dde)
    bcs = [
        dde.icbc.DirichletBC(g, lambda x: x[:, 0:1], lambda _, on: on),
        dde.icbc.PointSetBC(SET, SET**2, component=[0, 1]),
    ]
    data = dde.data.PDE(g, pde, bcs, num_domain=33, num_boundary=20)
    return compiled(dde, data, network(dde, 2, 2), loss_weights=weights)


@pytest.mark.parametrize("weights", [None, [3.0, 0.5, 7.0, 2.0], [0.0, 2.0, 1.0, 0.0]])
def test_losses_and_their_gradient_are_those_of_deepxde(double, weights):
    model = two(double, weights)
    own = posed(model).problem
    system = System(own, Solution(own, model.net))
    X = {"pde": model.data.train_x_all, "bc1": model.data.bcs[0].collocation_points(model.data.train_x_all)}
    points = {name: at(t, X.get(name), own.coords) for name, t in system.terms.items() if name != "pde"}
    points = {"pde": Points.from_rows(own.coords, torch.tensor(X["pde"]))} | points
    ours = system.loss(points)
    theirs = model.outputs_losses_train(model.data.train_x, None, None)[1]
    assert torch.allclose(ours.total, theirs.sum(), rtol=1e-12)
    assert torch.allclose(ours.terms["pde"], theirs[:2].sum(), rtol=1e-12)
    assert set(ours.terms) == {"pde", "bc1"} | ({"bc2"} if weights is None or weights[3] else set())
    gradients = [torch.autograd.grad(x, [*model.net.parameters()]) for x in (ours.total, theirs.sum())]
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(*gradients, strict=True))
    assert system.engine("pde").plan is not None


def test_the_jacobian_of_a_step_is_that_of_the_rows(double, generator):
    case = make(posed(two(double, [3.0, 0.5, 7.0, 2.0])).problem, generator, data=False)
    assert_linearises(case.linearised(), *case.dense(), generator)


def test_an_expression_is_differentiated_by_reverse_mode(double):
    d = double

    def flux(x, y):
        return d.grad.jacobian((1 + y[:, 0:1] ** 2) * d.grad.jacobian(y, x, i=0, j=0), x, i=0, j=0)

    model = two(d, pde=flux)
    own = posed(model).problem
    system = System(own, Solution(own, model.net))
    assert system.engine("pde").plan is None
    assert "expression" in system.engine("pde").reason
    X = model.data.train_x_all
    x = torch.tensor(X, requires_grad=True)
    wanted = flux(x, model.net(x))
    d.grad.clear()
    assert torch.allclose(
        system.engine("pde").residual(Points.from_rows(own.coords, torch.tensor(X))), wanted, atol=1e-12
    )


def by_torch(x, y):
    """As ``system_of_two``, by ``torch.autograd.grad`` alone."""
    grad = lambda u, **more: torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True, **more)[0]
    row, other = grad(y[:, 0:1]), grad(y[:, 1:2], retain_graph=True)
    u_xx = grad(row[:, 0:1])[:, 0:1]
    first = grad(u_xx)[:, 1:2] - 2 * y[:, 1:2] * other[:, 0:1]
    return [first, row[:, 1:2] + grad(other[:, 0:1])[:, 1:2] - torch.sin(x[:, 0:1])]


def test_gradients_by_torch_are_those_of_the_field(double):
    models = [two(double, pde=pde) for pde in (system_of_two, by_torch)]
    problems = [posed(model).problem for model in models]
    net = models[0].net
    p = problems[0].region.sample(9, lambda n, d: sobol(n, d, seed=2))
    engines = [System(own, Solution(own, net)).engine("pde") for own in problems]
    rows = [engine.residual(p) for engine in engines]
    assert torch.allclose(*rows, atol=1e-12)
    assert engines[1].plan is not None
    assert engines[1].plan.derivatives == engines[0].plan.derivatives


def test_the_gradient_of_a_sum_is_found_by_reverse_mode(double):
    half = lambda x, y: torch.autograd.grad((y[:, 0:1] ** 2).sum() / 2, x, create_graph=True)[0][:, 0:1]
    product = lambda x, y: y[:, 0:1] * double.grad.jacobian(y, x, i=0, j=0)
    models = [two(double, pde=pde) for pde in (half, product)]
    problems = [posed(model).problem for model in models]
    p = problems[0].region.sample(9, lambda n, d: sobol(n, d, seed=2))
    engines = [System(own, Solution(own, models[0].net)).engine("pde") for own in problems]
    assert torch.allclose(*(engine.residual(p) for engine in engines), atol=1e-13)
    assert engines[0].plan is None


def test_deepxde_is_as_it_was_after_an_evaluation_that_fails(dde):
    before = dde.gradients.gradients_reverse.jacobian
    p = Points(x=torch.ones(2, 1), y=torch.ones(2, 1))
    field = AutogradField(lambda p: p.rows("xy"), p, ["u1", "u2"], ["x", "y"])
    with pytest.raises(InputError, match="j is 2, but it must be from 0 to 1"), answered(field) as seen:
        dde.grad.jacobian(seen.y, seen.x, i=0, j=2)
    assert dde.gradients.gradients_reverse.jacobian is before


def test_regions_are_boxes_where_they_can_be(dde):
    g = dde.geometry
    assert domain(g.Interval(-1, 2)) == Box(x=(-1.0, 2.0))
    assert domain(g.TimeDomain(0, 3)) == Box(t=(0.0, 3.0))
    assert domain(g.GeometryXTime(g.Rectangle([0, 1], [2, 5]), g.TimeDomain(0, 3))) == Box(x=(0, 2), y=(1, 5), t=(0, 3))
    disk = domain(g.GeometryXTime(g.Disk([0, 0], 1), g.TimeDomain(0, 3)))
    assert isinstance(disk, Shape)
    p = disk.sample(64, lambda n, d: sobol(n, d, seed=1))
    assert float((p.x**2 + p.y**2).max()) <= 1
    assert 0 <= float(p.t.min()) < 0.2
    assert coordinates(g.Hypercube([0] * 5, [1] * 5)) == ("a", "b", "c", "d", "e")


def test_auxiliary_variables_are_those_of_the_points(double):
    d = double
    g = d.geometry.Interval(0, 1)
    data = d.data.PDE(g, lambda x, y, aux: y * aux, [], num_domain=11, auxiliary_var_function=lambda X: 1 + X**2)
    model = compiled(d, data, network(d, 1))
    own = posed(model).problem
    p = own.region.sample(5, lambda n, k: sobol(n, k, seed=1))
    found = System(own, Solution(own, model.net)).engine("pde").residual(p)
    assert torch.allclose(found, model.net(p.x) * (1 + p.x**2), atol=1e-14)


def test_points_and_rows_are_where_the_network_is_whatever_the_default_device(double, monkeypatch):
    """DeepXDE makes a GPU torch's default; "meta" stands for one, on which no numbers can be read."""
    g = edges(double)
    bcs = [CONDITIONS[name][1](double.icbc, g) for name in ("NeumannBC", "PeriodicBC", "PointSetBC of both")]
    k = double.Variable(2.0)
    pde = lambda x, y: double.grad.hessian(y, x, component=0, i=0, j=1) + k * y[:, 1:2] - torch.ones(1)
    data = double.data.PDE(g, pde, bcs, 9, 40)
    model = compiled(double, data, network(double, 2, 2), external_trainable_variables=k)
    monkeypatch.setitem(posed.__globals__, "_number", lambda model: 1)  # DeepXDE's own, on its device
    torch.set_default_device("meta")
    try:
        own = posed(model).problem
        with default_device("cpu"):  # as for training
            system = System(own, Solution(own, model.net))
        p = draw_points(system.terms, 8, 8, 0, purpose="training")
        rows = {name: system.engine(name).residual(p[name]) for name in system.terms}
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert {x.device.type for x in rows.values()} == {"cpu"}
    assert {name: tuple(x.shape) for name, x in rows.items()} == {
        "pde": (8, 1),
        "bc1": (8, 1),
        "bc2": (8, 1),
        "bc3": (7, 2),
    }


# Training and adapting.


def decay(dde, rate, width=10, variable=None):
    """u' = -rate u, u(0) = 1."""
    g = dde.geometry.TimeDomain(0, 1)
    k = rate if variable is None else variable
    ode = lambda t, y: dde.grad.jacobian(y, t) + k * y
    bcs = [dde.icbc.IC(g, lambda x: 1, lambda _, on: on)]
    solution = lambda t: np.exp(-rate * t)
    if variable is not None:
        t = np.linspace(0.05, 1, 15)[:, None]
        bcs.append(dde.icbc.PointSetBC(t, solution(t)))
    data = dde.data.PDE(g, ode, bcs, 20, 2, solution=solution, num_test=50)
    more = {} if variable is None else {"external_trainable_variables": [variable]}
    return compiled(dde, data, network(dde, 1, width=width), metrics=["l2 relative error"], **more)


QUICK = po.Log(test=128, heldout=64, every=1000)


@pytest.mark.parametrize("trained", [po.deepxde.train, po.deepxde.adapt])
def test_training_computes_on_the_cpu_whatever_the_default_device(trained, dde, monkeypatch):
    """The default device is still that of before afterwards."""
    model, devices = decay(dde, 1.3), set()
    monkeypatch.setitem(posed.__globals__, "_number", lambda model: 1)  # DeepXDE's own, on its device

    def adapted(*args, **settings):
        devices.add(torch.get_default_device().type)
        return adapt_network(*args, **settings)

    adapt_network = trained.__globals__["adapt_network"]
    monkeypatch.setitem(trained.__globals__, "adapt_network", adapted)
    monkeypatch.setitem(trained.__globals__, "_put", lambda *_: None)  # predicts, on DeepXDE's device
    torch.set_default_device("meta")
    try:
        result = trained(model, 1.0, budget=po.Budget(steps=2), log=QUICK)
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)
    assert devices == {"cpu"}
    assert result.rel_l2 < 1


def test_a_model_that_natural_gradient_does_not_suit_is_trained_by_lbfgs(dde, monkeypatch, caplog):
    monkeypatch.setattr(stages, "unsuitable", lambda stage: "of a reason")
    with caplog.at_level(logging.INFO, "pinn_odelora"):
        result = po.deepxde.train(decay(dde, 1.3), 2.0, budget=po.Budget(gradient_evals=40), log=QUICK)
    assert "L-BFGS follows, since of a reason." in caplog.text
    assert result.rel_l2 < 1e-2


def test_a_model_is_trained_and_then_adapted_and_goes_on_with_the_weights(dde):
    model = decay(dde, 1.0)
    result = po.deepxde.train(model, 30, adam_steps=30, budget=po.Budget(gradient_evals=120), log=QUICK)
    assert result.rel_l2 < 1e-4
    assert model.train_state.metrics_test[0] < 2e-4
    assert model.losshistory.steps == [result.steps]
    other = decay(dde, 1.6)
    other.net.load_state_dict(model.net.state_dict())
    before = copy.deepcopy(other.net.state_dict())
    adapted = po.deepxde.adapt(other, rank=2, budget=po.Budget(gradient_evals=150), log=QUICK)
    assert adapted.rel_l2 < 1e-3 < adapted.rel_l2_before
    assert adapted.ranks == {"linears.1": 2}
    wanted = merged_state_dict(adapted.net)
    for name, x in other.net.state_dict().items():
        assert x.dtype is torch.float32
        assert torch.allclose(x.double(), wanted[name], atol=1e-6)
    assert not torch.equal(other.net.state_dict()["linears.1.weight"], before["linears.1.weight"])
    t = np.linspace(0, 1, 7)[:, None]
    assert np.allclose(other.predict(t), np.exp(-1.6 * t), atol=1e-2)


def test_a_variable_is_found_and_written_back(dde):
    rate = dde.Variable(1.0)
    model = decay(dde, 1.7, variable=rate)
    own = posed(model)
    assert own.unknown == ("k",)
    result = po.deepxde.train(model, 30, adam_steps=30, budget=po.Budget(gradient_evals=200), log=QUICK)
    assert abs(result.coefficients["k"]["estimate"] - 1.7) < 1e-2
    assert abs(rate.item() - result.coefficients["k"]["estimate"]) < 1e-6


def test_a_variable_reaches_the_residual_wherever_it_is_read(double):
    d = double
    rate, other = d.Variable(2.0), d.Variable(5.0)
    model = decay(d, 1.0, variable=rate)
    model.external_trainable_variables = [rate, other]
    own = posed(model)
    assert own.unknown == ("k", "variable2")
    solution = Solution(own.problem, model.net, ["k"])
    system = System(solution.problem, solution)
    p = Points(t=torch.rand(5, 1, dtype=torch.float64))
    r = system.engine("pde").residual(p)
    u = model.net(p.t)
    (slope,) = torch.autograd.grad(r.sum(), [solution.coefficients["k"]])
    assert torch.allclose(slope, u.sum())
    assert rate.grad is None


# What cannot be.


def test_what_is_wrong_is_a_sentence(dde, monkeypatch):
    g = dde.geometry.Interval(0, 1)
    data = dde.data.PDE(g, nothing, [], num_domain=5)
    with pytest.raises(InputError, match="never compiled"):
        posed(dde.Model(data, network(dde, 1)))
    with pytest.raises(InputError, match="mean_absolute_error, but only the mean square"):
        posed(compiled(dde, data, network(dde, 1), loss="MAE"))
    with pytest.raises(InputError, match=r"must be a deepxde\.Model"):
        posed(network(dde, 1))
    with pytest.raises(InputError, match=r"fields names 2 outputs, but the network has 1"):
        po.deepxde.problem(compiled(dde, data, network(dde, 1)), fields=["u", "v"])
    widened = network(dde, 1)
    widened.apply_feature_transform(lambda x: torch.cat([x, x.sin()], dim=1))
    with pytest.raises(InputError, match=r"network cannot be called at points of shape \(2, 1\): RuntimeError: mat1"):
        posed(compiled(dde, data, widened))
    nowhere = dde.icbc.DirichletBC(g, lambda x: 0, lambda x, on: False)
    with pytest.raises(InputError, match=r"condition 1 \(DirichletBC\) holds on no point"):
        posed(compiled(dde, dde.data.PDE(g, nothing, [nowhere], 5, 2), network(dde, 1)))
    third = dde.icbc.IC(dde.geometry.TimeDomain(0, 1), lambda x: 0, lambda _, on: on, component=2)
    with pytest.raises(InputError, match="for component 2, but the network has 1 output"):
        posed(compiled(dde, dde.data.PDE(dde.geometry.TimeDomain(0, 1), nothing, [third], 5, 2), network(dde, 1)))
    wide = dde.icbc.DirichletBC(g, lambda x: np.ones((len(x), 2)), lambda _, on: on)
    with pytest.raises(InputError, match=r"shape \(2, 2\), but \(2, 1\) is needed"):
        posed(compiled(dde, dde.data.PDE(g, None, [wide], 5, 2), network(dde, 1)))
    ends = dde.icbc.DirichletBC(g, lambda x: 0, lambda _, on: on)
    with pytest.raises(InputError, match=r"compile has 1 loss weights, but the equation has 1 losses, and .* 1 cond"):
        posed(compiled(dde, dde.data.PDE(g, nothing, [ends], 5, 2), network(dde, 1), loss_weights=[1.0]))
    with pytest.raises(InputError, match=r"cannot evaluate the model's losses: i=1 is not valid\."):
        posed(compiled(dde, dde.data.PDE(g, lambda x, y: dde.grad.jacobian(y, x, i=1), [], 5), network(dde, 1)))
    monkeypatch.setattr(dde.backend, "backend_name", "jax")
    with pytest.raises(InputError, match="backend jax"):
        posed(compiled)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_regularization_of_the_network_is_left_out_and_said_to_be(dde, caplog, kind):
    """With l1 DeepXDE has one loss more, which is not one of the equation."""
    g = dde.geometry.Interval(0, 1)
    net = dde.nn.FNN([1, 4, 4, 1], "tanh", "Glorot normal", regularization=[kind, 1e-3])
    model = compiled(dde, dde.data.PDE(g, nothing, [], num_domain=5), net)
    assert set(posed(model).problem.terms()) == {"pde"}
    po.deepxde.adapt(model, rank=1, budget=po.Budget(gradient_evals=2), log=QUICK)
    assert f"The {kind} regularization of the network is left out" in caplog.text


def test_integrals_are_refused(dde):
    g = dde.geometry.TimeDomain(0, 1)
    data = dde.data.IDE(g, lambda x, y, i: y, [], 5, kernel=lambda x, s: s, num_domain=5, num_boundary=2)
    model = dde.Model(data, network(dde, 1))
    with pytest.raises(InputError, match=r"dde\.data\.IDE: integrals and fractional"):
        posed(model)


def test_a_coefficient_that_is_divided_by_stays_positive(dde):
    g = dde.geometry.TimeDomain(0, 1)
    k, c, negative = dde.Variable(0.5), dde.Variable(2.0), dde.Variable(-1.0)
    ode = lambda t, u: dde.grad.jacobian(u, t) + c * u / k + u / negative
    data = dde.data.PDE(g, ode, [dde.icbc.PointSetBC(np.array([[0.3], [0.7]]), np.ones((2, 1)))], 5, 2)
    model = dde.Model(data, network(dde, 1))
    model.compile("adam", lr=1e-3, external_trainable_variables=[k, c, negative])
    own = posed(model)
    assert own.unknown == ("k", "c", "negative")
    least = {name: own.problem.parameters()[name].above for name in own.unknown}
    assert least == {"k": 0.0, "c": -math.inf, "negative": -math.inf}

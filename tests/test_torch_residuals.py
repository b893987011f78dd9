"""Residuals written for plain torch: rows and their gradients are those of the same equation as a problem."""

import math

import numpy as np
import pytest
import torch
from test_linearisation import assert_linearises, make
from torch import func
from torch.func import vmap

import pinn_odelora as po
from pinn_odelora.derivatives.jet import EXPRESSION
from pinn_odelora.errors import InputError
from pinn_odelora.geometry import sobol
from pinn_odelora.geometry.pool import Pool
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System

ones = torch.ones_like
grad = torch.autograd.grad


def by_rows(net, x):
    """u_t + u u_x - u_xx / 10 + v, u_xt v_x, by rows of gradients."""
    y = net(x)
    u, v = y[:, :1], y[:, 1:]
    g = grad(u, x, ones(u), create_graph=True)[0]
    h = grad(g[:, :1], x, grad_outputs=ones(u), retain_graph=True, create_graph=True)[0]
    w = grad([v], [x], [ones(v)], create_graph=True)[0]
    return [g[:, 1:] + u * g[:, :1] - h[:, :1] / 10 + v, h[:, 1:] * w[:, :1]]


def by_sums(net, x):
    y = net(x)
    u, v = y[:, :1], y[:, 1:]
    g = grad(u.sum(), x, create_graph=True)[0]
    h = grad(torch.sum(g[:, 0:1]), x, create_graph=True)[0]
    w = grad(v.sum(), x, create_graph=True)[0]
    return torch.cat([g[:, 1:] + u * g[:, :1] - h[:, :1] / 10 + v, h[:, 1:] * w[:, :1]], dim=1)


def by_indices(net, x):
    y = net(x)
    u, v = y[..., [0]], y[:, [1]]
    g = grad(u, x, ones(u), create_graph=True)[0][..., [1, 0]]
    h = grad(g[:, [1]], x, ones(u), create_graph=True)[0]
    w = grad(v, x, ones(v), create_graph=True)[0][:, :1]
    return [g[:, :1] + u * g[:, 1:] - h[:, :1] / 10 + v, h[:, 1:] * w]


def by_copies(net, X):
    X = X.clone().requires_grad_()
    return by_rows(net, X)


def by_columns(net, X):
    x, t = X[:, :1].clone().requires_grad_(), X[:, 1:].detach().requires_grad_()
    y = net(torch.cat([x, t], dim=1))
    u, v = y[:, :1], y[:, 1:]
    u_x, u_t = grad(u, (x, t), ones(u), create_graph=True)
    (u_xx,) = grad(u_x, x, ones(u), create_graph=True)
    (u_xt,) = grad(u_x, t, ones(u), create_graph=True)
    (v_x,) = grad(v, x, ones(v), create_graph=True)
    return u_t + u * u_x - u_xx / 10 + v, u_xt * v_x


def by_vectors(net, X):
    """With coordinates, values and derivatives as vectors (N,), chosen in other ways than by slices."""
    x, t = (column.clone().requires_grad_() for column in X.unbind(1))
    u, v = net(torch.stack([x, t], dim=1)).T
    u_x, u_t = grad(u.sum(), (x, t), create_graph=True)
    (u_xx,) = grad(u_x, [x], ones(u), create_graph=True)
    (u_xt,) = grad(u_x, [t], ones(u), create_graph=True)
    (v_x,) = grad(v, x, ones(v), create_graph=True)
    return u_t + u * u_x - u_xx / 10 + v, u_xt * v_x


def known(f):
    return f.u1_y + f.u1 * f.u1_x - f.u1_xx / 10 + f.u2, f.u1_xy * f.u2_x


X = sobol(40, 2, seed=5)


def net(fields=2, seed=0):
    return MLP(2, fields, width=8, depth=2, generator=torch.Generator().manual_seed(seed)).double()


def system(problem, network):
    return System(problem, Solution(problem, network))


@pytest.mark.parametrize("function", [by_rows, by_sums, by_indices, by_copies, by_columns, by_vectors])
def test_rows_and_gradients_are_those_of_the_equation_by_jets(function):
    network = net()
    mine = system(po.torch_problem(network, function, X), network).engine("residual")
    box = po.Box(x=(0, 1), y=(0, 1))
    other = system(po.problem(coords="xy", fields=("u1", "u2"), region=box, pde=known), network).engine("pde")
    assert mine.plan is not None
    p = Points(x=X[:, :1], y=X[:, 1:])
    found, wanted = mine.residual(p), other.residual(p)
    assert torch.allclose(found, wanted, atol=1e-13)
    weights = [*network.parameters()]
    gradients = [torch.autograd.grad(r.square().sum(), weights) for r in (found, wanted)]
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("function", [by_rows, by_sums, by_columns])
def test_the_jacobian_of_a_step_is_that_of_the_rows(function, generator):
    shifted = lambda net, x: net(x + torch.tensor([1.0, 0.0], dtype=x.dtype)) * net(x)[:, 1:]
    posed = po.torch_problem(
        net(), {"pde": function, "other": shifted}, {"pde": X, "other": X[:20]}, weights={"pde": 3}
    )
    case = make(posed, generator, data=False)
    assert_linearises(case.linearised(), *case.dense(), generator)


def test_the_same_function_gives_the_same_rows_to_torch_alone():
    network = net()
    x = X.clone().requires_grad_()
    mine = system(po.torch_problem(network, by_rows, X), network).engine("residual")
    p = Points(x=X[:, :1], y=X[:, 1:])
    assert torch.allclose(mine.residual(p), torch.cat(by_rows(network, x), dim=1), atol=1e-13)


def test_other_points_are_those_of_the_same_rows():
    shift = torch.tensor([1.0, 0.0], dtype=torch.float64)

    def periodic(net, x):
        z = (x + shift).requires_grad_()
        a, b = net(x), net(z)
        slope = lambda u, x: grad(u, x, ones(u), create_graph=True)[0][:, :1]
        return a - b, slope(a, x) - slope(b, z)

    network = net(1)
    mine = system(po.torch_problem(network, periodic, X), network).engine("residual")
    p = Points(x=X[:, :1], y=X[:, 1:])
    x, z = X.clone().requires_grad_(), (X + shift).requires_grad_()
    wanted = torch.cat(
        [network(x) - network(z), (grad(network(x).sum(), x)[0] - grad(network(z).sum(), z)[0])[:, :1]], dim=1
    )
    assert torch.allclose(mine.residual(p), wanted, atol=1e-13)


def test_an_expression_is_differentiated_by_reverse_mode():
    def flux(net, x):
        u = net(x)
        q = (1 + u**2) * grad(u, x, ones(u), create_graph=True)[0][:, :1]
        return grad(q, x, ones(q), create_graph=True)[0][:, :1]

    network = net(1)
    mine = system(po.torch_problem(network, flux, X), network).engine("residual")
    assert "expression" in mine.reason
    x = X.clone().requires_grad_()
    assert torch.allclose(mine.residual(Points(x=X[:, :1], y=X[:, 1:])), flux(network, x), atol=1e-13)


@pytest.mark.parametrize("of", ["torch", "problem"])
def test_an_equation_in_conservation_form_is_adapted(of):
    """Its loss at points that no step has is evaluated without gradients, its own derivative of a flux included."""

    def divergence(u, u_x, x):
        q = (1 + u**2) * u_x
        return grad(q, x, ones(q), create_graph=True)[0][:, :1]

    def from_torch(net, x):
        u = net(x)
        u_x, u_y = grad(u, x, ones(u), create_graph=True)[0].split(1, dim=1)
        return u_y - divergence(u, u_x, x)

    def written(f, k):
        flux = (k + f.u**2) * f.u_x
        return f.u_y - grad(flux, f.x, ones(flux), create_graph=True)[0]

    budget = po.Budget(steps=2)
    if of == "torch":
        run = po.steps(net(1), residuals=from_torch, points=X, rank=2, budget=budget)
    else:
        box = po.Box(x=(0, 1), y=(0, 1))
        ic = (box.face(y=0.0), lambda f: f.u - f.x)
        problem = po.problem(coords="xy", region=box, k=po.parameter(1.0, 2.0), flow=written, ic=ic)
        run = po.steps(net(1), problem, rank=2, budget=budget, points=po.Sampling.even(30, 10))
    assert f"by nested reverse mode, since {EXPRESSION}" in run.chosen
    assert len([*run]) == 2
    result = run.result()
    assert not result.diverged
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def point_by_point(net, x):
    """Of ``by_rows``, by transforms of a function of one point."""
    u, v = (lambda p, k=k: net(p)[k] for k in (0, 1))
    g, w = vmap(func.grad(u))(x), vmap(func.grad(v))(x)
    h = vmap(func.hessian(u))(x)
    y = net(x)
    first = g[:, 1] + y[:, 0] * g[:, 0] - h[:, 0, 0] / 10 + y[:, 1]
    return torch.stack([first, h[:, 0, 1] * w[:, 0]], dim=1)


def along_axes(net, x):
    """The same, by derivatives along the axes of all points together."""
    e = torch.eye(2, dtype=x.dtype)
    along = lambda function, k: lambda x: func.jvp(function, (x,), (e[k].expand_as(x),))[1]
    y, y_x, y_t = net(x), along(net, 0)(x), along(net, 1)(x)
    u_xx, u_xt = along(along(net, 0), 0)(x)[:, :1], along(along(net, 0), 1)(x)[:, :1]
    first = y_t[:, :1] + y[:, :1] * y_x[:, :1] - u_xx / 10 + y[:, 1:]
    return torch.cat([first, u_xt * y_x[:, 1:]], dim=1)


# Importing jvp's rules, torch calls what it calls deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("function", [point_by_point, along_axes])
def test_transforms_of_torch_func_are_residuals(function):
    network = net()
    own, same = (system(po.torch_problem(network, f, X), network) for f in (function, by_rows))
    p = Points(x=X[:, :1], y=X[:, 1:])
    assert own.engine("residual").transformed
    assert torch.allclose(own.engine("residual").residual(p), same.engine("residual").residual(p), atol=1e-12)
    layers = {"linears.1": network.linears[1]}
    columns = [Linearisation(Sweep(s, layers), {"residual": p}).columns() for s in (own, same)]
    assert torch.allclose(*columns, atol=1e-12)
    run = po.steps(net(), residuals=function, points=X, rank=2, budget=po.Budget(steps=2))
    assert "residual by the residual's own transforms of torch.func" in run.chosen
    first, *_, last = run
    assert last.loss < first.loss / 2
    jets = System(own.problem, Solution(own.problem, network), derivatives="jets")
    with pytest.raises(InputError, match=r"the residual is written with transforms of torch.func"):
        jets.engine("residual")


class Encoder(torch.nn.Module):
    """A point as a short sequence, through an encoder with attention."""

    def __init__(self):
        super().__init__()
        options = {"dropout": 0.0, "batch_first": True, "activation": torch.tanh}
        self.embedding = torch.nn.Linear(2, 12)
        self.encoder = torch.nn.TransformerEncoderLayer(4, 2, 6, **options)
        self.last = torch.nn.Linear(12, 1)

    def forward(self, x):
        return self.last(self.encoder(torch.tanh(self.embedding(x)).view(-1, 3, 4)).flatten(1))


def test_a_network_with_attention_is_adapted():
    """Torch's fused attention has no second derivatives."""

    def heat(net, x):
        u = net(x)
        g = grad(u, x, ones(u), create_graph=True)[0]
        return g[:, 1:] - grad(g[:, :1], x, ones(u), create_graph=True)[0][:, :1]

    torch.manual_seed(0)
    network = Encoder().double()
    mine = system(po.torch_problem(network, heat, X), network).engine("residual")
    h = 1e-3
    u = lambda a, b: network(X + torch.tensor([a, b], dtype=X.dtype)).detach()
    wanted = (u(0, h) - u(0, -h)) / (2 * h) - (u(h, 0) - 2 * u(0, 0) + u(-h, 0)) / h**2
    assert torch.allclose(mine.residual(Points(x=X[:, :1], y=X[:, 1:])), wanted, atol=1e-5)
    result = po.adapt(network, residuals=heat, points=X, rank=2, budget=po.Budget(steps=2))
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2


READINGS = {
    "slice": lambda h: h[:, 0:1],
    "index": lambda h: h[..., [0]],
    "vector": lambda h: h[:, 0],
    "select": lambda h: torch.select(h, 1, 0),
    "narrow": lambda h: h.narrow(1, 0, 1),
    "split": lambda h: torch.split(h, 1, dim=1)[0],
}


@pytest.mark.parametrize("reading", READINGS)
def test_columns_of_a_gradient_are_asked_for_when_they_are_read(reading):
    """Burgers' equation needs u, u_x, u_t, u_xx and not u_xt, which stands beside u_xx."""

    def burgers(net, x):
        u = net(x)
        (g,) = grad(u, x, ones(u), create_graph=True)
        (h,) = grad(g[:, :1], x, ones(u), create_graph=True)
        assert (h.shape, h.dtype, len(h)) == (x.shape, x.dtype, len(x))
        u_xx = READINGS[reading](h).reshape(-1, 1)
        return g[:, 1:2] + u * g[:, :1] - u_xx / 50

    network = net(1)
    mine = system(po.torch_problem(network, burgers, X), network).engine("residual")
    assert mine.plan is not None
    assert set(mine.plan.derivatives) == {"x", "y", "xx"}
    x = X.clone().requires_grad_()
    assert torch.allclose(mine.residual(Points(x=X[:, :1], y=X[:, 1:])), burgers(network, x), atol=1e-13)


def test_gradients_that_are_read_whole_are_whole():
    def several(net, x):
        u = net(x)
        (g,) = grad(u, x, ones(u), create_graph=True)
        swapped, rows = g[:, [1, 0]], g[x[:, 0] > 0.5]
        apart = [g, *g.unbind(dim=1), *g.T]
        return g * swapped, (g**2).sum(dim=1), g + g[::1].flip(1), 0 * u + rows.sum().detach() * 0, *apart

    network = net(1)
    mine = system(po.torch_problem(network, several, X), network).engine("residual")
    x = X.clone().requires_grad_()
    wanted = torch.cat([r.reshape(len(X), -1) for r in several(network, x)], dim=1)
    assert torch.allclose(mine.residual(Points(x=X[:, :1], y=X[:, 1:])), wanted, atol=1e-13)


@pytest.mark.parametrize(
    "write", [lambda g, a: a.mul_(2.0), lambda g, a: g.mul_(2.0), lambda g, a: g.__setitem__((..., 0), 2 * a[:, 0])]
)
def test_a_gradient_is_not_read_after_a_column_of_it_was_written_over(write):
    def doubled(net, x):
        (g,) = grad(net(x).sum(), x, create_graph=True)
        write(g, g[:, :1])
        return g

    with pytest.raises(InputError, match=r"writes into a column of a gradient; it must write into a copy"):
        system(po.torch_problem(net(1), doubled, X), net(1)).engine("residual")


def doubled_values(net, x):
    u = net(x)
    v = u[:, :1]
    v.mul_(2.0)
    return grad(v, x, ones(v), create_graph=True)[0][:, :1]


def doubled_gradients(net, x):
    (g,) = grad(net(x).sum(), x, create_graph=True)
    g.mul_(2.0)
    return grad(g, x, ones(g), create_graph=True)[0][:, :1]


@pytest.mark.parametrize("squared", [doubled_values, doubled_gradients])
def test_columns_that_were_written_over_are_no_longer_known(squared):
    network = net(1)
    mine = system(po.torch_problem(network, squared, X), network).engine("residual")
    x = X.clone().requires_grad_()
    assert torch.allclose(mine.residual(Points(x=X[:, :1], y=X[:, 1:])), squared(network, x), atol=1e-13)
    assert mine.plan is None


def test_a_pool_gives_different_points_of_its_own_and_the_same_for_the_same_numbers():
    there = Pool(Points(x=X[:, :1], y=X[:, 1:]))
    draw = lambda n, seed: there.sample(n, lambda m, d: sobol(m, d, seed=seed)).rows("xy")
    assert torch.equal(draw(15, 1), draw(15, 1))
    assert not torch.equal(draw(15, 1), draw(15, 2))
    assert len(torch.unique(draw(15, 1), dim=0)) == 15
    assert (draw(15, 1)[:, None] == X[None]).all(dim=2).any(dim=1).all()
    assert torch.equal(draw(99, 1), X)


def test_a_network_is_adapted_to_them():
    """-u_xx = k² sin(k x) on (0, π), from k = 1 to k = 2."""
    line = np.linspace(0, math.pi, 200)[:, None]

    def poisson(k):
        def residual(net, x):
            u = net(x)
            u_x = grad(u, x, ones(u), create_graph=True)[0]
            return grad(u_x, x, ones(u), create_graph=True)[0] + k**2 * torch.sin(k * x)

        return {"pde": residual, "ends": lambda net, x: net(x)}

    points = {"pde": line, "ends": line[[0, -1]]}
    start = MLP(1, 1, width=10, depth=2, generator=torch.Generator().manual_seed(0)).double()
    settings = po.Pretraining(adam_steps=30, natural_gradient_steps=20)
    solved = po.pretrain(po.torch_problem(start, poisson(1), points), start, settings=settings)
    quick = {"budget": po.Budget(gradient_evals=250), "log": po.Log(every=1000, test=64, heldout=32, estimate=False)}
    result = po.adapt(solved, residuals=poisson(2), points=points, rank=4, **quick)
    assert np.abs(result.solution(line[:, 0]) - np.sin(2 * line[:, 0])).max() < 1e-3


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_network_hides_its_layers():
    compiled = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2)).double())
    with pytest.raises(InputError, match=r"^[Tt]he network is compiled by torch.jit, which hides its linear layers"):
        po.adapt(compiled, residuals=by_rows, points=X)


def test_what_is_wrong_is_a_sentence():
    network = net(1)
    with pytest.raises(InputError, match="either a problem, or residuals"):
        po.adapt(network)
    with pytest.raises(InputError, match="residuals need points"):
        po.adapt(network, residuals=by_rows)
    with pytest.raises(InputError, match=r"^Unknown residual with points: 'ic'; allowed: pde\.$"):
        po.torch_problem(network, {"pde": by_rows}, {"ic": X})
    with pytest.raises(InputError, match=r"^points has no entry for the residual ic, but every residual needs"):
        po.torch_problem(network, {"pde": by_rows, "ic": by_rows}, {"pde": X})
    with pytest.raises(InputError, match=r"double != float; give tensors of your own the dtype of the points"):
        po.torch_problem(network, lambda net, x: net(x) @ torch.ones(1, 1), X)
    with pytest.raises(InputError, match=r"weights is \(1, 2\), but it must be a Mapping, such as {'ic': 10.0}"):
        po.torch_problem(network, by_rows, X, weights=(1, 2))
    with pytest.raises(InputError, match=r"'residual' has other values when it is asked again; it must not draw"):
        system(po.torch_problem(net(1), lambda net, x: net(x) + torch.rand(len(x), 1), X), net(1)).engine("residual")
    with pytest.raises(InputError, match=r"shape \(40,\); they must be finite, of shape \(N, d\)"):
        po.torch_problem(network, by_rows, X[:, 0])
    with pytest.raises(InputError, match="as many columns; they have: a 2, b 1"):
        po.torch_problem(network, {"a": by_rows, "b": by_rows}, {"a": X, "b": X[:, :1]})
    with pytest.raises(InputError, match="cannot be evaluated at points of 3 columns"):
        po.torch_problem(network, by_rows, torch.rand(5, 3))
    with pytest.raises(InputError, match="points of another number are a residual of their own"):
        po.torch_problem(network, lambda net, x: net(x[:1]), X)
    with pytest.raises(InputError, match="must be a function of network and points"):
        po.torch_problem(network, {"pde": 3}, X)


@pytest.mark.parametrize("last", ["t", "y"])
def test_columns_are_the_coordinates_of_the_regions(last):
    """Faces have a normal, which is no coordinate; given rows have the order of the region."""
    box = po.Box(x=(-1, 1), **{last: (0, 1)})
    points = {"pde": box, "start": box.face(**{last: 0.0}), "sides": box.boundary("x"), "known": X}
    residuals = {name: lambda net, x: net(x) - x[:, :1] - 3 * x[:, 1:] for name in points}
    problem = po.torch_problem(net(1), residuals, points)
    assert problem.coords == ("x", last)
    drawn = po.Points({"x": X[:, :1], last: X[:, 1:]})
    r = system(problem, net(1)).residuals(dict.fromkeys(points, drawn))
    assert all(torch.equal(r[name], r["known"]) for name in points)


def test_regions_of_other_coordinates_are_refused():
    box = po.Box(x=(0, 1), t=(0, 1))
    with pytest.raises(InputError, match=r"the same coordinates; they have: a x, t; b x, y\.$"):
        po.torch_problem(net(1), {"a": by_rows, "b": by_rows}, {"a": box, "b": po.Box(x=(0, 1), y=(0, 1))})
    with pytest.raises(InputError, match="as many columns; they have: a 2, b 3"):
        po.torch_problem(net(1), {"a": by_rows, "b": by_rows}, {"a": box, "b": torch.rand(5, 3)})
    with pytest.raises(InputError, match=r"^residuals is empty"):
        po.torch_problem(net(1), {}, {})

"""The linearisation is the dense Jacobian of the loss's rows, whatever form it is kept in.

The Jacobian that it is held against comes from nested reverse mode, row by row, of a plain network that has the
effective weights; for two problems also from ``torch.func`` and residuals written out once more. Layers have unequal
sides, factors and biases are generic, s is not 1, and neither are the loss weights.
"""

import copy
import dataclasses
import re
import weakref
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_problems import CLASSES
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from pinn_odelora.derivatives.jet import Adjoint, Passage
from pinn_odelora.derivatives.products import Products
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Box, Cloud
from pinn_odelora.linalg.cholesky import factored, solution
from pinn_odelora.linalg.gram import fill, gram
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.manifolds.fixed_rank import frame
from pinn_odelora.matrix_problem import MatrixProblem
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.heat import Heat
from problems.kovasznay import Kovasznay
from problems.poisson import Poisson

SCALE = 0.7
LINEAR = Box(x=(-1, 1), t=(0, 1))


class Net(nn.Module):
    """Layers of unequal sides, so that no transposed matrix fits."""

    def __init__(self, inputs, outputs, activation, generator, sizes=(5, 7, 6, 4)):
        super().__init__()
        sides = [inputs, *sizes, outputs]
        self.linears = nn.ModuleList(nn.Linear(a, b).double() for a, b in pairwise(sides))
        self.activation = activation
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype) / p.shape[-1] ** 0.5

    def forward(self, x):
        *hidden, last = self.linears
        for linear in hidden:
            x = self.activation(linear(x))
        return last(x)


def weighted(problem):
    weights = {name: 0.3 + 0.4 * k for k, name in enumerate(problem.loss_terms())}
    return dataclasses.replace(problem, weights=weights)


PROBLEMS = [
    *(weighted(cls(rows=4, columns=3, rank=2) if issubclass(cls, MatrixProblem) else cls()) for cls in CLASSES),
    weighted(Burgers(conditions="soft")),
    weighted(Poisson(domain="plate_with_hole")),
]


def label(problem):
    return f"{type(problem).__name__}-{problem.conditions}-{getattr(problem, 'domain', '')}".rstrip("-")


def measured(problem, generator):
    """A term of measured values with weights of their own."""
    p = problem.region.sample(6, lambda n, d: torch.rand(n, d, generator=generator, dtype=torch.float64))
    n = p.number
    p = Points(p | {"value": torch.randn(n, 1, generator=generator, dtype=torch.float64)})
    p["size"] = 0.5 + torch.rand(n, 1, generator=generator, dtype=torch.float64)
    name = problem.fields[-1]
    residual = lambda f: f.size.sqrt() * (f.derivative(name, "") - f.value)
    return {"data": Term(Cloud(p), residual, 2.5)}


class Case:
    """A system of adapted layers, and the same function as a plain network."""

    def __init__(self, problem, net, generator, extra=None, derivatives="jets", dtype=torch.float64):
        self.problem, self.net = problem, net
        self.plain = copy.deepcopy(net)
        self.adapted = put_factors(net, linear_targets(net), 2, SCALE, orthonormal, generator)
        for name, layer in self.adapted.items():
            for x in layer.factors:
                x.data += 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            self.plain.get_submodule(name).weight.data = layer.weight.detach()
        self.extra = extra or {}
        self.system = System(problem, Solution(problem, net.to(dtype)), self.extra, derivatives)
        self.points = draw_points(self.system.terms, 7, 5, seed=3)
        linears = dict(enumerate(net.linears))
        self.layers = {f"linears.{i}": layer for i, layer in linears.items()}
        self.others = {
            f"bias.{i}": (layer if isinstance(layer, nn.Linear) else layer.base_layer).bias
            for i, layer in linears.items()
        }
        self.dtype = dtype

    def linearised(self, layers=None, others=None, **options):
        layers = self.layers if layers is None else layers
        sweep = Sweep(self.system, layers, self.others if others is None else others)
        return Linearisation(sweep, {name: p.to(self.dtype) for name, p in self.points.items()}, **options)

    def dense(self, *more):
        """(r, J): all weights, then all biases, then ``more``; nested reverse mode, one row at a time."""
        system = System(self.problem, Solution(self.problem, self.plain), self.extra, "autograd")
        weights = [linear.weight for linear in self.plain.linears]
        biases = [linear.bias for linear in self.plain.linears]
        rows = []
        for name, r in system.residuals(self.points).items():
            scale = (2 * system.terms[name].weight / len(r)) ** 0.5
            rows += [scale * x for component in r.unbind(dim=1) for x in component]
        tensors = [*weights, *biases, *more]
        J = [torch.autograd.grad(x, tensors, retain_graph=True, materialize_grads=True) for x in rows]
        return torch.stack(rows).detach(), torch.stack([torch.cat([g.flatten() for g in row]) for row in J])


def make(problem, generator, activation=torch.tanh, data=True, net=Net, **options):
    extra = (measured(problem, generator) if data else {}) | options.pop("extra", {})
    made = net(problem.inputs, len(problem.fields), activation, generator)
    return Case(problem, made, generator, extra, **options)


def assert_near(found, exact, tolerance=1e-11):
    exact = exact.to(found.dtype)
    assert found.shape == exact.shape
    assert float((found - exact).abs().max()) <= tolerance * float(exact.abs().max())


def flat(direction):
    return torch.cat([x.flatten() for x in direction.values()])


def assert_linearises(a, r, J, generator, tolerance=1e-11):
    """Everything that the linearisation offers in whole weights, against the rows and the dense Jacobian."""
    near = lambda found, exact: assert_near(found, exact, tolerance)
    v = {n: torch.randn(x.weight.shape, generator=generator, dtype=torch.float64) for n, x in a.layers.items()}
    v |= {n: torch.randn(x.shape, generator=generator, dtype=torch.float64) for n, x in a.others.items()}
    w = torch.randn(len(r), generator=generator, dtype=torch.float64)
    near(a.r, r)
    near(a.loss, r.square().sum() / 2)
    near(flat(a.gradient()), J.mT @ r)
    near(a.matvec({n: x.to(a.r) for n, x in v.items()}), J @ flat(v))
    near(flat(a.rmatvec(w.to(a.r))), J.mT @ w)
    near(a.columns(), J)
    near(a.gram(), J.mT @ J)
    near(a.kernel(), J @ J.mT)
    near(a.diagonal(), J.square().sum(dim=1))
    assert list(a.gradient()) == [*a.layers, *a.others]
    for one, i in a.terms.items():
        near(a.kernel(one), J[i] @ J[i].mT)
        for other, j in a.terms.items():
            near(a.kernel(one, other), J[i] @ J[j].mT)


def tangent(case):
    """Frames of the adapted layers, and the basis of their tangent spaces and all else, (P, columns)."""
    frames = {name: frame(layer.factors) for name, layer in case.adapted.items()}
    blocks = []
    for name, layer in case.layers.items():
        if name in frames:
            units = torch.eye(frames[name].dimension, dtype=case.dtype)
            blocks.append(torch.stack([frames[name].vector(e).flatten() for e in units], dim=1))
        else:
            blocks.append(torch.eye(layer.weight.numel(), dtype=case.dtype))
    blocks += [torch.eye(x.numel(), dtype=case.dtype) for x in case.others.values()]
    return frames, torch.block_diag(*blocks)


@pytest.mark.parametrize("derivatives", ["jets", "autograd"])
@pytest.mark.parametrize("activation", [torch.tanh, torch.sin])
@pytest.mark.parametrize("problem", PROBLEMS, ids=label)
def test_the_linearisation_is_the_dense_jacobian(problem, activation, derivatives, generator):
    case = make(problem, generator, activation, derivatives=derivatives)
    r, J = case.dense()
    a = case.linearised()
    assert_linearises(a, r, J, generator)
    assert all(a._sweep.paired(name) for name in case.points)
    frames, basis = tangent(case)
    assert a.width(frames) == basis.shape[1]
    assert_near(a.columns(frames), J @ basis)
    assert_near(a.gram(frames), basis.mT @ J.mT @ J @ basis)


@pytest.mark.parametrize("problem", PROBLEMS, ids=label)
def test_in_single_precision_it_keeps_four_digits(problem, generator):
    case = make(problem, generator, dtype=torch.float32)
    r, J = case.dense()
    a = case.linearised()
    assert a.r.dtype == torch.float32
    assert_linearises(a, r, J, generator, tolerance=1e-4)
    frames, basis = tangent(case)
    assert_near(a.columns(frames), J.float() @ basis, 1e-4)


@pytest.mark.parametrize("problem", PROBLEMS, ids=label)
def test_the_gradient_and_the_loss_are_those_of_training(problem, generator):
    case = make(problem, generator)
    plain = System(problem, Solution(problem, case.plain), case.extra)
    loss = plain.loss(case.points).total
    a = case.linearised()
    assert_near(a.loss, loss.detach())
    parameters = [*(x.weight for x in case.plain.linears), *(x.bias for x in case.plain.linears)]
    assert_near(flat(a.gradient()), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))


# Two problems once more, written from the paper.


def burgers_row(u, p, problem):
    x, t = p
    value = lambda x, t: -problem.amplitude * torch.sin(torch.pi * x) + t * (1 - x**2) * u(torch.stack([x, t]))[0]
    u_x = grad(value, 0)
    return (grad(value, 1)(x, t) + value(x, t) * u_x(x, t) - problem.nu * grad(u_x, 0)(x, t)).reshape(1)


def kovasznay_row(w, p, problem):
    x, y = p
    part = lambda i: lambda x, y: w(torch.stack([x, y]))[i]
    d = lambda i, k: grad(part(i), k)(x, y)
    laplacian = lambda i: grad(grad(part(i), 0), 0)(x, y) + grad(grad(part(i), 1), 1)(x, y)
    u, v = part(0)(x, y), part(1)(x, y)
    momentum = [u * d(i, 0) + v * d(i, 1) + d(2, i) - laplacian(i) / problem.re for i in (0, 1)]
    return torch.stack([*momentum, d(0, 0) + d(1, 1)])


@pytest.mark.parametrize(("cls", "row"), [(Burgers, burgers_row), (Kovasznay, kovasznay_row)])
def test_it_agrees_with_torch_func_on_residuals_written_out_again(cls, row, generator):
    problem = weighted(cls())
    case = make(problem, generator, data=False)
    p = case.points["pde"].rows(problem.coords)
    weights = {f"linears.{i}.weight": x.weight.detach() for i, x in enumerate(case.plain.linears)}

    def rows(weights, p):
        u = lambda e: functional_call(case.plain, weights, (e,))
        return (2 * problem.weights["pde"] / 7) ** 0.5 * row(u, p, problem)

    blocks = vmap(jacrev(rows), (None, 0))(weights, p)
    J = torch.cat([blocks[name].flatten(2) for name in weights], dim=2).detach()
    a = case.linearised(others={})
    here = a.terms["pde"]
    assert_near(a.r[here], vmap(rows, (None, 0))(weights, p).mT.flatten().detach())
    assert_near(a.columns()[here], J.transpose(0, 1).flatten(0, 1))


# Variables.


def test_any_layers_and_biases_can_be_the_variables(generator):
    case = make(PROBLEMS[0], generator)
    r, J = case.dense()
    sizes = [*(x.weight.numel() for x in case.plain.linears), *(x.bias.numel() for x in case.plain.linears)]
    parts = dict(zip([*case.layers, *case.others], J.split(sizes, dim=1), strict=True))
    for layers, others in [
        (["linears.4"], []),
        (["linears.2", "linears.0"], ["bias.2"]),
        (["linears.1"], ["bias.3", "bias.0"]),
        ([], ["bias.1", "bias.4"]),
    ]:
        a = case.linearised({n: case.layers[n] for n in layers}, {n: case.others[n] for n in others})
        assert_linearises(a, r, torch.cat([parts[n] for n in (*layers, *others)], dim=1), generator)


def test_nothing_but_the_variables_is_left_requiring_a_gradient(generator):
    case = make(PROBLEMS[0], generator)
    before = {name: p.requires_grad for name, p in case.net.named_parameters()}
    case.linearised()
    assert {name: p.requires_grad for name, p in case.net.named_parameters()} == before
    assert all(p.grad is None for p in case.net.parameters())


class Inverse(Heat):
    """Heat equation with a coefficient to be found, once inside an operator and once beside it."""

    def terms(self):
        kappa = KAPPA
        return super().terms() | {
            "pde": Term(self.region, lambda f: f.op("u", {"t": 1, "xx": -kappa[0]}) + kappa[1] ** 2 * f.u * f.u_x)
        }


KAPPA = nn.Parameter(torch.tensor([0.13, 0.8], dtype=torch.float64))


def test_a_coefficient_of_the_equation_is_one_more_column(generator):
    case = make(weighted(Inverse(conditions="soft")), generator)
    r, J = case.dense(KAPPA)
    assert_linearises(case.linearised(others=case.others | {"kappa": KAPPA}), r, J, generator)
    assert_linearises(case.linearised({}, {"kappa": KAPPA}), r, J[:, -2:], generator)
    assert float(J[case.linearised().terms["ic"], -2:].abs().max()) == 0
    system = System(case.problem, Solution(case.problem, case.plain), derivatives="autograd")
    f = system.engine("pde").field(case.points["pde"])
    by_hand = torch.cat([-f.u_xx, 2 * KAPPA[1] * f.u * f.u_x], dim=1).detach() * (2 * 0.3 / 7) ** 0.5
    assert_near(J[:7, -2:], by_hand)


# Rows that read more than one evaluation, and networks without jets.


def periodic(f):
    away = f.at(x=f.x + 2)
    return f.u - away.u, f.u_x - away.u_x


@pytest.mark.parametrize("derivatives", ["jets", "autograd"])
def test_a_row_may_read_two_evaluations_of_its_own(derivatives, generator):
    term = Term(LINEAR.face(x=-1.0), periodic, 1.7)
    case = make(weighted(Burgers(conditions="soft")), generator, extra={"periodic": term}, derivatives=derivatives)
    a = case.linearised()
    assert a._sweep.paired("periodic")
    assert_linearises(a, *case.dense(), generator)


@pytest.mark.parametrize("options", [{}, {"chunk": 3}, {"memory": 1.0}])
def test_coupled_rows_are_never_torn_apart(options, generator):
    term = Term(LINEAR, lambda f: (f.u - f.u.mean(), f.u_x * f.u.square().mean()), 1.7, coupled=True)
    case = make(PROBLEMS[0], generator, extra={"mean": term})
    assert_linearises(case.linearised(**options), *case.dense(), generator)


class Cube(torch.autograd.Function):
    """A function of the user's that no jet passes, and whose backward pass looks at numbers."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + x**3 / 9

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 + x**2 / 3)


class Watched(torch.autograd.Function):
    """The same, but torch cannot batch its backward pass."""

    forward = Cube.forward

    @staticmethod
    def backward(ctx, g):
        assert bool(torch.isfinite(g).all())
        return Cube.backward(ctx, g)


@pytest.mark.parametrize(
    "activation",
    [Cube.apply, Watched.apply, torch.special.log_ndtr],
    ids=["function", "unbatched function", "no rule"],
)
@pytest.mark.parametrize("chunk", [None, 3])
def test_a_network_without_jet_rules_has_the_same_linearisation(activation, chunk, generator):
    case = make(weighted(Burgers(conditions="soft")), generator, activation, derivatives="auto")
    a = case.linearised(chunk=chunk)
    assert all(case.system.engine(name).plan is None for name in case.points)
    assert all(a._sweep.paired(name) for name in case.points)
    assert_linearises(a, *case.dense(), generator)
    frames, basis = tangent(case)
    assert_near(a.columns(frames), a.columns() @ basis)


def conserved(f):
    """A flux that depends on u and u_x, differentiated as an expression."""
    flux = (1 + f.u**2) * f.u_x + f.x * torch.exp(f.u)
    return f.u_t - grad_of(flux, f.x), grad_of(grad_of(flux, f.t), f.x)


def grad_of(u, x):
    return torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)[0]


def test_an_expression_that_is_differentiated_has_its_rows_at_once(generator):
    extra = {"conserved": Term(LINEAR, conserved, 1.7)}
    case = make(weighted(Burgers(conditions="soft")), generator, extra=extra, derivatives="auto")
    assert case.system.engine("conserved").by_rows.plan is None
    a = case.linearised()
    assert a._sweep.paired("conserved")
    assert_linearises(a, *case.dense(), generator)


def test_a_tape_ends_with_its_evaluation(generator):
    """What is differentiated later is not recorded, nor is a layer whose weight is not trained."""
    a, b = (nn.Linear(3, 4).double(), nn.Linear(4, 1).double().requires_grad_(False))
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    tape = []
    with Products(tape):
        u = b(torch.tanh(a(x)))
        (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    assert [type(entry) for entry in tape] == [Passage, Adjoint]
    torch.autograd.grad(u_x.square().sum(), x, create_graph=True)
    assert len(tape) == 2
    assert torch.allclose(u, b(torch.tanh(x @ a.weight.mT + a.bias)), atol=1e-15)


def test_many_numbers_outside_layers_are_differentiated_row_by_row(generator):
    """Reverse mode takes a sweep for each of them, jets none."""

    class Scaled(Net):
        def __init__(self, *args):
            super().__init__(*args)
            self.a = nn.Parameter(torch.randn(5, 7, generator=generator, dtype=torch.float64))

        def forward(self, x):
            first, *hidden, last = self.linears
            x = (self.activation(first(x))[..., None] * self.a).sum(dim=1)
            for linear in hidden[1:]:
                x = self.activation(linear(x))
            return last(x)

    for derivatives, paired in (("jets", True), ("autograd", False)):
        case = make(PROBLEMS[0], generator, net=Scaled, data=False, derivatives=derivatives)
        a = case.linearised(others=case.others | {"a": case.net.a})
        assert {a._sweep.paired(name) for name in case.points} == {paired}
        r, J = case.dense(case.plain.a)
        assert_linearises(a, r, J, generator)
        few = case.linearised(others=case.others)
        assert all(few._sweep.paired(name) for name in case.points)


def test_jets_that_cost_more_than_a_gradient_still_give_the_rows_at_once(generator):
    """u_t + c u_x by single derivatives: three channels of jets against two products of reverse mode."""
    term = Term(LINEAR, lambda f: f.u_t + 0.7 * f.u_x + f.u**2, 1.7)
    case = make(weighted(Burgers(conditions="soft")), generator, extra={"advection": term}, derivatives="auto")
    engine = case.system.engine("advection")
    assert engine.plan is None
    assert (engine.products, engine.by_rows.products) == (2, 3)
    assert "reverse mode needs 2 products a layer, jets 3" in engine.reason
    assert not engine.by_rows.reason
    a = case.linearised()
    assert a._sweep.paired("advection")
    assert_linearises(a, *case.dense(), generator)


class Transposed(Net):
    """The first layer is a product of matrices; the last is a linear layer, and more."""

    def forward(self, x):
        a, *hidden, last = self.linears
        x = x @ a.weight.mT + a.bias
        for linear in hidden:
            x = linear(self.activation(x))
        return last(self.activation(x)) + 0.1 * last.weight.sum()


class Beside(Net):
    """The last bias is also used by itself."""

    def forward(self, x):
        return super().forward(x) + x[:, :1] * self.linears[-1].bias


class Shared(Net):
    """One linear layer passed twice, and one that acts on the parts of a row."""

    def __init__(self, inputs, outputs, activation, generator):
        super().__init__(inputs, outputs, activation, generator, sizes=(6, 3, 3, 6))

    def forward(self, x):
        a, b, c, d, e = self.linears
        x = self.activation(a(x))
        parts = torch.stack([b(x), self.activation(b(x))], dim=1)
        x = c(self.activation(c(parts))).sum(dim=1)
        return e(self.activation(d(x)))


@pytest.mark.parametrize("derivatives", ["jets", "autograd"])
@pytest.mark.parametrize("net", [Transposed, Shared])
def test_weights_used_in_other_ways_are_seen(net, derivatives, generator):
    case = make(weighted(Burgers(conditions="soft")), generator, net=net, derivatives=derivatives)
    a = case.linearised()
    assert {a._sweep.paired(name) for name in case.points} == {net is Shared}
    assert_linearises(a, *case.dense(), generator)


def test_a_bias_used_beside_its_layer_is_seen(generator):
    case = make(PROBLEMS[0], generator, net=Beside)
    a = case.linearised({"linears.3": case.layers["linears.3"]}, {"bias.4": case.others["bias.4"]})
    r, J = case.dense()
    ends = torch.cumsum(torch.tensor([0, *(x.weight.numel() for x in case.plain.linears)]), dim=0)
    assert_linearises(a, r, torch.cat([J[:, ends[3] : ends[4]], J[:, -1:]], dim=1), generator)
    assert_linearises(case.linearised(), r, J, generator)


def test_a_layer_passed_twice_keeps_its_pairs(generator):
    class Twice(Net):
        def forward(self, x):
            a, b, c, d, e = self.linears
            x = self.activation(c(self.activation(b(self.activation(a(x))))))
            return e(self.activation(d(x)) - d(self.activation(x)))

    case = make(PROBLEMS[0], generator, net=Twice)
    a = case.linearised()
    assert all(a._sweep.paired(name) for name in case.points)
    assert_linearises(a, *case.dense(), generator)


# Chunks and memory.


class Watch(Sweep):
    """A sweep that knows how many bytes of its groups are alive at once at most."""

    alive = most = 0

    def __call__(self, *args):
        groups = super().__call__(*args)
        for group in groups:
            self.alive += group.bytes
            weakref.finalize(group, self.freed, group.bytes)
        self.most = max(self.most, self.alive)
        return groups

    def freed(self, size):
        self.alive -= size


@pytest.mark.parametrize(
    ("problem", "chunk", "share"),
    [(PROBLEMS[0], 3, 2), (PROBLEMS[0], None, 0.5), (PROBLEMS[0], 3, 0.5), (weighted(Kovasznay()), 4, 0.5)],
)
def test_chunks_and_a_memory_budget_change_no_number(problem, chunk, share, generator):
    case = make(problem, generator, data=False)
    whole = case.linearised()
    frames, _ = tangent(case)
    a = case.linearised(chunk=chunk, memory=share * sum(group.bytes for group in whole._kept))
    assert (a._kept is None) == (share < 1)
    assert_linearises(a, whole.r, whole.columns(), generator, tolerance=1e-13)
    assert_near(a.gram(frames), whole.gram(frames), 1e-13)


def test_a_memory_budget_is_kept(generator):
    case = make(weighted(Kovasznay()), generator, data=False)
    case.points = draw_points(case.system.terms, 32, 8, seed=3)
    most = {}
    for memory in (2.0**30, 2e4):
        watch = Watch(case.system, case.layers, case.others)
        a = Linearisation(watch, case.points, memory=memory, chunk=4)
        for use in (a.gradient, a.gram, a.diagonal, lambda a=a: a.matvec({}), lambda a=a: a.kernel("outflow")):
            use()
        most[memory] = watch.most
    assert most[2e4] < 3 * 2e4 < most[2.0**30]


@pytest.mark.parametrize("columns", [1, 90, 700, 701])
def test_the_gram_matrix_is_the_product(columns, generator):
    J = torch.randn(50, columns, generator=generator, dtype=torch.float64)
    assert_near(gram(J), J.mT @ J, 1e-14)
    for part in (J.mT, J[3:, : columns // 2 + 1], J[::2], J.float()):
        found = gram(part)
        assert found.dtype == part.dtype
        assert torch.equal(found, found.mT)
        assert_near(found, part.mT @ part, 1e-14 if part.dtype == J.dtype else 1e-5)
    out = J.new_empty(columns, columns)
    fill(J, out)  # as on other devices
    assert_near(out, J.mT @ J, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_cholesky_factor_solves_its_system(dtype, generator):
    J = torch.randn(60, 41, generator=generator, dtype=dtype)
    M, b = J.mT @ J + torch.eye(41, dtype=dtype), torch.randn(41, generator=generator, dtype=dtype)
    kept = b.clone()
    L = factored(M.clone())
    near = 1e-12 if dtype == torch.float64 else 1e-4
    assert_near(L.tril(), torch.linalg.cholesky(M), near)
    x = solution(L, b)
    assert x.dtype == L.dtype == dtype
    assert_near(M @ x, b, near)
    assert torch.equal(b, kept)


def test_a_matrix_that_is_not_positive_definite_has_no_cholesky_factor(generator):
    J = torch.randn(60, 41, generator=generator, dtype=torch.float64)
    assert factored(J.mT @ J - 50 * torch.eye(41, dtype=J.dtype)) is None
    for i, j in ((0, 0), (20, 3), (40, 40)):
        M = torch.eye(41, dtype=J.dtype)
        M[i, j] = M[j, i] = torch.nan
        assert factored(M) is None


# Refusals.


def test_what_cannot_be_a_variable_is_refused(generator):
    case = make(PROBLEMS[0], generator)
    layer, bias = case.net.linears[0], case.net.linears[0].bias
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    for layers, others, sentence in [
        ({}, {"b": 2 * torch.ones(2, requires_grad=True)}, "b is not a parameter"),
        ({}, {"n": torch.arange(3)}, "n is not a parameter"),
        ({"a": layer}, {"a": bias}, "a is the name of a layer and of another variable"),
        ({"a": layer, "b": layer}, {}, "One tensor is given as two variables"),
        ({"a": layer}, {"b": layer.weight}, "One tensor is given as two variables"),
        ({"a": normed}, {}, "computed by a parametrization"),
    ]:
        with pytest.raises(InputError, match=sentence):
            Sweep(case.system, layers, others)


def test_wrong_names_shapes_and_sizes_are_refused(generator):
    a = make(PROBLEMS[0], generator).linearised()
    W = torch.zeros(7, 5, dtype=torch.float64)
    for ask, sentence in [
        (lambda: a.matvec({"linears.9": W}), "Unknown variable 'linears.9'"),
        (lambda: a.matvec({"linears.1": W.mT}), r"linears.1 has shape \(5, 7\), but it must be \(7, 5\)"),
        (lambda: a.rmatvec(a.r[1:]), "there are .* residuals"),
        (lambda: a.kernel("pd"), "Unknown term 'pd' .did you mean 'pde'"),
        (lambda: a.kernel("pde", "no"), "Unknown term 'no'"),
        (lambda: Linearisation(a._sweep, a.points, memory=0), "memory is 0"),
        (lambda: Linearisation(a._sweep, a.points, chunk=0), "chunk 0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            ask()


# The tangent space of the matrices of rank r.


def product(generator, m=7, n=5, r=2):
    return Factors(
        torch.randn(r, n, generator=generator, dtype=torch.float64),
        torch.randn(m, r, generator=generator, dtype=torch.float64),
    )


def lowest(y):
    """The same factors with one direction lost."""
    return Factors(y.A, y.B @ torch.diag(torch.tensor([1.0, 0.0], dtype=y.B.dtype)))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (4, 4), (2, 6), (6, 2)])
def test_a_frame_is_orthonormal_and_spans_the_product(shape, generator):
    y = product(generator, *shape)
    for point in (y, lowest(y), Factors(y.A, 0 * y.B)):
        f = frame(point)
        Q = torch.cat([f.U, f.complement], dim=1)
        assert_near(Q.mT @ Q, torch.eye(shape[0], dtype=torch.float64), 1e-14)
        assert_near(f.V @ f.V.mT, torch.eye(2, dtype=torch.float64), 1e-14)
        BA = point.B @ point.A
        assert torch.allclose(f.U @ (f.U.mT @ BA @ f.V.mT) @ f.V, BA, atol=1e-13)
        assert f.dimension == 2 * (shape[0] + shape[1] - 2)


def test_coordinates_are_an_isometry(generator):
    f = frame(product(generator))
    z = torch.randn(f.dimension, generator=generator, dtype=torch.float64)
    D = f.vector(z)
    assert_near(torch.linalg.matrix_norm(D), torch.linalg.vector_norm(z), 1e-14)
    assert_near(f.coordinates(D), z, 1e-14)


def test_the_projection_is_that_of_the_theory(generator):
    y = product(generator)
    D = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    P_B = y.B @ torch.linalg.pinv(y.B)
    P_A = torch.linalg.pinv(y.A) @ y.A
    f = frame(y)
    assert_near(f.vector(f.coordinates(D)), P_B @ D + D @ P_A - P_B @ D @ P_A, 1e-12)


def test_every_velocity_of_the_factors_is_a_tangent_vector(generator):
    y = product(generator)
    f = frame(y)
    dA, dB = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in y)
    D = dB @ y.A + y.B @ dA
    assert_near(f.vector(f.coordinates(D)), D, 1e-13)


def damped(case, mu=1e-3):
    """The damped Gauss-Newton step in the coordinates of the frames, as changes of the weights."""
    a = case.linearised(case.adapted, {})
    frames = {name: frame(layer.factors) for name, layer in case.adapted.items()}
    J = a.columns(frames)
    z = -torch.linalg.solve(a.gram(frames) + mu * torch.eye(J.shape[1], dtype=J.dtype), J.mT @ a.r)
    parts = z.split([f.dimension for f in frames.values()])
    return {name: f.vector(part) for (name, f), part in zip(frames.items(), parts, strict=True)}


def test_a_step_does_not_depend_on_how_the_product_is_split(generator):
    case = make(PROBLEMS[0], generator)
    before = damped(case)
    for layer in case.adapted.values():
        S = torch.randn(2, 2, generator=generator, dtype=torch.float64) + 2 * torch.eye(2)
        change = layer.B.data @ layer.A.data
        layer.B.data, layer.A.data = layer.B.data @ S, torch.linalg.solve(S, layer.A.data)
        assert_near(layer.B.data @ layer.A.data, change, 1e-12)
    after = damped(case)
    for name, D in before.items():
        assert_near(after[name], D, 1e-9)


def test_a_step_is_defined_where_the_product_has_lost_rank(generator):
    case = make(PROBLEMS[0], generator)
    for layer in case.adapted.values():
        layer.B.data = lowest(layer.factors).B.data
        case.plain.get_submodule(next(n for n, x in case.adapted.items() if x is layer)).weight.data = layer.weight.data
    assert_linearises(case.linearised(), *case.dense(), generator)
    a = case.linearised(case.adapted, {})
    step = damped(case)
    assert float(a.r @ a.matvec(step)) < 0
    assert all(bool(torch.isfinite(D).all()) for D in step.values())


# The document.


def test_the_example_of_the_document_finds_the_spectrum_of_the_kernel():
    text = (Path(__file__).parents[1] / "docs/reference/linearisation.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 18
    found = {}
    exec(code, found)
    spectrum, a = found["spectrum"], found["a"]
    assert_near(spectrum.sum(), a.diagonal().sum(), 1e-12)
    assert float(spectrum[-1]) > 1e3 * float(spectrum[0].abs())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("problem", PROBLEMS[:2], ids=label)
def test_on_the_gpu_it_is_the_same(problem, generator):
    there = make(problem, generator, data=False)
    r, J = there.dense()
    there.net.to("cuda")
    points = {name: p.to("cuda") for name, p in there.points.items()}
    a = Linearisation(Sweep(there.system, there.layers, there.others), points)
    frames = {name: frame(layer.factors) for name, layer in there.adapted.items()}
    assert_near(a.r.cpu(), r, 1e-11)
    assert_near(a.columns().cpu(), J, 1e-11)
    assert_near(a.kernel().cpu(), J @ J.mT, 1e-11)
    assert_near(a.gram(frames), a.columns(frames).mT @ a.columns(frames), 1e-11)

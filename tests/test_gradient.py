"""Loss and gradient in one call: equal to plain autograd, and compiled never other than eager without a word.

Tracing is tested by itself, ``torch.compile`` replaced by nothing; the compiler is run once, on a tiny network.
"""

import itertools
import logging
import random

import pytest
import torch
from torch import nn
from torch.autograd import grad

from pinn_odelora.formulation import Term
from pinn_odelora.gradient import Gradient
from pinn_odelora.lowrank.layer import adapters
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import adapt, linear_targets
from pinn_odelora.nets import MLP
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay


def adapted_net(problem, generator, width=6, depth=3):
    """Hidden layers adapted with s ≠ 1 and away from their start."""
    net = MLP(problem.inputs, len(problem.fields), width, depth, generator=generator)
    adapt(net, linear_targets(net), 2, 0.6, orthonormal, generator)
    for layer in adapters(net).values():
        with torch.no_grad():
            layer.A.add_(torch.randn(layer.A.shape, generator=generator, dtype=torch.float64), alpha=0.3)
            layer.B.add_(torch.randn(layer.B.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return net


def factors_of(net):
    return [p for p in net.parameters() if p.requires_grad]


def points_of(system, n=24, seed=0):
    return draw_points(system.terms, interior=n, boundary=n // 3, seed=seed)


def assert_equal(found, exact, tolerance=1e-12):
    """Two pairs of loss and gradients."""
    (loss, gradients), (exact_loss, exact_gradients) = found, exact
    assert loss.terms.keys() == exact_loss.terms.keys()
    pairs = [(loss.total, exact_loss.total), *((loss.terms[k], exact_loss.terms[k]) for k in loss.terms)]
    for a, b in [*pairs, *zip(gradients, exact_gradients, strict=True)]:
        assert a.shape == b.shape
        assert float((a - b).detach().norm()) <= tolerance * float(b.detach().norm())


@pytest.mark.parametrize("problem", [Burgers(conditions="soft", weights={"bc": 3.0}), Kovasznay()])
@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_eager_is_plain_autograd(problem, engine, generator):
    """For the factors; and for W by a copy of the network whose dense layers have these weights."""
    net = adapted_net(problem, generator)
    system = System(problem, Solution(problem, net), derivatives=engine)
    points, layers, factors = points_of(system), adapters(net), factors_of(net)
    loss, gradients = Gradient(system, factors, layers)(points)
    assert not any(x.requires_grad for x in (loss.total, *loss.terms.values(), *gradients))
    assert all(layer._formed is None for layer in layers.values())

    dense = MLP(problem.inputs, len(problem.fields), 6, 3)
    with torch.no_grad():
        for mine, theirs in zip(dense.linears, net.linears, strict=True):
            mine.weight.copy_(theirs.weight)
            mine.bias.copy_(getattr(theirs, "base_layer", theirs).bias)
    plain = System(problem, Solution(problem, net), derivatives="autograd").loss(points)
    merged = System(problem, Solution(problem, dense), derivatives="autograd").loss(points)
    W = [dense.get_submodule(name).weight for name in layers]
    exact = [*grad(plain.total, factors), *grad(merged.total, W)]
    assert_equal((loss, gradients), (plain, exact))


def test_without_adapters_it_is_the_gradient_of_all_parameters(generator):
    problem = Burgers()
    net = MLP(2, 1, 6, 2, generator=generator)
    system = System(problem, Solution(problem, net))
    points, parameters = points_of(system), list(net.parameters())
    found = Gradient(system, parameters)(points)
    loss = System(problem, system.solution, derivatives="autograd").loss(points)
    assert_equal(found, (loss, grad(loss.total, parameters)))


@pytest.fixture
def compiler(monkeypatch):
    """``torch.compile`` that hands the graph back; counts what it is given."""
    graphs = []
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graphs.append(graph) or graph)
    return graphs


def adapted(problem, generator, net=None, compile=True, extra=None, **system):
    net = adapted_net(problem, generator, depth=2) if net is None else net
    made = System(problem, Solution(problem, net), extra, **system)
    return Gradient(made, factors_of(net), adapters(net), compile=compile), net, points_of(made)


@pytest.mark.parametrize("engine", ["auto", "autograd"])
def test_the_trace_follows_weights_and_points(engine, generator, compiler, caplog):
    """Tensors of the module are inputs of the trace, not constants in it: factors, frozen weights and buffers."""
    gradient, net, points = adapted(Burgers(conditions="soft"), generator, derivatives=engine)
    assert_equal(gradient(points), gradient.eager(points))
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    other = points_of(gradient.system, seed=1)
    assert_equal(gradient(other), gradient.eager(other))
    assert float((gradient(points)[0].total - gradient(other)[0].total).abs()) > 1e-6
    assert len(compiler) == 1
    assert not spoken(caplog)


def test_another_number_of_points_is_traced_anew(generator, compiler):
    gradient, _, points = adapted(Burgers(), generator)
    more = points_of(gradient.system, n=30)
    for p, traces in [(points, 1), (more, 2), (points, 2), (more, 2)]:
        assert_equal(gradient(p), gradient.eager(p))
        assert len(compiler) == traces


def test_the_step_stays_eager_by_default(generator, compiler):
    gradient, _, points = adapted(Burgers(), generator, compile=False)
    gradient(points)
    assert not compiler


def spoken(caplog):
    return [record for record in caplog.records if record.name.startswith("pinn_odelora")]


def warned(caplog, *words):
    (record,) = spoken(caplog)
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith("derivatives.compile: ")
    assert "eager" in message
    assert all(word in message for word in words)
    assert "\n" not in message


def test_a_compiler_that_fails_leaves_the_step_eager(generator, monkeypatch, caplog):
    def broken(graph, **options):
        raise RuntimeError("no working C++ compiler\nand a page of text")

    monkeypatch.setattr(torch, "compile", broken)
    gradient, _, points = adapted(Burgers(), generator)
    for _ in range(2):
        assert_equal(gradient(points), gradient.eager(points), tolerance=0)
    warned(caplog, "no working C++ compiler")


def test_a_compiler_that_fails_at_the_first_call_leaves_the_step_eager(generator, monkeypatch, caplog):
    def lazy(graph, **options):
        def broken(*args):
            raise OSError

        return broken

    monkeypatch.setattr(torch, "compile", lazy)
    gradient, _, points = adapted(Burgers(), generator)
    assert_equal(gradient(points), gradient.eager(points), tolerance=0)
    warned(caplog, "OSError")


@pytest.mark.parametrize("spoilt", [0, -1])
def test_a_compiler_that_computes_something_else_leaves_the_step_eager(spoilt, generator, monkeypatch, caplog):
    """In the loss alone, and in the gradient alone."""

    def wrong(graph, **options):
        def spoiling(*args):
            found = list(graph(*args))
            found[spoilt] = found[spoilt] * (1 + 1e-6)
            return found

        return spoiling

    monkeypatch.setattr(torch, "compile", wrong)
    gradient, _, points = adapted(Burgers(), generator)
    assert_equal(gradient(points), gradient.eager(points), tolerance=0)
    warned(caplog, "differs by")


class Branching(nn.Module):
    """Chooses its scale by looking at the values."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net(x)
        return z if len(x) <= 6 or float(z.detach().sum()) > 1e3 else 0.5 * z


def test_a_network_that_looks_at_values_stays_eager(generator, compiler, caplog):
    net = Branching(adapted_net(Burgers(), generator, depth=2))
    gradient, _, points = adapted(Burgers(), generator, net, derivatives="autograd")
    assert_equal(gradient(points), gradient.eager(points), tolerance=0)
    warned(caplog, "not compiled")


class Drawing(Branching):
    """Scales its outputs by a number drawn anew at every call, once awake."""

    def __init__(self, net, draw):
        super().__init__(net)
        self.draw = draw
        self.awake = False

    def forward(self, x):
        return self.net(x) * (self.draw() if self.awake else 1.0)


@pytest.mark.parametrize("engine", ["jets", "autograd"])
@pytest.mark.parametrize("by", ["the host", "a generator of tensors"])
def test_a_network_that_draws_at_random_stays_eager(engine, by, generator, compiler, caplog):
    """What the host draws would be frozen in the trace; the check against the eager step finds it out."""
    host = random.Random(0)
    draw = host.random if by == "the host" else lambda: torch.rand(1, generator=generator, dtype=torch.float64)
    net = Drawing(adapted_net(Burgers(), generator, depth=2), draw)
    gradient, _, points = adapted(Burgers(), generator, net, derivatives=engine)
    gradient.eager(points)
    net.awake = True
    losses = {float(gradient(points)[0].total) for _ in range(3)}
    assert len(losses) == 3, "drawn anew"
    warned(caplog)


def test_a_residual_that_changes_stays_eager(generator, compiler, caplog):
    """A counter is frozen in the trace; the check against the eager step finds it out."""
    counter = itertools.count(1)
    where = Burgers.region
    extra = {"ramp": Term(where, lambda f: next(counter) * f.u, coupled=True)}
    gradient, _, points = adapted(Burgers(), generator, extra=extra, derivatives="autograd")
    losses = [float(gradient(points)[0].terms["ramp"]) for _ in range(3)]
    warned(caplog, "differs by")
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # inductor's own
def test_the_compiler_once(generator, caplog):
    """The real one, for a tiny net: it takes seconds."""
    problem = Burgers()
    net = adapted_net(problem, generator, width=3, depth=2)
    gradient, _, points = adapted(problem, generator, net)
    for seed in (0, 1):
        points = points_of(gradient.system, seed=seed)
        assert_equal(gradient(points), gradient.eager(points), tolerance=1e-10)
        with torch.no_grad():
            for factor in factors_of(net):
                factor *= 1.1
    assert not spoken(caplog)

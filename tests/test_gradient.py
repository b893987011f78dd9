"""Loss and gradient in one call: those of plain autograd, for the factors and for the effective weights."""

import pytest
import torch
from torch.autograd import grad

from pinn_odelora.gradient import Gradient
from pinn_odelora.lowrank.layer import adapters
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.nets import MLP
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay


def adapted_net(problem, generator, width=6, depth=3):
    """Hidden layers adapted with s ≠ 1 and away from their start."""
    net = MLP(problem.inputs, len(problem.fields), width, depth, generator=generator)
    put_factors(net, linear_targets(net), 2, 0.6, orthonormal, generator)
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
def test_loss_and_gradients_are_those_of_plain_autograd(problem, engine, generator):
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

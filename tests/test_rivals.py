"""Rivals on factors by torch's optimisers: their steps are those of the papers, or of another implementation."""

import copy
import sys

import pytest
import torch
from torch import linalg, nn

from pinn_odelora.errors import InputError
from pinn_odelora.integrators import ROS2, LinearlyImplicit, RungeKutta, tableau
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors, thaw
from pinn_odelora.methods import factor_muon, full_implicit, full_muon, full_natural, full_soap, lora_lbfgs, lora_plus
from pinn_odelora.nets import MLP
from pinn_odelora.system import Solution
from problems.heat import Heat


@pytest.fixture
def trained(generator):
    """A network with two adapted layers, whose last layer and biases are trained too; its groups and a closure."""
    net = MLP(4, 1, width=9, depth=3, generator=generator)
    put_factors(net, linear_targets(net), 2, 1.0, orthonormal, generator)
    thaw(net, ["last", "biases"])
    problem = Heat()

    def closure():  # other points each time, so that a memory of gradients is not the gradient
        x, y = (torch.randn(20, k, generator=generator, dtype=torch.float64) for k in (4, 1))
        net.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss.detach()

    return Solution(problem, net), closure


def test_lora_plus_takes_the_steps_of_peft():
    loraplus = pytest.importorskip("peft.optimizers")
    import peft

    torch.manual_seed(3)
    base = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))
    config = peft.LoraConfig(r=2, target_modules=["2"], modules_to_save=["4"], init_lora_weights="gaussian")
    theirs = peft.get_peft_model(base, config)
    ours = copy.deepcopy(theirs)
    x, target = torch.randn(32, 3), torch.randn(32, 1)
    # PEFT gives groups of names; ours are the pair and then single tensors, as ``Method.groups`` makes them.
    layer = ours.base_model.model[2]
    pair = {"params": [layer.lora_A["default"].weight, layer.lora_B["default"].weight]}
    others = [p for p in ours.parameters() if p.requires_grad and all(p is not q for q in pair["params"])]
    groups = [pair, *({"params": [p]} for p in others)]
    assert len(others) == 2
    stepped = {
        theirs: loraplus.create_loraplus_optimizer(theirs, torch.optim.Adam, lr=1e-2, loraplus_lr_ratio=7.0),
        ours: lora_plus(lr=1e-2, ratio=7.0).optimizer(groups),
    }
    for model, optimizer in stepped.items():
        for _ in range(4):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def msign(g):
    """U Vᵀ exactly, the singular values that are rounding left out."""
    U, sigma, Vh = linalg.svd(g, full_matrices=False)
    return (U * (sigma > 1e-12 * sigma[0])) @ Vh


def test_muon_moves_each_factor_by_the_orthogonal_part_of_its_momentum(trained):
    """Against the formula with an exact singular value decomposition; torch's iteration leaves values around 1."""
    solution, closure = trained
    lr, mu = 1e-3, 0.9
    method = factor_muon(lr=lr, momentum=mu)
    groups = method.groups(solution)
    optimizer = method.optimizer(groups)
    pairs = [p for group in groups for p in group["params"] if len(group["params"]) == 2]
    memory = [torch.zeros_like(p) for p in pairs]
    for _ in range(3):
        before = [p.detach().clone() for p in pairs]
        optimizer.step(closure)
        for p, old, M in zip(pairs, before, memory, strict=True):
            M.mul_(mu).add_(p.grad, alpha=1 - mu)
            rows, columns = p.shape
            expected = -lr * max(1, rows / columns) ** 0.5 * msign((1 - mu) * p.grad + mu * M)
            moved = p.detach() - old
            assert float((moved * expected).sum() / moved.norm() / expected.norm()) > 0.97
            assert 0.6 < float(moved.norm() / expected.norm()) < 1.3


def test_muon_leaves_the_last_layer_and_the_biases_to_adam(trained):
    solution, closure = trained
    reference = copy.deepcopy(solution)
    method = factor_muon(lr=1e-3)
    groups = method.groups(solution)
    method.optimizer(groups).step(closure)
    moved = [p for group in groups for p in group["params"] if len(group["params"]) == 1]
    old = dict(reference.named_parameters())
    names = {id(p): name for name, p in solution.named_parameters()}
    assert len(moved) == 5
    for p in moved:  # the first step of Adam is the sign of the gradient
        step = p.detach() - old[names[id(p)]].detach()
        assert torch.allclose(step, -1e-3 * p.grad.sign(), rtol=1e-3, atol=1e-9)


def test_muon_continues_from_its_state_with_the_same_bits(trained, generator):
    solution, closure = trained
    method = factor_muon(lr=1e-2)
    optimizer = method.optimizer(method.groups(solution))
    for _ in range(3):
        optimizer.step(closure)
    weights, state = copy.deepcopy(solution.state_dict()), copy.deepcopy(optimizer.state_dict())
    ends, drawn = [], generator.get_state()
    for resumed in (False, True):
        generator.set_state(drawn)
        if resumed:
            solution.load_state_dict(weights)
            optimizer = method.optimizer(method.groups(solution))
            optimizer.load_state_dict(state)
        for _ in range(3):
            optimizer.step(closure)
        ends.append([p.detach().clone() for p in solution.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_muon_refuses_a_momentum_that_never_moves():
    with pytest.raises(InputError, match=r"momentum is 1\.0, but it must be a number of at least 0 and below 1"):
        factor_muon(momentum=1.0)


# All weights.


@pytest.fixture
def whole(generator):
    """A network all of whose weights are trained, and a closure at fixed points."""
    solution = Solution(Heat(), MLP(4, 1, width=9, depth=3, generator=generator))
    x, y = (torch.randn(20, k, generator=generator, dtype=torch.float64) for k in (4, 1))

    def closure():
        solution.zero_grad()
        loss = (solution.net(x) - y).square().mean()
        loss.backward()
        return loss.detach()

    return solution, closure


def test_muon_on_weights_is_for_those_between_the_first_and_the_last(whole):
    """They take the steps of torch's Muon, and everything else those of torch's Adam."""
    solution, closure = whole
    other = copy.deepcopy(solution)
    method = full_muon(lr=1e-3, momentum=0.9)
    optimizer = method.optimizer(method.groups(solution))
    hidden = [p for p in other.parameters() if p.shape == (9, 9)]
    others = [p for p in other.parameters() if p.shape != (9, 9)]
    assert (len(hidden), len(others)) == (2, 6)
    references = torch.optim.Muon(hidden, lr=1e-3, momentum=0.9, weight_decay=0.0), torch.optim.Adam(others, lr=1e-3)
    for _ in range(4):
        optimizer.step(closure)
        for p, q in zip(other.parameters(), solution.parameters(), strict=True):
            p.grad = q.grad.clone()
        for reference in references:
            reference.step()
    assert all(torch.equal(p, q) for p, q in zip(solution.parameters(), other.parameters(), strict=True))


def test_muon_takes_all_weights_where_none_is_hidden():
    solution = Solution(Heat(), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)))
    optimizer = full_muon().optimizer(full_muon().groups(solution))
    assert [[p.ndim for p in group["params"]] for group in optimizer.param_groups] == [[2, 2], [1, 1]]


def test_soap_is_that_of_the_package_without_weight_decay(whole):
    theirs = pytest.importorskip("pytorch_optimizer").SOAP
    solution, closure = whole
    other = copy.deepcopy(solution)
    method = full_soap(lr=1e-2)
    optimizer = method.optimizer(method.groups(solution))
    reference = theirs(other.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(15):
        optimizer.step(closure)
        for p, q in zip(other.parameters(), solution.parameters(), strict=True):
            p.grad = q.grad.clone()
        reference.step()
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(solution.parameters(), other.parameters(), strict=True))


def test_soap_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(InputError, match=r"full_soap needs the package pytorch_optimizer: pip install"):
        full_soap()


def test_natural_gradient_is_full_implicit_without_momentum():
    assert full_natural(LinearlyImplicit()).integrator == LinearlyImplicit(momentum=0.0)
    assert full_natural(LinearlyImplicit(momentum=0.4)).integrator.momentum == 0.4
    assert full_natural(ROS2()).integrator == full_implicit(ROS2()).integrator
    assert full_natural(LinearlyImplicit()).name == "full_natural"
    with pytest.raises(InputError, match="needs an implicit scheme"):
        full_natural(RungeKutta(tableau.EULER))


def test_lbfgs_on_factors_moves_nothing_else(trained):
    solution, closure = trained
    before = {name: p.detach().clone() for name, p in solution.named_parameters()}
    method = lora_lbfgs()
    method.optimizer(method.groups(solution)).step(closure)
    moved = {name for name, p in solution.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in solution.named_parameters() if p.requires_grad}

"""Rivals on factors by torch's optimisers: their steps are those of the papers, or of another implementation."""

import copy

import pytest
import torch
from torch import linalg, nn

from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors, thaw
from pinn_odelora.methods import factor_muon, lora_plus
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

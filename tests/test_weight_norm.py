"""Weight norm in a network is folded into W0: the same function, which is then adapted like any other."""

import copy
import logging

import pytest
import torch
from torch import nn

import pinn_odelora as po
from pinn_odelora.errors import InputError
from pinn_odelora.nets import MLP, check_network, copied
from problems.burgers import Burgers

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
FORMS = [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm]
BUDGET = po.Budget(steps=2)
POINTS = po.Sampling(interior=40, boundary=12)


def network(apply=None, dim=0):
    net = MLP(2, 1, width=6, depth=3, generator=torch.Generator().manual_seed(1))
    for linear in net.linears if apply else ():
        apply(linear, dim=dim)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.mul_(1.3 if name.endswith(("weight_g", "original0")) else 1.0)
    return net


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("apply", FORMS)
def test_a_folded_network_is_the_same_function_with_plain_weights(apply, dim, caplog):
    net, x = network(apply, dim), torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(7, 2)
    expected = net(x).detach()
    with caplog.at_level(logging.INFO):
        folded = check_network(net, Burgers())
    assert [*folded.state_dict()] == [*network().state_dict()]
    torch.testing.assert_close(folded(x), expected, rtol=1e-14, atol=1e-14)
    assert all(p.is_leaf for p in folded.parameters())
    assert caplog.messages == [
        "The weight norm of linears.0, linears.1, linears.2 and 1 more layers is folded into the weights, which leaves "
        "the function as it is."
    ]


@pytest.mark.parametrize("apply", FORMS)
def test_it_is_adapted_as_the_plain_network_is(apply):
    net = network(apply)
    x = torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(7, 2)
    before, names = net(x).detach(), [*net.state_dict()]
    plain = check_network(copied(net), Burgers())
    results = [po.adapt(each, Burgers(nu=0.03), rank=2, budget=BUDGET, points=POINTS) for each in (net, plain)]
    losses = [[row["loss"] for row in result.history] for result in results]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0]
    assert [*net.state_dict()] == names  # the caller's network is not changed
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("apply", FORMS)
def test_a_copy_keeps_weight_norm_and_is_one_of_its_own(apply):
    net, x = network(apply), torch.linspace(-1, 1, 14, dtype=torch.float64).reshape(7, 2)
    net(x)
    if apply is nn.utils.weight_norm:
        with pytest.raises(RuntimeError, match="deepcopy"):
            copy.deepcopy(net)
    made = copied(net)
    assert [*made.state_dict()] == [*net.state_dict()]
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(2)
    assert not torch.allclose(made(x), net(x))
    assert torch.equal(net(x), network(apply)(x))


@pytest.mark.parametrize("apply", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norm_is_refused(apply):
    net = network()
    apply(net.linears[1])
    with pytest.raises(InputError, match=r"^The weight of layer linears\.1 has spectral norm, which an adapted weight"):
        po.adapt(net, Burgers(nu=0.03), rank=2, budget=BUDGET, points=POINTS)

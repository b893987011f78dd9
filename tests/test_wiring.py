"""First, hidden and last layers of networks of many wirings, and what follows: targets, ranks, what is thawed."""

import pytest
import torch
from torch import nn

import pinn_odelora as po
from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.start import pissa
from pinn_odelora.lowrank.targets import linear_targets, put_factors, thaw
from pinn_odelora.lowrank.wiring import Wiring
from pinn_odelora.nets import MLP

W = 6
"""Units of a hidden layer."""
X = torch.rand(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear(n, m):
    return nn.Linear(n, m, dtype=torch.float64)


class Net(nn.Module):
    """A network that is given as its layers and a function of (layers, x)."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.function(self, x)


def tanh_of(*layers):
    def chain(net, x):
        for name in layers:
            x = torch.tanh(net.get_submodule(name)(x))
        return x

    return chain


def per_unknown(depth=3, width=W):
    nets = nn.ModuleDict({name: MLP(2, 1, width=width, depth=depth) for name in "uv"})
    return Net(lambda net, x: torch.cat([n(x) for n in net.nets.values()], dim=1), nets=nets)


def pfnn(width=W):
    """Two shared layers, then a branch for each of three fields, as the parallel networks of DeepXDE."""

    def forward(net, x):
        x = tanh_of("a", "b")(net, x)
        return torch.cat([out(torch.tanh(hid(x))) for hid, out in zip(net.hidden, net.out, strict=True)], dim=1)

    several = lambda m: nn.ModuleList(linear(width, m) for _ in range(3))
    return Net(forward, a=linear(2, width), b=linear(width, width), hidden=several(width), out=several(1))


def resnet():
    def forward(net, x):
        x = torch.tanh(net.a(x))
        for k in "bcd":
            x = x + torch.tanh(net.get_submodule(k)(x))
        return net.out(x)

    return Net(forward, out=linear(W, 1), **{k: linear(W, W) for k in "bcd"}, a=linear(2, W))


def modified_mlp():
    """Both encoders gate every layer (Wang, Teng and Perdikaris, 2021)."""

    def forward(net, x):
        u, v = torch.tanh(net.u(x)), torch.tanh(net.v(x))
        h = torch.tanh(net.a(x))
        for k in "bc":
            z = torch.tanh(net.get_submodule(k)(h))
            h = z * u + (1 - z) * v
        return net.out(h)

    return Net(
        forward, u=linear(2, W), v=linear(2, W), a=linear(2, W), b=linear(W, W), c=linear(W, W), out=linear(W, 1)
    )


def pirate():
    """An embedding, two gates, and one block with a trained skip connection, closed at first (Wang et al., 2024)."""

    def forward(net, x):
        e = torch.cat([torch.cos(x @ net.B), torch.sin(x @ net.B)], dim=1)
        u, v = torch.tanh(net.u(e)), torch.tanh(net.v(e))
        gated = lambda z: z * u + (1 - z) * v
        h = gated(torch.tanh(net.a(e)))
        h = gated(torch.tanh(net.b(h)))
        return net.out(net.alpha * torch.tanh(net.c(h)) + (1 - net.alpha) * e)

    net = Net(forward, **{k: linear(W, W) for k in "uvabc"}, out=linear(W, 1))
    net.register_buffer("B", torch.rand(2, W // 2, dtype=torch.float64))
    net.alpha = nn.Parameter(torch.zeros((), dtype=torch.float64))
    return net


def deeponet():
    def forward(net, x):
        branch, trunk = net.branch(x[:, :1]), net.trunk(x[:, 1:])
        return (branch * trunk).sum(dim=1, keepdim=True)

    return Net(forward, branch=MLP(1, W, width=W, depth=2), trunk=MLP(1, W, width=W, depth=2))


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(30 * x)


def siren():
    return nn.Sequential(linear(2, W), Sine(), linear(W, W), Sine(), linear(W, W), Sine(), linear(W, 1))


def shared():
    """A hidden layer that is applied twice."""
    forward = lambda net, x: net.out(tanh_of("a", "b", "b")(net, x))
    return Net(forward, out=linear(W, 1), b=linear(W, W), a=linear(2, W))


def mirrored():
    """An even function: the whole network is called twice."""
    return Net(lambda net, x: net.mlp(x) + net.mlp(-x), mlp=MLP(2, 1, width=W, depth=2))


def unused():
    """A head that is called, but not returned, and a layer that is never called."""

    def forward(net, x):
        h = tanh_of("a", "b")(net, x)
        net.head(h)
        return net.out(h)

    return Net(forward, old=linear(3, 3), a=linear(2, W), b=linear(W, W), out=linear(W, 1), head=linear(W, 1))


def dense():
    """The coordinates enter every layer, and a linear part is added to the output."""

    def forward(net, x):
        h = torch.tanh(net.a(x))
        h = torch.tanh(net.b(torch.cat([h, x], dim=1)))
        return net.out(torch.cat([h, x], dim=1)) + net.part(x)

    return Net(forward, part=linear(2, 1), a=linear(2, W), b=linear(W + 2, W), out=linear(W + 2, 1))


def stream():
    """u = ψ_y, v = -ψ_x by automatic differentiation inside the network."""

    def forward(net, x):
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            (g,) = torch.autograd.grad(net.psi(x).sum(), x, create_graph=True)
        return torch.stack([g[:, 1], -g[:, 0]], dim=1)

    return Net(forward, psi=MLP(2, 1, width=W, depth=3))


def mapped():
    """The network maps itself over the points."""
    return Net(lambda net, x: torch.func.vmap(net.mlp)(x), mlp=MLP(2, 1, width=W, depth=3))


def functional():
    """Weights of layers, without their calls; and one that is not used."""

    def forward(net, x):
        for k in "ab":
            x = torch.tanh(nn.functional.linear(x, net.get_submodule(k).weight, net.get_submodule(k).bias))
        return net.out(x)

    return Net(forward, old=linear(2, 2), a=linear(2, W), b=linear(W, W), out=linear(W, 1))


def compact(wiring):
    return tuple(" ".join(names) for names in (wiring.first, wiring.hidden, wiring.last, wiring.unused))


def of_mlps(names, *numbers):
    return " ".join(f"{name}.linears.{k}" for name in names for k in numbers)


UV = ("nets.u", "nets.v")
EXPECTED = {
    per_unknown: (of_mlps(UV, 0), of_mlps(UV, 1, 2), of_mlps(UV, 3), ""),
    pfnn: ("a", "b hidden.0 hidden.1 hidden.2", "out.0 out.1 out.2", ""),
    resnet: ("a", "b c d", "out", ""),
    modified_mlp: ("u v a", "b c", "out", ""),
    pirate: ("u v a", "b c", "out", ""),
    deeponet: (of_mlps(("branch", "trunk"), 0), of_mlps(("branch", "trunk"), 1, 2), "", ""),
    siren: ("0", "2 4", "6", ""),
    shared: ("a", "b", "out", ""),
    mirrored: ("mlp.linears.0", "mlp.linears.1", "mlp.linears.2", ""),
    unused: ("a", "b", "out", "old head"),
    dense: ("part a", "b", "part out", ""),
}
BY_ORDER = {
    stream: ("psi.linears.0", "psi.linears.1 psi.linears.2", "psi.linears.3", ""),
    mapped: ("mlp.linears.0", "mlp.linears.1 mlp.linears.2", "mlp.linears.3", ""),
    functional: ("a", "b", "out", "old"),
}


@pytest.mark.parametrize(("make", "expected"), (EXPECTED | BY_ORDER).items(), ids=lambda x: getattr(x, "__name__", ""))
def test_layers_by_wiring(make, expected):
    net = make()
    net.requires_grad_(False)  # as a frozen network comes
    wiring = Wiring.of(net, X)
    assert compact(wiring) == expected
    assert wiring.by_order == (make in BY_ORDER)
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_perceptron_has_what_it_has_by_order(depth):
    net = MLP(2, 3, width=W, depth=depth)
    assert compact(Wiring.of(net, X)) == compact(Wiring.of(net))
    assert not Wiring.of(net, X).by_order
    assert Wiring.of(net).by_order


def test_last_layers_are_as_large_as_hidden_ones_only_with_more_rows_than_outputs():
    narrow = nn.Sequential(linear(2, W), nn.Tanh(), linear(W, W), nn.Tanh(), linear(W, W))
    assert compact(Wiring.of(narrow, X)) == ("0", "2", "4", "")
    assert compact(Wiring.of(nn.Sequential(narrow, nn.Softmax(dim=1)), X))[2] == "0.4"
    total = Net(lambda net, x: net.body(x).sum(dim=1, keepdim=True), body=narrow)
    assert compact(Wiring.of(total, X)) == ("body.0", "body.2 body.4", "", "")
    narrow[4] = linear(W, W // 2)  # half as many rows as columns
    assert compact(Wiring.of(total, X)) == ("body.0", "body.2", "body.4", "")


def test_a_network_without_linear_layers_is_told_what_trains_it():
    with pytest.raises(InputError, match=r"no linear layer that could be given low-rank factors; .* full_lbfgs"):
        linear_targets(nn.Sequential(nn.Tanh()))


# Ranks.


def test_every_layer_has_the_rank_that_it_can_have_and_its_scale(generator):
    net, lora = pfnn(), po.LoRA(alpha=6.0, scaling="rslora")
    layers = put_factors(net, linear_targets(net, "*"), 4, lora.scale_at, pissa, generator)
    ranks = {name: layer.rank for name, layer in layers.items()}
    assert {r for name, r in ranks.items() if name.startswith("out")} == {1}
    assert (ranks["a"], ranks["b"]) == (2, 4)
    for name, layer in layers.items():
        assert layer.scale == 6.0 / ranks[name] ** 0.5
        assert layer.A.shape == (ranks[name], layer.weight.shape[1])


def test_all_last_layers_are_thawed_unless_they_are_adapted(generator):
    net = per_unknown()
    wiring = Wiring.of(net, X)
    put_factors(net, linear_targets(net, ["nets.?.linears.[12]", "nets.v.linears.3"]), 2, 1.0, pissa, generator)
    thaw(net, ["last"], wiring.last)
    whole = [name for name, p in net.named_parameters() if p.requires_grad and "lora" not in name]
    assert whole == ["nets.u.linears.3.weight", "nets.u.linears.3.bias"]

"""First, hidden and last layers of networks of many wirings, and what follows: targets, ranks, what is thawed."""

import copy

import pytest
import torch
from torch import nn

import pinn_odelora as po
from pinn_odelora.errors import InputError
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.families.span import Span
from pinn_odelora.linearisation import Linearisation
from pinn_odelora.lowrank.adapter_files import load_adapter, save_adapter
from pinn_odelora.lowrank.start import pissa
from pinn_odelora.lowrank.targets import linear_targets, put_factors, thaw
from pinn_odelora.lowrank.wiring import Wiring
from pinn_odelora.nets import MLP
from pinn_odelora.ntk.adapting import adapt_linearised
from pinn_odelora.selection.initial_rank import initial_rank
from problems.heat import Heat
from problems.kovasznay import Kovasznay

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
    pirate: ("", "u v a b c", "out", ""),
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
    with pytest.raises(InputError, match=r"no torch\.nn\.Linear, .*full_lbfgs and full_implicit"):
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
    thaw(net, ["last"], wiring.ends)
    whole = [name for name, p in net.named_parameters() if p.requires_grad and "lora" not in name]
    assert whole == ["nets.u.linears.3.weight", "nets.u.linears.3.bias"]


@pytest.mark.filterwarnings("ignore")
def test_peft_reads_ranks_and_whole_layers_of_every_kind(generator, tmp_path):
    """A narrow layer at its own rank, α/√r by layer, and three last layers with their biases."""
    peft = pytest.importorskip("peft")
    net, lora = pfnn(), po.LoRA(alpha=6.0, scaling="rslora")
    fresh, wiring = copy.deepcopy(net), Wiring.of(net, X)
    targets = linear_targets(net, ["a", "b", "hidden.*"], wiring)
    layers = put_factors(net, targets, 4, lora.scale_at, pissa, generator)
    thaw(net, ["last"], wiring.ends)
    disturbed(net, generator)
    save_adapter(net, tmp_path, base="b")
    load_adapter(loaded := copy.deepcopy(fresh), tmp_path)
    torch.testing.assert_close(loaded(X), net(X), rtol=0, atol=1e-13)
    read = peft.PeftModel.from_pretrained(copy.deepcopy(fresh), tmp_path)
    torch.testing.assert_close(read(X), net(X), rtol=0, atol=1e-13)
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, rank_pattern={"a": 2}, target_modules=[*targets])
    made = peft.get_peft_model(fresh, config).base_model.model
    assert {name: made.get_submodule(name).scaling["default"] for name in layers} == {
        name: pytest.approx(layer.scale, rel=1e-15) for name, layer in layers.items()
    }


def disturbed(net, generator):
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)


# Runs.


def rotation(c=1.3):
    """u' = v, v' = -c² u, u(0) = 1, v(0) = 0."""

    def ansatz(p):
        return torch.cat([torch.ones_like(p.t), torch.zeros_like(p.t)], dim=1), p.t

    def reference(p, c):
        return torch.cat([torch.cos(c * p.t), -c * torch.sin(c * p.t)], dim=1)

    return po.problem(
        coords="t",
        fields="uv",
        region=po.Box(t=(0, 1)),
        c=po.parameter(1.0, c, above=0),
        swing=lambda f, c: (f.u_t - f.v, f.v_t + c**2 * f.u),
        ic=(po.Box(t=(0, 1)).face(t=0.0), lambda f: (f.u - 1, f.v)),
        ansatz=ansatz,
        enforced="ic",
        reference=reference,
    )


def two(widths=(W, W)):
    """A network for each unknown, with hidden layers of other sizes; for one coordinate."""
    nets = nn.ModuleDict({n: MLP(1, 1, width=w, depth=3) for n, w in zip("uv", widths, strict=True)})
    return Net(lambda net, x: torch.cat([n(x) for n in net.nets.values()], dim=1), nets=nets)


SMALL = {"points": po.Sampling(interior=40, boundary=8), "log": po.Log(every=4, test=16, heldout=16), "seed": 3}


def few(net, steps=4, **settings):
    return po.steps(net, rotation(), budget=po.Budget(steps=steps), **SMALL | settings)


def test_a_run_says_what_was_chosen_and_its_summary_keeps_it():
    run = few(two((W, 3)), rank=5)
    assert run.chosen.splitlines() == [
        "Adapted: nets.u.linears.1, .2 (6 x 6) at rank 5, nets.v.linears.1, .2 (3 x 3) at rank 3, the largest there; "
        "trained whole: nets.u.linears.0, nets.v.linears.0 (inputs), nets.u.linears.3, nets.v.linears.3 (outputs).",
        "Derivatives: swing by jets (order 1, 2 products a layer).",
    ]
    for _ in run:
        pass
    summary = run.result().summary
    assert [summary["layers"], summary["derivatives"]] == run.chosen.splitlines()
    whole = [name for name, p in run.net.named_parameters() if p.requires_grad and "lora" not in name]
    assert whole == [f"{name}.linears.{i}.{kind}" for name in UV for i in (0, 3) for kind in ("weight", "bias")]
    assert summary["ranks"] == run.ranks == {**dict.fromkeys(of_mlps(UV[:1], 1, 2).split(), 5), **V_AT_3}


V_AT_3 = dict.fromkeys(of_mlps(UV[1:], 1, 2).split(), 3)


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (lambda: two(), {"lora": po.LoRA(also=())}, ["Adapted: nets.u.linears.1, .2, nets.v.linears.1, .2 (6 x 6) at"]),
        (lambda: two(), {"lora": po.LoRA(also=["biases"])}, ["; trained whole: all biases."]),
        (lambda: two(), {"lora": po.LoRA(rank="adaptive")}, ["at rank 2, which follows the gradient; trained"]),
        (lambda: two(), {"method": po.methods.full_adam()}, ["Trained: all 206 weights of the network."]),
        (
            lambda: two(),
            {"derivatives": "autograd"},
            ["swing by nested reverse mode (order 1, 3 products", "=autograd"],
        ),
        (lambda: two((6, 6)), {"lora": po.LoRA(targets="*")}, ["(6 x 1) at rank 1, the largest there"]),
    ],
    ids=["factors", "biases", "adaptive", "weights", "autograd", "all"],
)
def test_the_lines(make, settings, said):
    lines = few(make(), **settings).chosen
    assert all(text in lines for text in said), lines


def test_a_continued_run_with_a_rank_for_each_layer_has_the_same_bits():
    whole, first = few(two((W, 3)), rank=5), few(two((W, 3)), steps=2, rank=5)
    for run in (whole, first):
        for _ in run:
            pass
    then = few(two((W, 3)), rank=5)
    then.load_state_dict(first.state_dict())
    for _ in then:
        pass
    expected, found = whole.result().net.state_dict(), then.result().net.state_dict()
    assert all(torch.equal(x, found[name]) for name, x in expected.items())
    assert any("nets.v.linears.3.weight" in name for name in expected)


def test_an_adaptive_rank_begins_and_ends_at_most_where_the_layer_does():
    rule = po.AdaptiveRank(start=4, max=6, outside=0.0)
    run = few(two((W, 3)), steps=6, lora=po.LoRA(rank="adaptive", adaptive=rule))
    assert run.ranks == {**dict.fromkeys(of_mlps(UV[:1], 1, 2).split(), 4), **V_AT_3}
    for _ in run:
        pass
    ranks = run.result().ranks
    assert all(ranks[name] == 3 for name in V_AT_3)
    assert run.result().failure == ""


def test_a_family_has_a_rank_for_each_layer():
    made = Parametric(two((W, 3)), rotation(), ("c",), po.LoRA(rank=5))
    assert {name: x.rank for name, x in made.layers.items()} == {n: 3 if ".v." in n else 5 for n in made.layers}
    ends = 2 * W + 2 * 3 + (W + 1) + (3 + 1)
    assert made.dimension == 2 * 5 * (2 * W - 5) + 2 * 3 * 3 + ends
    points = made.points(60, 0, "test")
    around = Linearisation(made.objective.sweep, points)
    assert made.columns(around, "product").shape[1] == made.dimension
    near = {name: x + 0.01 * torch.randn_like(x) for name, x in made.start.items()}
    span = Span(made, made.start, [near])
    moved = span.at(torch.full((span.dimension,), 0.5, dtype=torch.float64))
    assert {name: x.shape for name, x in moved.items()} == {name: x.shape for name, x in made.start.items()}


def test_advice_and_linearised_runs_have_layers_of_several_ranks():
    advice = po.suggest_rank(two((W, 3)), rotation(), ranks=[2, 5], points=SMALL["points"])
    ends = 2 * W + 2 * 3 + (W + 1) + (3 + 1)
    assert [x.dimension for x in advice.predictions] == [
        2 * r * (2 * W - r) + 2 * min(r, 3) * (6 - min(r, 3)) + ends for r in (2, 5)
    ]
    assert all(rank <= 3 for name, rank in advice.layers.items() if name in V_AT_3)
    found = adapt_linearised(
        two((W, 3)), rotation(), lora=po.LoRA(rank=5, alpha=2.0), interior=20, budget=po.Budget(steps=3), test=16
    )
    assert found.loss < 0.1 * found.loss_before
    assert all(found.ranks[name] <= 3 for name in V_AT_3)


def test_the_initial_rank_is_one_that_a_layer_can_have():
    layers = dict(two((12, 3)).named_modules())
    some = {name: layers[f"nets.{name}.linears.1"] for name in "uv"}
    assert initial_rank(some, 20, 70) == 8  # 2 · 70 is above the 109 coordinates of rank 4, below the 157 of rank 8
    assert initial_rank({"v": some["v"]}, 20, 70) == 3


# What it is for.


def lotka_volterra(a=1.1):
    """x' = x (a - y), y' = y (x - 1) on [0, 4] from (1.2, 0.8)."""

    def ansatz(p):
        return torch.cat([1.2 * torch.ones_like(p.t), 0.8 * torch.ones_like(p.t)], dim=1), p.t

    box = po.Box(t=(0, 4))
    return po.problem(
        coords="t",
        fields="xy",
        region=box,
        a=po.parameter(1.0, a),
        prey=lambda f, a: f.x_t - f.x * (a - f.y),
        predator=lambda f: f.y_t - f.y * (f.x - 1),
        ic=(box.face(t=0.0), lambda f: (f.x - 1.2, f.y - 0.8)),
        ansatz=ansatz,
        enforced="ic",
        reference=lambda p, a: orbit(p.t[:, 0], float(a)),
        accuracy=1e-9,
    )


def orbit(t, a, n=2000):
    """By the classical scheme, and cubic Hermite interpolation between its steps."""
    slope = lambda y: torch.stack([y[0] * (a - y[1]), y[1] * (y[0] - 1)])
    h, found = 4 / n, [torch.tensor([1.2, 0.8], dtype=torch.float64)]
    for _ in range(n):
        k = [slope(found[-1])]
        for c in (h / 2, h / 2, h):
            k.append(slope(found[-1] + c * k[-1]))
        found.append(found[-1] + h / 6 * (k[0] + 2 * k[1] + 2 * k[2] + k[3]))
    y = torch.stack(found)
    dy = torch.stack([slope(x) for x in found])
    i = (t / h).floor().long().clamp(0, n - 1)
    s = (t / h - i)[:, None]
    start = (1 + 2 * s) * (1 - s) ** 2 * y[i] + h * s * (1 - s) ** 2 * dy[i]
    return start + s**2 * (3 - 2 * s) * y[i + 1] + h * s**2 * (s - 1) * dy[i + 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "make", "named", "bound"),
    [
        (lotka_volterra, lambda: two((16, 16)), "nets.?.linears.[12]", 3e-4),
        (lambda: Kovasznay(re=30.0), lambda: pfnn(24), ["b", "hidden.*"], 1e-3),
    ],
    ids=["lotka_volterra", "pfnn"],
)
def test_defaults_do_as_well_as_hidden_layers_by_name(problem, make, named, bound):
    torch.manual_seed(0)
    net = po.pretrain(problem().at_source(), make())
    budget = po.Budget(gradient_evals=120)
    default = po.adapt(net, problem(), budget=budget)
    by_name = po.adapt(net, problem(), lora=po.LoRA(targets=named), budget=budget)
    assert default.rel_l2 < 3 * by_name.rel_l2
    assert default.rel_l2 < bound


class ByFunction(nn.Module):
    """A network that takes weight and bias of its hidden layer and never calls it."""

    def __init__(self):
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(2, 12), nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        h = torch.tanh(nn.functional.linear(h, self.hidden.weight, self.hidden.bias))
        return self.last(h.reshape(-1, self.last.in_features))


class AsksItsLayers(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 1)])
        self.layers[1].gain = 2.0
        self.gain = gain

    def forward(self, x):
        x = torch.tanh(self.layers[0](x))
        x = self.gain(self.layers[1]) * torch.tanh(self.layers[1](x))
        return self.layers[2](x)


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (lambda layer: 1 + isinstance(layer, nn.Linear), r"computes something else \(other by \d"),
        (
            lambda layer: layer.gain,
            r"cannot be called \(AttributeError: 'LowRankLinear' object has no attribute 'gain'",
        ),
    ],
)
def test_a_network_that_asks_its_layers_for_what_factors_have_not_is_refused(gain, said):
    few = {"rank": 2, "budget": po.Budget(steps=1), "points": po.Sampling.even(20, 5)}
    with pytest.raises(InputError, match=rf"^With low-rank factors in the layers layers.1 the network {said}"):
        po.adapt(AsksItsLayers(gain), Heat(), **few)
    with pytest.raises(InputError, match=said):
        po.family(AsksItsLayers(gain), Heat(), kappa=(0.05, 0.1), budget=po.Budget(steps=1))


@pytest.mark.parametrize("method", [None, po.methods.dora()], ids=["odelora", "dora"])
def test_a_network_is_the_same_function_with_factors_in_it(method):
    few = {"rank": 2, "budget": po.Budget(steps=1), "points": po.Sampling.even(20, 5)}
    assert po.adapt(ByFunction(), Heat(), method=method, **few).ranks == {"hidden": 2}


def test_a_network_that_reads_its_layers_is_adapted():
    result = po.adapt(ByFunction(), Heat(), rank=2, budget=po.Budget(steps=3), points=po.Sampling.even(60, 10))
    assert result.ranks == {"hidden": 2}
    assert result.history[-1]["loss"] < result.history[0]["loss"]

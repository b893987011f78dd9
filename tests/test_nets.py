"""Every network: derivatives by jets, the Jacobian by one sweep, construction from a configuration, its own formula."""

import inspect
import math
from itertools import combinations_with_replacement

import pytest
import torch
from test_jets import channels, compare, expected, points, uniform
from torch import nn
from torch.func import functional_call, jacrev

from pinn_odelora import nets
from pinn_odelora.derivatives.multiindex import word
from pinn_odelora.errors import InputError
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import put_factors
from pinn_odelora.nets import (
    KAN,
    MLP,
    PFNN,
    SIREN,
    AdaptiveMLP,
    FactorisedMLP,
    FourierMLP,
    LayerNormMLP,
    ModifiedMLP,
    PerField,
    PirateNet,
    ResNet,
)
from pinn_odelora.nets.kan import KANLayer
from pinn_odelora.pretraining import stages
from pinn_odelora.runs.save import described
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

SMALL = {
    MLP: {"width": 5, "depth": 3},
    PerField: {"width": 4, "depth": 3},
    PFNN: {"width": 4, "depth": 4, "shared": 2},
    ResNet: {"width": 5, "depth": 2, "activation": "sin"},
    ModifiedMLP: {"width": 5, "depth": 3},
    PirateNet: {"width": 6, "depth": 2, "sigma": 0.3},
    SIREN: {"width": 5, "depth": 3, "w0": 2.0, "w0_hidden": 1.5},
    FourierMLP: {"width": 5, "depth": 3, "frequencies": 3, "sigma": (0.2, 0.4)},
    FactorisedMLP: {"width": 5, "depth": 3},
    AdaptiveMLP: {"width": 5, "depth": 3, "n": 3.0},
    LayerNormMLP: {"width": 5, "depth": 3},
    KAN: {"width": 3, "depth": 2, "grid": 3},
}
FURTHER = (PirateNet, FactorisedMLP, AdaptiveMLP, LayerNormMLP)
"""Networks with trained tensors besides linear layers."""
CLASSES = pytest.mark.parametrize("cls", SMALL, ids=lambda cls: cls.__name__)


def posed(cls):
    """Several fields for networks that tell them apart."""
    weights = {"pde": 0.7, "bc": 1.3}
    return Kovasznay(weights=weights) if cls in (PerField, PFNN) else Burgers(conditions="soft", weights=weights)


def generic(cls, problem, generator):
    """A small network with no weight that is zero, or equal to another."""
    net = cls(problem.inputs, len(problem.fields), **SMALL[cls], generator=generator)
    randomize(net, generator)
    return net


def randomize(module, generator):
    """All tensors, so that nothing is zero, or equal to something else."""
    with torch.no_grad():
        for x in module.parameters():
            x.copy_(uniform(generator, max(x.numel(), 1)).view(x.shape) * (3 / (x.shape or [1])[-1]) ** 0.5)


def test_all_networks_are_here():
    found = {x for x in vars(nets).values() if inspect.isclass(x) and "generator" in inspect.signature(x).parameters}
    assert found - {nets.FourierFeatures} == SMALL.keys()


@CLASSES
def test_jets_are_the_nested_derivatives(cls, generator):
    """Of orders one to three, operators, and the gradients with respect to every trained tensor."""
    problem = posed(cls)
    solution = Solution(problem, generic(cls, problem, generator))
    words = [word(w) for k in (1, 2, 3) for w in combinations_with_replacement(problem.coords, k)]
    p, weights = points(generator, problem.coords), [*solution.parameters()]
    assert all(x.requires_grad for x in weights)
    compare(solution, p, weights, generator, problem.coords, words, tolerance=1e-11)


def rows(system, p):
    return torch.cat([system.weighted(name, r).mT.flatten() for name, r in system.residuals(p).items()])


@CLASSES
def test_one_sweep_gives_the_jacobian_of_factors_and_of_all_else(cls, generator):
    """Factors on hidden layers, every other tensor a variable; against nested derivatives, row by row."""
    problem = posed(cls)
    net = generic(cls, problem, generator)
    names = [name for name, x in net.named_modules() if isinstance(x, nn.Linear)][1:-1]
    inner = {name: net.get_submodule(name) for name in names if min(net.get_submodule(name).weight.shape) > 2}
    put_factors(net, inner, 2, 0.7, orthonormal, generator)
    system = System(problem, Solution(problem, net))
    layers = {k: x for k, x in net.named_modules() if isinstance(x, LowRankLinear)}
    layers |= {k: x for k, x in net.named_modules() if type(x) is nn.Linear and "lora" not in k and "base" not in k}
    weights = {id(x.weight) for x in layers.values()}
    own = {k: x for k, x in net.named_parameters() if "lora" not in k and not k.endswith("base_layer.weight")}
    others = {k: x for k, x in own.items() if id(x) not in weights}
    sweep = Sweep(system, layers, others)
    p = draw_points(system.terms, 3, 2, seed=3)
    linearised = Linearisation(sweep, p)
    assert all(sweep.paired(name) and sweep.alone(name) == 0 for name in system.terms)
    plain = cls(problem.inputs, len(problem.fields), **SMALL[cls])
    W = {f"{k}.weight": x.weight.detach() for k, x in layers.items()}
    W |= {k.replace("base_layer.", ""): x.detach() for k, x in others.items()}
    missing = plain.load_state_dict(W, strict=False)
    assert not missing.unexpected_keys
    plain.load_state_dict({k: x for k, x in net.state_dict().items() if k in missing.missing_keys}, strict=False)
    reverse = System(problem, lambda p: solved(p), derivatives="autograd")
    held = dict(plain.named_parameters())

    def solved(p):
        return Solution(problem, lambda x: functional_call(plain, held, (x,)))(p)

    r = rows(reverse, p)
    J = torch.stack(
        [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(x, [held[k] for k in W], retain_graph=True, materialize_grads=True)
                ]
            )
            for x in r
        ]
    )
    assert torch.allclose(linearised.r, r.detach(), rtol=0, atol=1e-11 * float(r.detach().abs().max()))
    assert torch.allclose(linearised.columns(), J, rtol=0, atol=1e-10 * float(J.abs().max()))


class Twice(nn.Module):
    """s multiplies, which the tape tells, and is in a matrix product, which it does not; t multiplies and is added."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 3, dtype=torch.float64), nn.Linear(3, 1, dtype=torch.float64)
        self.s, self.t = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        h = torch.tanh(self.s * self.first(x)) * self.t.square() - self.t
        return self.last(torch.sin(h @ torch.outer(self.s, self.s) + h))


def test_a_tensor_that_the_tape_tells_of_in_part_is_differentiated_apart(generator):
    problem, net = Burgers(), Twice()
    randomize(net, generator)
    layers = {"first": net.first, "last": net.last}
    others = {k: x for k, x in net.named_parameters() if not k.endswith("weight")}
    system = System(problem, Solution(problem, net))
    sweep, p = Sweep(system, layers, others), draw_points(system.terms, 5, 3, seed=3)
    linearised = Linearisation(sweep, p)
    assert sweep.paired("pde")
    assert sweep.alone("pde") == 3
    variables = [x.weight for x in layers.values()] + [*others.values()]
    r = rows(System(problem, Solution(problem, net), derivatives="autograd"), p)
    J = [torch.cat([g.flatten() for g in torch.autograd.grad(x, variables, retain_graph=True)]) for x in r]
    assert torch.allclose(linearised.columns(), torch.stack(J), rtol=0, atol=1e-11)


@pytest.mark.parametrize("cls", FURTHER)
def test_natural_gradient_trains_all_of_it(cls, generator):
    """From the weights that a user begins with, where α of a PirateNet is zero."""
    problem = Burgers(conditions="soft")
    net = cls(problem.inputs, 1, **SMALL[cls], generator=generator)
    stage = stages.natural_gradient(System(problem, Solution(problem, net)), 40, 10, 0)
    assert stages.unsuitable(stage) is None
    before = {name: x.detach().clone() for name, x in net.named_parameters()}
    loss = None
    for record, _ in zip(stages.loop.steps(stage.training, stages.Budget(steps=4)), range(4), strict=False):
        loss = loss or record.loss
    assert record.loss < loss
    assert all(not torch.equal(x, before[name]) for name, x in net.named_parameters())


@CLASSES
def test_a_network_is_made_again_from_its_description(cls, compose, generator):
    net = cls(2, 2, **SMALL[cls], generator=generator)
    found = described(net)
    target, values = found.pop("_target_").rpartition(".")[2], found
    again = getattr(nets, target)(2, 2, **values)
    again.load_state_dict(net.state_dict())
    x = torch.rand(4, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(again(x), net(x))
    with pytest.raises(InputError, match="width is 0, but it must be a whole number of at least 1"):
        cls(2, 1, width=0)


def test_no_network_advances_the_global_generator():
    for cls in SMALL:
        torch.manual_seed(1)
        first = cls(2, 1, **SMALL[cls], generator=torch.Generator().manual_seed(3))
        drawn = torch.rand(1)
        torch.manual_seed(2)
        second = cls(2, 1, **SMALL[cls], generator=torch.Generator().manual_seed(3))
        torch.manual_seed(1)
        assert torch.equal(torch.rand(1), drawn)
        assert all(torch.equal(a, second.state_dict()[k]) for k, a in first.state_dict().items())


# What each of them is.


def values(n=7, inputs=2):
    return torch.rand(n, inputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("cls", [FactorisedMLP, AdaptiveMLP])
def test_factorised_and_adaptive_networks_begin_as_the_mlp(cls):
    seeded = lambda: torch.Generator().manual_seed(4)
    net, mlp = cls(2, 3, 6, 3, generator=seeded()), MLP(2, 3, 6, 3, generator=seeded())
    assert torch.allclose(net(values()), mlp(values()), rtol=0, atol=1e-14)
    with torch.no_grad():
        next(x for name, x in net.named_parameters() if "linears" not in name).mul_(1.5)
    assert not torch.allclose(net(values()), mlp(values()))


def test_a_factorised_network_folds_into_an_mlp(generator):
    net = generic(FactorisedMLP, Kovasznay(), generator)
    assert torch.allclose(net.folded()(values()), net(values()), rtol=0, atol=1e-14)


def test_the_encodings_of_a_modified_mlp_are_mixed_by_its_layers(generator):
    net = ModifiedMLP(2, 1, width=4, depth=2, generator=generator)
    x, sigma = values(), torch.tanh
    U, V, h = sigma(net.U(x)), sigma(net.V(x)), sigma(net.linears[0](x))
    z = sigma(net.linears[1](h))
    assert torch.allclose(net(x), net.linears[2]((1 - z) * U + z * V))


def test_a_piratenet_is_linear_in_its_features_at_first(generator):
    net, x = PirateNet(2, 3, width=6, depth=2, generator=generator), values()
    phase = 2 * math.pi * x @ net.features.B.mT
    assert torch.allclose(net(x), net.last(torch.cat([phase.cos(), phase.sin()], dim=1)))
    with torch.no_grad():
        net.blocks[0].alpha.fill_(0.4)
    h, sigma = net.features(x), torch.tanh
    U, V = sigma(net.U(h)), sigma(net.V(h))
    f = sigma(net.blocks[0].linears[0](h))
    z = (1 - f) * U + f * V
    g = sigma(net.blocks[0].linears[1](z))
    z = (1 - g) * U + g * V
    expected = 0.4 * sigma(net.blocks[0].linears[2](z)) + 0.6 * h
    assert torch.allclose(net(x), net.last(expected))


def test_a_residual_block_of_zero_weights_changes_nothing(generator):
    net, x = ResNet(2, 1, width=5, depth=2, generator=generator), values()
    with torch.no_grad():
        for block in net.blocks:
            block[1].weight.zero_()
    assert torch.allclose(net(x), net.last(torch.tanh(net.first(x))))


def test_the_scales_of_fourier_features_share_their_layers(generator):
    net, x = FourierMLP(2, 1, width=5, depth=2, frequencies=2000, sigma=[0.5, 3.0], generator=generator), values()
    assert [round(float(f.B.std()), 1) for f in net.features] == [0.5, 3.0]
    hidden = [torch.tanh(net.linears[1](torch.tanh(net.linears[0](f(x))))) for f in net.features]
    assert torch.allclose(net(x), net.last(torch.cat(hidden, dim=1)))


@torch.no_grad()
def test_sines_of_a_siren_have_the_distribution_of_its_authors():
    net = SIREN(2, 1, width=200, depth=3, w0=6.0, w0_hidden=4.0)
    first, *others = net.linears
    assert 0.49 < float(first.weight.abs().max()) <= 0.5
    assert all(0.98 < 4 * float(x.weight.abs().max()) / math.sqrt(6 / 200) <= 1 for x in others)
    x = values(500)
    h = torch.sin(6 * first(x))
    for layer in others[:-1]:
        assert abs(float((4 * layer(h)).std()) - 1) < 0.1  # the unit normal distribution before every sine
        h = torch.sin(4 * layer(h))


def test_outputs_share_what_they_should():
    """The Jacobian of one output with respect to the weights of another one."""
    touched = {}
    for cls in (PerField, PFNN):
        net = cls(2, 2, **SMALL[cls])
        held = dict(net.named_parameters())
        J = jacrev(lambda held, net=net: functional_call(net, held, (values(1),))[0])(held)
        touched[cls] = [{k for k, x in J.items() if x[i].abs().max() > 0} for i in range(2)]
    first, second = touched[PerField]
    assert not first & second
    first, second = touched[PFNN]
    assert {k.partition(".")[0] for k in first & second} == {"trunk"}
    assert all(k.startswith(("trunk", "branches.1")) for k in second)


def test_splines_sum_to_one_and_their_layer_is_a_sum_of_functions_of_one_variable(generator):
    layer = KANLayer(3, 2, 5, "spline", generator)
    h = 4 * values(6, 3) - 2
    assert torch.allclose(
        layer.functions(torch.tanh(h)).unflatten(1, (3, 8)).sum(dim=-1), torch.ones(6, 3, dtype=torch.float64)
    )
    phi = lambda i, x: layer(torch.zeros(len(x), 3, dtype=x.dtype).index_copy(1, torch.tensor([i]), x[:, None]))
    zero = layer(torch.zeros(1, 3, dtype=torch.float64))
    assert torch.allclose(layer(h), sum(phi(i, h[:, i]) - zero for i in range(3)) + zero)


def test_layer_normalisation_has_its_true_derivatives(generator):
    """The weight gradient of u_xx, of third order in all, where torch's own is wrong; against differences."""
    norm, first = nn.LayerNorm(6, dtype=torch.float64), nn.Linear(2, 6, dtype=torch.float64)
    randomize(norm, generator), randomize(first, generator)
    solution = lambda p: torch.tanh(norm(first(p.rows(("x", "t"))))).sum(dim=-1, keepdim=True)
    p = points(generator)
    second = lambda way: way(solution, p, ("x", "t"), ["xx"], [])[1].sum()
    step = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    found = [(torch.autograd.grad(second(way), first.weight)[0] * step).sum() for way in (expected, channels)]
    with torch.no_grad():
        first.weight += 1e-5 * step
        above = second(channels)
        first.weight -= 2e-5 * step
        difference = (above - second(channels)) / 2e-5
    assert all(abs(float(x - difference)) < 1e-7 * abs(float(difference)) for x in found)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: PFNN(2, 2, depth=3, shared=4),
            "shared is 4, but it must be a whole number of at least 1 and at most 3",
        ),
        (lambda: PirateNet(2, 2, width=5), "width is 5, but it must be an even number"),
        (lambda: PirateNet(2, 2, sigma=-1), "sigma is -1, but it must be a finite number above 0"),
        (
            lambda: FourierMLP(2, 2, sigma=[1.0, 0.0]),
            "sigma is .*, but it must be a finite number above 0 or a list of",
        ),
        (lambda: SIREN(2, 2, w0=0), "w0 is 0, but it must be a finite number above 0"),
        (lambda: ModifiedMLP(2, 2, activation="relu"), "relu"),
        (lambda: KAN(2, 2, basis="fourier"), "basis is 'fourier', but it must be gaussian or spline"),
        (lambda: AdaptiveMLP(2, 2, n=0), "n is 0, but it must be a finite number above 0"),
        (lambda: FactorisedMLP(2, 2, std=-0.1), "std is -0.1, but it must be a finite number of at least 0"),
    ],
)
def test_what_makes_no_network_is_a_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda: torch.nn.LazyLinear(4), r"0\.weight of the network has no values before its layer is called"),
        (lambda: torch.nn.Linear(2, 4, device="meta"), r"0\.weight of the network has no values on the device meta"),
    ],
)
def test_weights_without_values_are_a_sentence(layer, said):
    with pytest.raises(InputError, match=said):
        nets.check_network(torch.nn.Sequential(layer(), torch.nn.Tanh(), torch.nn.Linear(4, 1)), Burgers())

"""Which layers are adapted, and what the starts promise: the function stays, the factors are balanced."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from pinn_odelora.errors import InputError
from pinn_odelora.lowrank import adapters
from pinn_odelora.lowrank.start import named, orthonormal, pissa, zero
from pinn_odelora.lowrank.targets import linear_layers, linear_targets, put_factors
from pinn_odelora.nets import MLP

STARTS = {"zero": zero, "orthonormal": partial(orthonormal, size=0.3), "pissa": pissa}
SHAPES = [(7, 4), (4, 7), (5, 5)]
RANK, SCALE = 3, 1.7


def uneven(generator):
    """Hidden layers of every shape in ``SHAPES``, wide and tall."""
    sizes = [2, 4, 7, 4, 4, 1]
    layers = [nn.Linear(n, m, dtype=torch.float64) for n, m in pairwise(sizes)]
    for layer in layers:
        nn.init.normal_(layer.weight, generator=generator)
        nn.init.normal_(layer.bias, generator=generator)
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.Tanh())][:-1])


def adapted(net, generator, start=zero, rank=RANK, scale=SCALE, patterns=None):
    return put_factors(net, linear_targets(net, patterns), rank, scale, start, generator)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (None, [1, 2, 3]),
        ("*", [0, 1, 2, 3, 4]),
        ("linears.*", [0, 1, 2, 3, 4]),
        (["linears.3", "linears.[01]"], [0, 1, 3]),
        (["linears.1", "linears.*"], [0, 1, 2, 3, 4]),
    ],
)
def test_patterns_select_in_module_order(patterns, expected):
    net = MLP(2, 1, width=4, depth=4)
    targets = linear_targets(net, patterns)
    assert list(targets) == [f"linears.{i}" for i in expected]
    assert all(layer is net.get_submodule(name) for name, layer in targets.items())


@pytest.mark.parametrize("patterns", ["linear.1", ["linears.1", "Linears.2"], "linears"])
def test_a_pattern_without_a_layer_lists_the_layers(patterns):
    with pytest.raises(InputError, match=r"Unknown layer pattern .*allowed: linears.0, linears.1, linears.2\."):
        linear_targets(MLP(2, 1, width=4, depth=2), patterns)


def test_no_pattern_and_no_hidden_layer():
    with pytest.raises(InputError, match=r"targets is empty; allowed: patterns matching linears.0"):
        linear_targets(MLP(2, 1, depth=2), [])
    with pytest.raises(InputError, match=r"no hidden linear layer .*\(it has linears.0, linears.1\); set targets"):
        linear_targets(MLP(2, 1, depth=1))
    with pytest.raises(
        InputError, match=r"^The network has no torch\.nn\.Linear, .*; train all of its weights, as full_adam,"
    ):
        linear_targets(nn.Linear(2, 2))


@pytest.mark.parametrize("scale", [1.7, 0.25])
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_function_and_its_derivatives_stay(start, scale, generator):
    net = uneven(generator)
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(net))
    before, slopes = net(x), jacobian(x)
    layers = adapted(net, generator, start, scale=scale)
    assert len(layers) == 3
    torch.testing.assert_close(net(x), before, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(jacobian(x), slopes, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_function_changes_with_the_product_times_the_scale(start, generator):
    net = uneven(generator)
    W0 = net[4].weight.detach().clone()
    layer = adapted(net, generator, start)["4"]
    with torch.no_grad():
        layer.A.add_(torch.randn(layer.A.shape, generator=generator, dtype=torch.float64))
        layer.B.add_(torch.randn(layer.B.shape, generator=generator, dtype=torch.float64))
    expected = W0 + SCALE * (layer.B @ layer.A - layer.start_B @ layer.start_A)
    torch.testing.assert_close(net[4].weight, expected, rtol=1e-13, atol=1e-13)
    assert torch.linalg.matrix_norm(net[4].weight - W0) > 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["orthonormal", "pissa"])
def test_balanced_starts(name, shape, generator):
    W0 = torch.randn(shape, generator=generator, dtype=torch.float64)
    A, B = STARTS[name](W0, RANK, SCALE, generator)
    assert A.shape == (RANK, shape[1])
    assert B.shape == (shape[0], RANK)
    torch.testing.assert_close(B.mT @ B, A @ A.mT, rtol=0, atol=1e-13)
    assert torch.linalg.matrix_rank(B @ A) == RANK


@pytest.mark.parametrize("shape", SHAPES)
def test_orthonormal_has_equal_singular_values(shape, generator):
    W0 = torch.randn(shape, generator=generator, dtype=torch.float64)
    A, B = orthonormal(W0, RANK, SCALE, generator, size=0.3)
    sigma = torch.linalg.svdvals(SCALE * B @ A)
    torch.testing.assert_close(sigma[:RANK], torch.full((RANK,), 0.3, dtype=torch.float64), rtol=1e-13, atol=0)
    assert sigma[RANK:].max() < 1e-14


@pytest.mark.parametrize("shape", SHAPES)
def test_pissa_is_the_best_approximation(shape, generator):
    """The error of the best rank-r approximation is √Σ_{i>r} σ_i², and only the best one has it (Eckart and Young)."""
    W0 = torch.randn(shape, generator=generator, dtype=torch.float64)
    A, B = pissa(W0, RANK, SCALE, generator)
    rest = torch.linalg.svdvals(W0)[RANK:]
    error = torch.linalg.matrix_norm(W0 - SCALE * B @ A)
    torch.testing.assert_close(error, torch.linalg.vector_norm(rest), rtol=1e-12, atol=0)


def test_the_size_of_a_start_is_that_of_the_scaled_product(generator):
    layer = adapted(uneven(generator), generator, STARTS["orthonormal"])["4"]
    sigma = torch.linalg.svdvals(layer.scale * layer.B @ layer.A)
    assert sigma[:RANK].tolist() == pytest.approx([0.3] * RANK, rel=1e-13)


def test_zero_start(generator):
    W0 = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    A, B = zero(W0, RANK, SCALE, generator)
    assert not B.any()
    assert torch.linalg.matrix_rank(A) == RANK
    assert A.abs().max() <= 1 / math.sqrt(4)


@pytest.mark.parametrize("word", STARTS)
def test_starts_by_name_follow_dtype_and_generator(word):
    W0 = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    draws = [named(word, 0.3)(W0, 2, SCALE, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0].A.dtype == draws[0].B.dtype == torch.float32
    assert torch.equal(draws[0].A, draws[1].A)
    assert torch.equal(draws[0].A, draws[2].A) == (word == "pissa")


def test_only_factors_are_trained_and_weights_stay(generator):
    net = MLP(2, 1, width=5, depth=4)
    original = {name: value.clone() for name, value in net.state_dict().items()}
    layers = adapted(net, generator, pissa)
    assert list(layers) == list(adapters(net)) == ["linears.1", "linears.2", "linears.3"]
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained == [f"linears.{i}.lora_{x}.default.weight" for i in (1, 2, 3) for x in "AB"]
    for name, layer in layers.items():
        assert torch.equal(layer.base_layer.weight, original[f"{name}.weight"])
        assert layer.scale == SCALE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rank": 0}, r"^rank is 0, but it must be a whole number of at least 1"),
        ({"rank": -2}, r"^rank is -2, but"),
        ({"rank": 2.5}, r"^rank is 2\.5, but"),
        ({"rank": True}, r"^rank is True, but"),
        ({"rank": "4"}, r"^rank is '4', but"),
        (
            {"rank": 2, "patterns": "linears.4"},
            r"^rank is 2, but it must be at most 1 for layer linears.4 of shape \(1",
        ),
        ({"rank": 6, "patterns": "*"}, r"^rank is 6, but it must be at most 5 for layer linears.1 of shape \(5, 5\)"),
        ({"rank": 6}, r"^rank is 6, but it must be at most 5 for layer linears.1 of shape \(5, 5\)"),
        ({"scale": 0.0}, r"^scale is 0\.0, but it must be a finite number above 0"),
        ({"scale": -1}, r"^scale is -1, but"),
        ({"scale": math.inf}, r"^scale is inf, but"),
        ({"scale": math.nan}, r"^scale is nan, but"),
        ({"scale": "1"}, r"^scale is '1', but"),
    ],
)
def test_bad_rank_or_scale_changes_nothing(change, reason, generator):
    net = MLP(2, 1, width=5, depth=4)
    with pytest.raises(InputError, match=reason):
        adapted(net, generator, **change)
    assert not adapters(net)
    assert all(p.requires_grad for p in net.parameters())


def test_the_largest_rank_is_allowed(generator):
    net = MLP(2, 1, width=5, depth=4)
    assert adapted(net, generator, rank=1, scale=1, patterns="*")["linears.4"].rank == 1
    assert adapted(MLP(2, 1, width=5, depth=4), generator, rank=5)["linears.2"].rank == 5
    # A whole number, however it is written.
    assert adapted(MLP(2, 1, width=5, depth=4), generator, rank=5.0)["linears.2"].rank == 5


def test_an_adapted_network_is_not_adapted_again(generator):
    net = MLP(2, 1, width=5, depth=4)
    adapted(net, generator)
    with pytest.raises(InputError, match="already has adapted layers"):
        linear_layers(net)


def test_shared_and_computed_weights_are_refused(generator):
    net = MLP(2, 1, width=5, depth=4)
    net.linears[3].weight = net.linears[1].weight
    with pytest.raises(InputError, match=r"linears.1.weight and linears.3.weight are one shared weight"):
        adapted(net, generator)
    net = MLP(2, 1, width=5, depth=4)
    parametrizations.weight_norm(net.linears[2])
    with pytest.raises(InputError, match=r"layer linears.2 is computed by a parametrization"):
        adapted(net, generator)
    assert not adapters(net)


class Sine(nn.Linear):
    def forward(self, x):
        return torch.sin(super().forward(x))


class Named(nn.Linear):
    """A subclass that computes nothing else."""


def test_a_layer_that_computes_something_else_is_refused(generator):
    net = nn.Sequential(nn.Linear(2, 5), Sine(5, 5), nn.Linear(5, 1))
    with pytest.raises(InputError, match=r"^Layer 1 is a Sine, a torch.nn.Linear with a forward of its own"):
        adapted(net, generator)
    assert not adapters(net)
    assert all(p.requires_grad for p in net.parameters())
    net[1] = Named(5, 5)
    assert [*adapted(net, generator)] == ["1"]


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_layer_with_a_hook_is_refused(register, generator):
    net = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 1))
    hook = getattr(net[1], register)(lambda *_: None)
    with pytest.raises(InputError, match=r"^Layer 1 has a forward hook, which would be lost"):
        adapted(net, generator)
    hook.remove()
    assert [*adapted(net, generator)] == ["1"]

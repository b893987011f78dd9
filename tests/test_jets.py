"""Jets against nested reverse mode: every rule, every channel, values and weight gradients, at generic points.

A case carries all nine derivatives of order one to three along x and t, and with them four linear operators as
collapsed channels, whose coefficients are numbers, columns and trained scalars. Its gradient is that of a sum of all
channels with random weights, each channel scaled to size one, so that none hides behind another.
"""

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement, pairwise, product
from math import comb, factorial
from typing import ClassVar

import pytest
import torch
from test_problems import CASES, name
from torch import nn
from torch.nn import functional

from pinn_odelora.derivatives import RULES, AutogradField, by_autograd, pointwise
from pinn_odelora.derivatives.jet import Channels, Jet, NoJetRule
from pinn_odelora.derivatives.jets import lifted, seeded
from pinn_odelora.derivatives.multiindex import closed, partitions, parts, splits, word
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.lowrank.layer import adapters
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.nets.kan import cubic_spline
from pinn_odelora.nets.mlp import ACTIVATIONS, MLP
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.convection import Convection
from problems.kovasznay import Kovasznay

COORDS = ("x", "t")
WORDS = [word(w) for k in (1, 2, 3) for w in combinations_with_replacement(COORDS, k)]
N = 5


def uniform(generator, *shape, low=-1.0, high=1.0, dtype=torch.float64):
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


def integer(generator, low, high):
    """From low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def points(generator, coords=COORDS, dtype=torch.float64):
    return Points({c: uniform(generator, N, 1, low=0.1, high=0.9, dtype=dtype) for c in coords})


def operators(generator, coords=COORDS, dtype=torch.float64):
    """Numbers, columns and trained scalars, on words up to the third order; the second has a zero-order part."""
    x, t = coords
    column = uniform(generator, N, 1, dtype=dtype)
    trained = uniform(generator, 1, low=0.5, dtype=dtype).requires_grad_()
    return [
        {word(t): 1, word(x * 2): -0.3},
        {"": 2.0, word(x): column, word(x * 2): 0.7, word(x + t): -1.3, word(t * 2): column.square()},
        {word(t): 1.0, word(x * 3): trained, word(x): 0.4},
        {word(x * 3): 0.3, word(x * 2 + t): column, word(x + t * 2): trained, word(t * 3): -1},
    ]


def trained_in(operators):
    return list({id(c): c for o in operators for c in o.values() if getattr(c, "requires_grad", False)}.values())


def channels(solution, p, coords, words, operators):
    """Value, derivatives and operators of the solution by jets; operators travel collapsed, apart from order zero."""
    jet = solution(
        seeded(p, coords, Channels(closed(words), tuple({a: c for a, c in o.items() if a} for o in operators)))
    )
    images = [jet.part(i) + o.get("", 0.0) * jet.value for i, o in enumerate(operators)]
    return [jet.value, *(jet.part(alpha) for alpha in words), *images]


def expected(solution, p, coords, words, operators):
    """The same by nested reverse mode."""
    fields = [str(i) for i in range(solution(p).shape[1])]
    f = AutogradField(solution, p, fields, coords)
    columns = lambda ask: torch.cat([ask(field) for field in fields], dim=1)
    return [
        *(columns(lambda field: f.derivative(field, alpha)) for alpha in ("", *words)),  # noqa: B023
        *(columns(lambda field: f.op(field, o)) for o in operators),  # noqa: B023
    ]


def distance(found, exact):
    """Relative, in the norm; 0 where both vanish."""
    found, exact = found.detach().double(), exact.detach().double()
    off = float(torch.linalg.vector_norm(found - exact))
    return off / float(torch.linalg.vector_norm(exact)) if off else 0.0


def compare(solution, p, weights, generator, coords=COORDS, words=None, tolerance=1e-12, operators=operators):
    """Values and gradient of all channels by jets and by reverse mode."""
    words = WORDS if words is None else words
    L = operators(generator, coords, p[coords[0]].dtype) if callable(operators) else operators
    found, exact = (way(solution, p, coords, words, L) for way in (channels, expected))
    assert found[0].shape == exact[0].shape
    names = ["value", *words, *(f"operator {i}" for i in range(len(L)))]
    for channel, a, b in zip(names, found, exact, strict=True):
        assert a.shape == b.shape, channel
        assert distance(a, b) < tolerance, channel
    cotangents = [uniform(generator, *b.shape, dtype=b.dtype) / b.detach().norm().clamp(min=1e-30) for b in exact]
    leaves = [*weights, *trained_in(L)]
    if not leaves:
        return
    totals = (sum((w * x).sum() for w, x in zip(cotangents, way, strict=True)) for way in (found, exact))
    gradients = [torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True) for total in totals]
    for i, (a, b) in enumerate(zip(*gradients, strict=True)):
        assert distance(a, b) < tolerance, f"gradient {i} of shape {tuple(b.shape)}"


# Combinatorics.


def letters(alpha):
    return [alpha.count(c) for c in COORDS]


@pytest.mark.parametrize("n", range(7))
def test_partitions_are_counted_by_bell_and_stirling(n):
    """Of n equal letters: the Bell number in all, and the Stirling number with k blocks."""
    stirling = lambda n, k: sum((-1) ** i * comb(k, i) * (k - i) ** n for i in range(k + 1)) // factorial(k)
    for k in range(n + 1):
        assert sum(count for count, blocks in partitions("x" * n) if len(blocks) == k) == stirling(n, k)
    bell = [1, 1, 2, 5, 15, 52, 203]
    assert sum(count for count, _ in partitions("x" * n)) == bell[n]
    assert sum(count for count, _ in partitions("abcdef"[:n])) == bell[n]


@pytest.mark.parametrize("alpha", [*WORDS, "txxxt", "abcde"])
def test_blocks_and_factors_make_up_the_word(alpha):
    for _, blocks in partitions(word(alpha)):
        assert word("".join(blocks)) == word(alpha)
        assert all(block == word(block) != "" for block in blocks)
    assert sum(count for count, _, _ in splits(word(alpha))) == 2 ** len(alpha)
    assert all(word(left + right) == word(alpha) for _, left, right in splits(word(alpha)))
    summands = [blocks for _, blocks in partitions(alpha)]
    assert len(summands) == len(set(summands))


def test_faa_di_bruno_by_name():
    assert {blocks: count for count, blocks in partitions("xxx")} == {
        ("xxx",): 1,
        ("x", "xx"): 3,
        ("x", "x", "x"): 1,
    }
    assert {blocks: count for count, blocks in partitions("txx")} == {
        ("txx",): 1,
        ("t", "xx"): 1,
        ("tx", "x"): 2,
        ("t", "x", "x"): 1,
    }
    assert set(splits("xx")) == {(1, "xx", ""), (2, "x", "x"), (1, "", "xx")}


def test_words_are_closed_downwards_and_sorted_by_order():
    assert parts("txx") == {"t", "x", "tx", "xx", "txx"}
    assert closed([]) == ()
    assert closed(["txx", "y"]) == ("t", "x", "y", "tx", "xx", "txx")
    order = closed(["abc", "xxt"])
    for alpha in order:
        assert all(order.index(beta) <= order.index(alpha) for beta in parts(alpha))


# Every rule of the table. The argument of a pointwise function stays within (low, high), where it is smooth.

POINTWISE = {
    "tanh": (torch.tanh, -2, 2),
    "sin": (torch.sin, -3, 3),
    "cos": (torch.cos, -3, 3),
    "exp": (torch.exp, -1, 1),
    "sigmoid": (torch.sigmoid, -3, 3),
    "silu": (functional.silu, -3, 3),
    "softplus": (functional.softplus, -3, 3),
    "softplus, its own β": (lambda z: functional.softplus(z, beta=2.5, threshold=4.0), -3, 1.5),
    "softplus, straight": (lambda z: functional.softplus(z, 2.5, 4.0), 1.7, 4),
    "gelu": (functional.gelu, -3, 3),
    "gelu, by tanh": (lambda z: functional.gelu(z, approximate="tanh"), -3, 3),
    "square": (torch.square, -2, 2),
    "reciprocal": (torch.reciprocal, 0.5, 2),
    "sqrt": (torch.sqrt, 0.5, 2),
    "rsqrt": (torch.rsqrt, 0.5, 2),
    "pow": (lambda z: torch.pow(z, 2), -2, 2),
    "pow, cubic": (lambda z: z**3, -2, 2),
    "pow, fractional": (lambda z: z**2.4, 0.5, 2),
    "pow, negative": (lambda z: z**-1.5, 0.5, 2),
    "pow, of a number": (lambda z: 1.7**z, -2, 2),
    "abs": (torch.abs, -2, -0.2),
    "acosh": (torch.acosh, 1.5, 3),
    "asinh": (torch.asinh, -2, 2),
    "atan": (torch.atan, -2, 2),
    "atanh": (torch.atanh, -0.7, 0.7),
    "cosh": (torch.cosh, -2, 2),
    "sinh": (torch.sinh, -2, 2),
    "tan": (torch.tan, -0.8, 0.8),
    "erf": (torch.erf, -2, 2),
    "erfc": (torch.erfc, -1, 1),
    "exp2": (torch.exp2, -1, 1),
    "expm1": (torch.expm1, -1, 1),
    "log": (torch.log, 0.5, 2),
    "log10": (torch.log10, 0.5, 2),
    "log1p": (torch.log1p, -0.5, 2),
    "log2": (torch.log2, 0.5, 2),
    "sinc": (torch.sinc, 0.3, 1.5),
    "relu": (torch.relu, 0.2, 2),
    "relu, module": (nn.ReLU(), 0.2, 2),
    "celu": (nn.CELU(), -2, -0.1),
    "elu": (nn.ELU(), -2, -0.1),
    "elu, in place": (nn.ELU(inplace=True), -2, -0.1),
    "relu, in place": (nn.ReLU(inplace=True), 0.2, 2),
    "silu, in place": (nn.SiLU(inplace=True), -2, 2),
    "elu, above": (lambda z: functional.elu(z, alpha=0.7), 0.1, 2),
    "leaky_relu": (nn.LeakyReLU(), -2, -0.1),
    "log_sigmoid": (nn.LogSigmoid(), -2, 2),
    "mish": (nn.Mish(), -2, 2),
    "selu": (nn.SELU(), -2, -0.1),
    "softsign": (nn.Softsign(), 0.1, 2),
    "cubic_spline": (cubic_spline, 0.1, 0.9),
    "cubic_spline, further out": (cubic_spline, -1.9, -1.1),
    "cubic_spline, outside": (lambda z: z.sin() + cubic_spline(z), 2.1, 3),
}

# Two tensors a, b that depend on the coordinates, (N, 4), one w that does not, (4,), 4 columns out.
STRUCTURAL = {
    "add": lambda a, b, w: torch.add(a, b.sin(), alpha=0.7) + (w + a) + (b[:, :1] + a),
    "sub": lambda a, b, w: torch.sub(a, b.sin(), alpha=0.7) - (w - a),
    "rsub": lambda a, b, w: torch.rsub(a, b) + (0.5 - b.sin()),
    "mul": lambda a, b, w: a * b * (w * a) * (2 * b[:, :1]),
    "multiply": lambda a, b, w: torch.multiply(torch.multiply(a, b), w),
    "div": lambda a, b, w: a / (2 + b.square()) + w / (2 + a.sin()) + b / 3,
    "true_divide": lambda a, b, w: torch.true_divide(a, 2 + b.square()),
    "pow": lambda a, b, w: w.abs() ** a + torch.pow(2.0, b),
    "neg": lambda a, b, w: -a * torch.neg(b),
    "linear": lambda a, b, w: functional.linear(a * b, torch.outer(w, w), w),
    "matmul": lambda a, b, w: (a * b) @ torch.outer(w, w) + torch.matmul(torch.eye(N, dtype=a.dtype), a.sin()),
    "mm": lambda a, b, w: torch.mm(a * b, torch.outer(w, w)),
    "cat": lambda a, b, w: torch.cat([a[:, :1], (a * b)[:, :2], torch.ones_like(a)[:, :1]], dim=1),
    "concat": lambda a, b, w: torch.concat([a[:, :2], b.sin()[:, :2]], -1),
    "stack": lambda a, b, w: torch.stack([a.sin(), b, torch.ones_like(a)], dim=2) @ w[:3],
    "where": lambda a, b, w: torch.where(a > 0, a.sin(), b) + torch.where(w > 0, 2.0, a * b),
    "layer_norm": lambda a, b, w: functional.layer_norm(a.sin() * b, (4,), w, w.cos()) + functional.layer_norm(a, (4,)),
    "dropout": lambda a, b, w: functional.dropout(a * b, 0.5, training=False),
    "clone": lambda a, b, w: (a * b).clone(),
    "contiguous": lambda a, b, w: (a * b).contiguous(),
    "double": lambda a, b, w: (a * b).double(),
    "float": lambda a, b, w: (a * b).float().double(),
    "to": lambda a, b, w: (a * b).to(torch.float64) * w.to(a) + (a * b).to(b),
    "type_as": lambda a, b, w: (a * b).type_as(b) * w.type_as(a),
    "expand": lambda a, b, w: (a * b)[:, :1].expand(-1, 4) * a,
    "expand_as": lambda a, b, w: (a * b)[:, :1].expand_as(b) * a + w[None].expand_as(a) * b,
    "flatten": lambda a, b, w: (a * b).unflatten(1, (2, 2)).flatten(1),
    "unflatten": lambda a, b, w: (a * b).unflatten(1, (2, 2))[:, :, 0] @ w.view(2, 2).repeat(1, 2),
    "diagonal": lambda a, b, w: (a * b).unflatten(1, (2, 2)).diagonal(dim1=1, dim2=2) @ w.view(2, 2),
    "movedim": lambda a, b, w: (a * b).unflatten(1, (2, 2)).movedim(1, 2).flatten(1),
    "narrow": lambda a, b, w: (a * b).narrow(1, 1, 2) @ w.view(2, 2).repeat(1, 2),
    "permute": lambda a, b, w: (a * b).permute(1, 0).permute(1, 0),
    "reshape": lambda a, b, w: (a * b).reshape(-1, 2).reshape(-1, 4),
    "reshape_as": lambda a, b, w: (a * b).reshape(-1, 2).reshape_as(b),
    "view": lambda a, b, w: (a * b).view(-1, 2, 2).view(*a.shape),
    "view_as": lambda a, b, w: (a * b).view(-1, 2, 2).view_as(b),
    "squeeze": lambda a, b, w: (a * b).unsqueeze(1).squeeze(1),
    "unsqueeze": lambda a, b, w: torch.unsqueeze(a * b, 2)[..., 0],
    "sum": lambda a, b, w: a * (a * b).sum(dim=1, keepdim=True),
    "mean": lambda a, b, w: a * torch.mean(a * b, dim=1, keepdim=True),
    "split": lambda a, b, w: torch.cat([x * x for x in (a * b).split([1, 3], dim=1)], dim=1),
    "chunk": lambda a, b, w: torch.cat([*reversed((a * b).chunk(2, dim=1))], dim=1),
    "unbind": lambda a, b, w: torch.cat([x[:, None].sin() for x in (a * b).unbind(dim=1)], dim=1),
    "t": lambda a, b, w: (a * b).t().t(),
    "transpose": lambda a, b, w: (a * b).transpose(0, 1).transpose(0, 1),
    "__getitem__": lambda a, b, w: (a * b)[:, [2, 0, 1, 1]] * (a * b)[:, None, 1],
    "zeros_like": lambda a, b, w: torch.zeros_like(a) + a * b,
    "ones_like": lambda a, b, w: torch.ones_like(a) * a * b,
    "full_like": lambda a, b, w: torch.full_like(a, 2.5) * a * b,
    "new_zeros": lambda a, b, w: a.new_zeros(1, 4) + a * b,
    "new_ones": lambda a, b, w: a.new_ones(1, 4) * a * b,
    "new_full": lambda a, b, w: a.new_full((1, 4), 2.5) * a * b,
    "new_tensor": lambda a, b, w: a.new_tensor([[1.0, 2.0, 3.0, 4.0]]) * a * b,
    "gt": lambda a, b, w: (a > 0) * b.square() + torch.gt(w, 0) * a * b,
    "ge": lambda a, b, w: torch.ge(a, b) * a * b,
    "lt": lambda a, b, w: (a < w) * a * b,
    "le": lambda a, b, w: (a <= b) * a * b,
    "eq": lambda a, b, w: torch.eq(a, a) * a * b,
    "ne": lambda a, b, w: torch.ne(a, b) * a * b,
}


def test_every_rule_is_tested():
    assert RULES.keys() == {key.partition(",")[0] for key in POINTWISE} | STRUCTURAL.keys()


def glorot(n, m, generator):
    """A linear layer with Glorot-uniform weights and no bias yet."""
    layer = nn.Linear(n, m, dtype=torch.float64)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class Within(nn.Module):
    """x ↦ f(c + r sin(W x + b)) layer by layer: the argument of f stays where f is smooth."""

    def __init__(self, function, low, high, generator):
        super().__init__()
        self.function, self.centre, self.radius = function, (low + high) / 2, (high - low) / 2
        sizes = [2, *(integer(generator, 3, 7) for _ in range(integer(generator, 1, 3))), integer(generator, 1, 2)]
        self.linears = nn.ModuleList(glorot(n, m, generator) for n, m in pairwise(sizes))
        randomize(self, generator)

    def forward(self, p):
        z = p.rows(COORDS)
        for linear in self.linears[:-1]:
            z = self.function(self.centre + self.radius * torch.sin(linear(z)))
        return self.linears[-1](z)


def randomize(module, generator):
    """Biases too, so that nothing is zero."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(uniform(generator, *p.shape) * (3 / p.shape[-1]) ** 0.5)


@pytest.mark.parametrize("key", POINTWISE)
def test_pointwise_functions(key):
    generator = torch.Generator().manual_seed(list(POINTWISE).index(key))
    function, low, high = POINTWISE[key]
    net = Within(function, low, high, generator)
    compare(net, points(generator), list(net.parameters()), generator)


@pytest.mark.parametrize("key", STRUCTURAL)
def test_linear_maps_sums_and_products(key, generator):
    first, second = (MLP(2, 4, width=5, depth=1, generator=generator) for _ in range(2))
    randomize(first, generator), randomize(second, generator)
    w = uniform(generator, 4).requires_grad_()

    def solution(p):
        return STRUCTURAL[key](first(p.rows(COORDS)), second(p.rows(COORDS)), w)

    tolerance = 1e-5 if key == "float" else 1e-12
    compare(solution, points(generator), [*first.parameters(), *second.parameters(), w], generator, tolerance=tolerance)


def test_a_function_gets_its_rule_by_one_line(generator, monkeypatch):
    net = Within(torch.special.erfcx, -1, 1, generator)
    with pytest.raises(NoJetRule, match="erfcx"):
        channels(net, points(generator), COORDS, WORDS, [])
    # Its derivatives, erfcx' = 2 z erfcx - 2/√π and so on, by hand for two orders and by autograd for any.
    by_hand = lambda z, k: [
        (a := torch.special.erfcx(z)),
        (b := 2 * z * a - 2 / math.sqrt(math.pi)),
        2 * a + 2 * z * b,
    ]
    for rule, words in [(by_autograd(torch.special.erfcx), WORDS), (by_hand, ["x", "t", "xx", "tx"])]:
        monkeypatch.setitem(RULES, "special_erfcx", pointwise(rule))
        compare(net, points(generator), list(net.parameters()), generator, words=words, operators=[])


@pytest.mark.parametrize("function", [torch.tanh, torch.sin, torch.cos, torch.exp, torch.square])
def test_some_rules_know_the_fourth_order(function, generator):
    net = Within(function, -1, 1, generator)
    fourth = [word(w) for w in combinations_with_replacement(COORDS, 4)]
    p = points(generator)
    L = [{"xxxx": 0.4, "x": 1.0}]
    compare(net, p, list(net.parameters()), generator, words=[*WORDS, *fourth], tolerance=1e-11, operators=L)


def test_what_has_no_rule_says_so(generator):
    p = points(generator)
    jet = seeded(p, COORDS, Channels(closed(["xxxx"]))).x
    for use, what in [
        (lambda: torch.cumsum(jet, 0), "cumsum"),
        (lambda: jet.logsumexp(1), "logsumexp"),
        (lambda: functional.gelu(jet), "gelu has jet rules up to order 3"),
        (lambda: torch.sigmoid(jet), "sigmoid has jet rules up to order 3"),
        (lambda: jet @ jet, "matrix product"),
        (lambda: jet**jet, "exponent"),
        (lambda: functional.linear(p.x, jet), "weight of a linear layer"),
        (lambda: functional.dropout(jet, 0.5, training=True), "draws other numbers at every call"),
    ]:
        with pytest.raises(NoJetRule, match=what):
            use()
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = jet.colour
    assert (jet.shape, jet.dtype, jet.device, jet.ndim, len(jet)) == ((N, 1), p.x.dtype, p.x.device, 2, N)


def test_a_whole_power_is_smooth_at_zero():
    channels = Channels(closed(["xxx"]))
    for exponent, third in [(2, 0.0), (3, 6.0)]:
        jet = seeded(Points(x=torch.zeros(1, 1)), ("x",), channels).x ** exponent
        assert [float(jet.part(alpha)) for alpha in ("", "x", "xxx")] == [0, 0, third]


def test_channels_that_vanish_are_not_carried(generator):
    p = points(generator)
    x = seeded(p, COORDS, Channels(closed(["xx", "xt"]), ({"xx": 1.0},))).x
    linear = functional.linear(2 * x - 1, torch.ones(3, 1, dtype=p.x.dtype))
    assert linear.parts.keys() == {"", "x"}
    assert torch.tanh(linear).parts.keys() == {"", "x", "xx", 0}


# Networks: what people build of the rules.


class Scaled(nn.Module):
    """Inputs to mean 0 and size 1, outputs back to physical units."""

    def __init__(self, net, inputs, outputs, generator):
        super().__init__()
        self.net = net
        self.register_buffer("mean", uniform(generator, inputs))
        self.register_buffer("std", uniform(generator, inputs, low=0.5))
        self.register_buffer("unit", uniform(generator, outputs, low=1.0, high=5.0))

    def forward(self, x):
        return self.unit * self.net((x - self.mean) / self.std) + 1.5


class FourierFeatures(nn.Module):
    """(sin 2πBx, cos 2πBx) for a fixed random B (Tancik et al., 2020)."""

    def __init__(self, net, inputs, features, generator):
        super().__init__()
        self.net = net
        self.register_buffer("B", 0.3 * torch.randn(inputs, features, generator=generator, dtype=torch.float64))

    def forward(self, x):
        phase = 2 * math.pi * x @ self.B
        return self.net(torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1))


class Hidden(nn.Module):
    """``depth`` layers of their own between an embedding into ``width`` and the outputs."""

    def __init__(self, inputs, outputs, width, depth, activation, generator):
        super().__init__()
        layers = lambda n, m, k: nn.ModuleList(glorot(n, m, generator) for _ in range(k))
        self.activation = ACTIVATIONS[activation]
        self.first = layers(inputs, width, 3)
        self.hidden = layers(width, width, depth)
        self.last = layers(width, outputs, 1)[0]


class Gated(Hidden):
    """The modified MLP: h ← (1 - z) U + z V (Wang, Teng and Perdikaris, 2021)."""

    def forward(self, x):
        U, V, h = (self.activation(first(x)) for first in self.first)
        for hidden in self.hidden:
            z = self.activation(hidden(h))
            h = (1 - z) * U + z * V
        return self.last(h)


class Residual(Hidden):
    """h ← h + a σ(W h + b) with a trained a."""

    def __init__(self, *args):
        super().__init__(*args)
        self.a = nn.Parameter(torch.ones(len(self.hidden), dtype=torch.float64))

    def forward(self, x):
        h = self.first[0](x)
        for a, hidden in zip(self.a, self.hidden, strict=True):
            h = h + a * self.activation(hidden(h))
        return self.last(h)


def mlp(inputs, outputs, width, depth, activation, generator):
    return MLP(inputs, outputs, width, depth, activation, generator)


def scaled(inputs, outputs, width, depth, activation, generator):
    return Scaled(mlp(inputs, outputs, width, depth, activation, generator), inputs, outputs, generator)


def fourier(inputs, outputs, width, depth, activation, generator):
    features = integer(generator, 2, 4)
    net = mlp(2 * features, outputs, width, depth, activation, generator)
    return FourierFeatures(net, inputs, features, generator)


def sequential(inputs, outputs, width, depth, activation, generator):
    """torch's own modules, their activations among them."""
    module = {"tanh": nn.Tanh, "sin": nn.Sigmoid, "gelu": nn.GELU, "silu": nn.SiLU, "softplus": nn.Softplus}[activation]
    net = mlp(inputs, outputs, width, depth, activation, generator)
    layers = [layer for linear in net.linears[:-1] for layer in (linear, module(), nn.Identity())]
    return nn.Sequential(*layers, net.linears[-1])


def lora(inputs, outputs, width, depth, activation, generator):
    """Adapted layers away from their start, s ≠ 1."""
    net = mlp(inputs, outputs, width, depth, activation, generator)
    randomize(net, generator)
    put_factors(net, linear_targets(net, "*" if depth == 1 else None), 1, 0.6, orthonormal, generator)
    for layer in adapters(net).values():
        with torch.no_grad():
            layer.A.add_(uniform(generator, *layer.A.shape))
            layer.B.add_(uniform(generator, *layer.B.shape))
        assert layer.update().abs().max() > 0.1
    return net


NETS = [mlp, lora, scaled, fourier, sequential, Gated, Residual]
PROBLEMS = [Burgers(), Burgers(conditions="soft"), Convection(), Kovasznay()]
label = lambda value: name(value) if hasattr(value, "region") else getattr(value, "__name__", str(value))


def represented(build, problem, activation, generator):
    """The problem's solution (ansatz, embedding) around a net of random depth and width."""
    depth, width = integer(generator, 1, 4), integer(generator, 3, 7)
    net = build(problem.inputs, len(problem.fields), width, depth, activation, generator)
    if build is not lora:
        randomize(net, generator)
    return Solution(problem, net)


@pytest.mark.parametrize(
    ("build", "problem", "activation", "seed"),
    [
        (build, PROBLEMS[(i + j) % len(PROBLEMS)], activation, 10 * i + j)
        for (i, build), (j, activation) in product(enumerate(NETS), enumerate(ACTIVATIONS))
    ],
    ids=label,
)
def test_networks(build, problem, activation, seed):
    generator = torch.Generator().manual_seed(seed)
    solution = represented(build, problem, activation, generator)
    words = [word(w) for k in (1, 2, 3) for w in combinations_with_replacement(problem.coords, k)]
    weights = [p for p in solution.parameters() if p.requires_grad]
    compare(solution, points(generator, problem.coords), weights, generator, problem.coords, words)


@pytest.mark.parametrize("build", NETS, ids=label)
def test_single_precision(build, generator):
    """Jets in float32 against reverse mode in float64, the weights the same."""
    problem = Convection()
    solution = represented(build, problem, "tanh", generator).float()
    p = points(generator, dtype=torch.float32)
    L = operators(generator, dtype=torch.float32)
    weights = [x for x in solution.parameters() if x.requires_grad]
    cotangents = [uniform(generator, N, 1) for _ in range(1 + len(WORDS) + len(L))]

    def answers(way, p, dtype):
        found = way(solution, p, COORDS, WORDS, [{a: _to(c, dtype) for a, c in o.items()} for o in L])
        total = sum((w.to(dtype) * x).sum() for w, x in zip(cotangents, found, strict=True))
        return [*found, *torch.autograd.grad(total, weights, materialize_grads=True)]

    single = answers(channels, p, torch.float32)
    assert {x.dtype for x in single} == {torch.float32}
    solution.double()
    for a, b in zip(single, answers(expected, p.to(torch.float64), torch.float64), strict=True):
        assert distance(a, b) < 1e-5


def _to(c, dtype):
    return c.detach().to(dtype) if isinstance(c, torch.Tensor) else c


@pytest.mark.parametrize("problem", CASES, ids=name)
def test_loss_and_gradient_of_every_problem(problem, generator):
    """By the engine that a run uses, and by reverse mode; hidden layers adapted, s ≠ 1."""
    net = lora(problem.inputs, len(problem.fields), 7, 3, "tanh", generator)
    solution = Solution(problem, net)
    weights = [p for p in net.parameters() if p.requires_grad]
    jets, reverse = (System(problem, solution, derivatives=engine) for engine in ("jets", "autograd"))
    p = draw_points(jets.terms, interior=16, boundary=8, seed=3)
    a, b = (system.loss(p) for system in (jets, reverse))
    for key in b.terms:
        assert jets.engine(key).plan is not None
        assert reverse.engine(key).plan is None
        assert distance(a.terms[key], b.terms[key]) < 1e-12
    for x, y in zip(*(torch.autograd.grad(loss.total, weights) for loss in (a, b)), strict=True):
        assert distance(x, y) < 1e-12


# Functions of the coordinates that have no rules.


def test_lifted_functions_get_all_channels_from_reverse_mode(generator):
    """Polar coordinates, by atan2 and hypot."""
    net = mlp(2, 2, 5, 2, "tanh", generator)
    polar = lambda p: torch.cat([torch.hypot(p.x, p.t), torch.atan2(p.t, p.x)], dim=1)
    pair = lambda p: (torch.hypot(p.x, p.t), torch.atan2(p.t, p.x) * p.c)
    solution = lambda p: net(lifted(polar, p)) * lifted(pair, p)[0] + lifted(pair, p)[1]
    p = Points({**points(generator), "c": uniform(generator, N, 1)})
    with pytest.raises(NoJetRule):
        polar(seeded(p, COORDS, Channels(("x",))))
    compare(solution, p, list(net.parameters()), generator)
    assert torch.equal(lifted(polar, p), polar(p))


def test_lifted_functions_that_jets_cannot_enter(generator):
    """Not for want of a rule, but since a jet is no tensor: in-place writing, properties, values."""
    p = points(generator)

    def written(p):
        columns = torch.zeros(len(p.x), 2, dtype=p.x.dtype)
        columns[:, :1] = p.x**2 * p.t
        columns[:, 1:] = torch.exp(p.t.T.T)
        return columns

    compare(lambda p: torch.sin(lifted(written, p)), p, [], generator, operators=lambda *a: operators(*a)[:2])
    with pytest.raises(ZeroDivisionError):
        lifted(lambda p: 1 / 0, p)


def test_lifted_functions_with_rules_stay_jets(generator):
    p = seeded(points(generator), COORDS, Channels(closed(["xx"])))
    assert isinstance(lifted(lambda p: torch.sin(p.x), p), Jet)
    assert lifted(lambda p: torch.sin(p.x), p).parts.keys() == {"", "x", "xx"}


# What is kept with points.


def test_points_that_are_where_they_should_be_keep_what_they_have(generator):
    p = Points({"x": uniform(generator, 10, 1), "t": uniform(generator, 10, 1)})
    p.kept("sum", lambda: p.x + p.t)
    assert p.to(torch.float64) is p
    assert p.to(torch.device("cpu"), torch.float64).kept("sum", lambda: None) is not None
    other = p.to(torch.float32)
    assert other.x.dtype == torch.float32
    assert other.kept("sum", lambda: None) is None


@dataclass(frozen=True, kw_only=True)
class Counting(Problem):
    """u' = -k u with u(0) = k, so that the ansatz has the coefficient and the operator has not."""

    coords = ("t",)
    region = Box(t=(0, 1))
    enforced = ()
    asked: ClassVar = []
    k: float = parameter(1.0, 2.0, above=0)

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_t + self.k * f.u)}

    def ansatz(self, p):
        self.asked.append(isinstance(p.t, Jet))
        return torch.exp(-p.t) * self.k, p.t


@pytest.mark.parametrize("unknown", [(), ("k",)])
def test_functions_of_the_coordinates_are_found_once_for_the_same_points(unknown, generator):
    """Whatever the weights have become since; and at every evaluation where they have an unknown coefficient."""
    Counting.asked.clear()
    net = mlp(1, 1, 5, 2, "tanh", generator)
    solution = Solution(Counting(), net, unknown)
    system = System(solution.problem, solution)
    p = Points({"t": uniform(generator, 9, 1)})
    system.residuals({"pde": p})
    Counting.asked.clear()
    for _ in range(3):
        with torch.no_grad():
            for x in solution.parameters():
                x += 0.1
        found = system.residuals({"pde": p})["pde"]
        asked = sum(Counting.asked)
        expected = System(solution.problem, solution, derivatives="autograd").residuals({"pde": p})["pde"]
        assert distance(found, expected) < 1e-12
        assert asked == (1 if unknown else 0)
        Counting.asked.clear()


def test_pieces_are_the_points_in_their_order(generator):
    p = Points({"x": uniform(generator, 10, 1), "t": uniform(generator, 10, 1)})
    parts = p.pieces(4)
    assert [q.number for q in parts] == [4, 4, 2]
    assert all(torch.equal(torch.cat([q[name] for q in parts]), p[name]) for name in p)

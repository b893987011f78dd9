"""Twenty steps of every rival equal a NumPy version written from its paper and code by another hand (``formulas``).

A method without a formula fails, unless it is named in ``EXEMPT``: what is not a published update of
pairs, or has a test of its own.
"""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formulas import driver, problem

import pinn_odelora as po
from pinn_odelora.integrators import RungeKutta

STEPS = 20
TOLERANCE = 1e-10
METHODS = sorted(p.stem for p in (Path(__file__).parent.parent / "configs" / "method").glob("*.yaml"))
# Ours, and methods on all weights.
EXEMPT = {"odelora", "full_adam", "full_implicit", "full_lbfgs"}


@dataclass(frozen=True)
class Case:
    """How a method and its formula are called; whether the published start is B = 0; what has a meaning."""

    lr: float = 1e-2
    method: dict[str, Any] = field(default_factory=dict)
    formula: dict[str, Any] = field(default_factory=dict)
    starts: tuple[str, ...] = ("generic", "zero")
    integrated: bool = False
    products: bool = False
    scales: tuple[float, float] = (0.7, 1.3)
    tolerance: float = TOLERANCE


CASES = {
    "lora_gd": Case(integrated=True),
    "lora_adam": Case(),
    "lora_adamw": Case(),
    "lora_plus": Case(lr=2e-3),
    "lora_fa": Case(),
    "scaled_gd": Case(integrated=True, starts=("generic",)),
    "scaled_adamw": Case(),
    "lora_pro": Case(integrated=True),
    "lora_pro_adamw": Case(),
    "lora_rite": Case(),
    "altlora": Case(),
    "altlora_plus": Case(),
    "reflora": Case(method={"warmup": 5}, formula={"warmup": 5}),
    # From B = 0 the first product is nearly of lower rank, and √Σ has the errors of its least singular value enlarged.
    "balora": Case(tolerance=1e-8),
    "loft": Case(),
    "lora_muon": Case(starts=("generic",)),
    # PyTorch iterates in bfloat16; ``test_muon_on_factors_is_pytorchs`` is exact.
    "factor_muon": Case(tolerance=5e-3),
    "allora": Case(scales=(1.0, 1.0)),
    "geolora": Case(products=True, starts=("generic",)),
}


def test_every_method_has_a_formula():
    """A rival that is added needs a formula or a reason."""
    assert set(METHODS) - EXEMPT <= set(CASES)


def optimizer(name, case, groups):
    make = getattr(po.methods, name)
    if case.integrated:
        return make(RungeKutta(h=case.lr), **case.method).optimizer(groups)
    return make(lr=case.lr, **case.method).optimizer(groups)


def torch_path(make, setting, start, n=STEPS):
    """The points after each of n steps of an optimiser made from groups."""
    as_parameter = lambda x: torch.nn.Parameter(torch.tensor(x))
    pairs, c = [tuple(map(as_parameter, pair)) for pair in start[0]], as_parameter(start[1])
    groups = [{"params": [*pair], "scale": s} for pair, s in zip(pairs, setting.scales, strict=True)]
    mover, path = make([*groups, {"params": [c]}]), []

    def closure():
        mover.zero_grad()
        loss = setting.pair_loss(pairs, c)
        loss.backward()
        return loss

    copied = lambda x: x.detach().numpy().copy()
    for _ in range(n):
        mover.step(closure)
        path.append(([tuple(map(copied, pair)) for pair in pairs], copied(c)))
    return path


def distance(point, other, products=False):
    """Of two points, pair by pair and for the vector, relative to the size of each."""
    pairs, vector = point
    known = lambda pair: [pair[1] @ pair[0]] if products else pair
    norm = lambda tensors: np.sqrt(sum(np.sum(x**2) for x in tensors))
    sides = [(known(a), known(b)) for a, b in zip(pairs, other[0], strict=True)] + [([vector], [other[1]])]
    return max(norm([x - y for x, y in zip(a, b, strict=True)]) / norm(b) for a, b in sides)


@pytest.mark.parametrize(
    ("name", "start"), [(name, start) for name in CASES if name in METHODS for start in CASES[name].starts]
)
def test_twenty_steps_equal_the_formula(name, start):
    case = CASES[name]
    setting, first = problem.Problem.random(case.scales), getattr(problem, start)()
    formula = importlib.import_module(f"formulas.{name}")
    expected = driver.steps(formula, setting, first, case.lr, STEPS, **case.formula)
    path = torch_path(lambda groups: optimizer(name, case, groups), setting, first)
    apart = [distance(x, y, case.products) for x, y in zip(path, expected, strict=True)]
    assert max(apart) < case.tolerance, [f"{d:.1e}" for d in apart]
    assert distance(expected[-1], first if start == "generic" else expected[0], case.products) > 1e-3


class Model(torch.nn.Module):
    """The problem's network, for PEFT to adapt."""

    def __init__(self, setting, c):
        super().__init__()
        self.first, self.second = (torch.nn.Linear(*W.shape[::-1], bias=False) for W in setting.bases)
        for layer, W in zip((self.first, self.second), setting.bases, strict=True):
            layer.weight = torch.nn.Parameter(torch.tensor(W))
        self.c = torch.nn.Parameter(torch.tensor(c))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) + self.c


def peft_path(make, setting, start, n=STEPS):
    """The points after each of n steps of an optimiser made from a PEFT model."""
    peft = pytest.importorskip("peft")
    (pairs, c), ranks = start, {"first": 3, "second": 2}
    config = peft.LoraConfig(r=3, rank_pattern=ranks, target_modules=list(ranks))
    model = peft.get_peft_model(Model(setting, c), config).double()
    base = model.base_model.model
    base.c.requires_grad_()
    layers = [base.first, base.second]
    for layer, (A, B), s in zip(layers, pairs, setting.scales, strict=True):
        layer.scaling["default"] = s
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = torch.tensor(A), torch.tensor(B)
    mover, path = make(model), []
    x, y, w = map(torch.tensor, (setting.x, setting.y, setting.w))
    for _ in range(n):
        model.zero_grad()
        (0.5 * (w * ((model(x) - y) ** 2).sum(1)).sum()).backward()
        mover.step()
        now = lambda factor: [getattr(layer, factor)["default"].weight.detach().numpy().copy() for layer in layers]
        path.append((list(zip(now("lora_A"), now("lora_B"), strict=True)), base.c.detach().numpy().copy()))
    return path


def tensors(groups):
    return [x for group in groups for x in group["params"]]


def both(*optimizers):
    """Several optimisers as one, of different parameters."""

    def step(closure):
        closure()
        for mover in optimizers:
            mover.step()

    zero = lambda: [mover.zero_grad() for mover in optimizers]
    return type("Both", (), {"step": staticmethod(step), "zero_grad": staticmethod(zero)})


def lorarite(groups, **settings):
    package = pytest.importorskip("pytorch_optimizer")
    known, rest = tensors(groups[:-1]), tensors(groups[-1:])
    return both(package.LoRARite(known, lr=1e-2, **settings), torch.optim.Adam(rest, lr=1e-2))


def peft_optimizer(name, *arguments, **settings):
    return lambda model: getattr(pytest.importorskip("peft.optimizers"), name)(model, *arguments, **settings)


DECAY = {"weight_decay": 0.03}
PACKAGES = {
    "lora_gd": (torch_path, lambda g: torch.optim.SGD(tensors(g), lr=1e-2), {}),
    "lora_adam": (torch_path, lambda g: torch.optim.Adam(tensors(g), lr=1e-2), {}),
    "lora_adamw": (torch_path, lambda g: torch.optim.AdamW(tensors(g), lr=1e-2, **DECAY), DECAY),
    "lora_plus": (
        peft_path,
        peft_optimizer("create_loraplus_optimizer", torch.optim.Adam, lr=1e-2, loraplus_lr_ratio=3.0),
        {"ratio": 3.0},
    ),
    "lora_fa": (peft_path, peft_optimizer("create_lorafa_optimizer", 3, 3, 1e-2, weight_decay=0.03), DECAY),
    "scaled_gd": (
        peft_path,
        peft_optimizer("create_riemannian_optimizer", torch.optim.SGD, lr=1e-2, reg=0.05),
        {"damping": 0.05, "of_product": False},
    ),
    "scaled_adamw": (
        peft_path,
        peft_optimizer("create_riemannian_optimizer", torch.optim.AdamW, lr=1e-2, reg=0.05, **DECAY),
        {"damping": 0.05, **DECAY},
    ),
    "lora_rite": (torch_path, lambda g: lorarite(g, update_skipping=0.0, **DECAY), DECAY),
}


@pytest.mark.parametrize("start", ["generic", "zero"])
@pytest.mark.parametrize("name", list(PACKAGES))
def test_the_formula_is_the_package(name, start):
    """The formulas themselves against the optimisers that PyTorch, PEFT and pytorch_optimizer keep."""
    path, make, settings = PACKAGES[name]
    setting, first = problem.Problem.random(), getattr(problem, start)()
    expected = driver.steps(importlib.import_module(f"formulas.{name}"), setting, first, 1e-2, STEPS, **settings)
    apart = [distance(x, y) for x, y in zip(path(make, setting, first), expected, strict=True)]
    assert max(apart) < TOLERANCE, [f"{d:.1e}" for d in apart]


def test_muon_on_factors_is_pytorchs():
    """Exactly: both iterate in bfloat16."""
    setting, first = problem.Problem.random(), problem.generic()

    def muon(groups):
        matrices, rest = tensors(groups[:-1]), tensors(groups[-1:])
        return both(torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.0), torch.optim.Adam(rest, lr=1e-2))

    path = torch_path(lambda groups: optimizer("factor_muon", CASES["factor_muon"], groups), setting, first)
    assert distance(path[-1], torch_path(muon, setting, first)[-1]) < TOLERANCE


def test_gradients_by_hand_are_those_of_autograd():
    """The formulas see what the optimisers see."""
    setting, (pairs, c) = problem.Problem.random(), problem.generic()
    leaves = [[torch.tensor(x, requires_grad=True) for x in pair] for pair in pairs]
    vector = torch.tensor(c, requires_grad=True)
    setting.pair_loss(leaves, vector).backward()
    gradients, g_c = setting.gradients(pairs, c)
    by_hand, by_torch = [*gradients[0], *gradients[1], g_c], [x.grad for x in (*leaves[0], *leaves[1], vector)]
    assert all(np.allclose(g, h.numpy(), rtol=1e-12, atol=1e-14) for g, h in zip(by_hand, by_torch, strict=True))

"""Twenty steps of every rival equal a NumPy version written from its paper and code by another hand (``formulas``).

A method without a formula fails, unless it is named in ``EXEMPT``: ours, methods on all weights, quasi-Newton methods.
The formulas are compared with the optimisers that packages keep, too.
"""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formulas import dora, driver, polar, problem

import pinn_odelora as po
from pinn_odelora.integrators import RungeKutta

STEPS = 20
TOLERANCE = 1e-10
METHODS = sorted(p.stem for p in (Path(__file__).parent.parent / "configs" / "method").glob("*.yaml"))
# Ours, and methods on all weights.
EXEMPT = {
    "odelora",
    "full_adam",
    "full_implicit",
    "full_lbfgs",
    "full_muon",
    "full_natural",
    "full_soap",
    "full_ssbroyden",
    "lora_lbfgs",
    "lora_ssbroyden",
}


@dataclass(frozen=True)
class Case:
    """How a method and its formula are called, from which starts, and how near they must be."""

    name: str
    lr: float = 1e-2
    method: dict[str, Any] = field(default_factory=dict)
    formula: dict[str, Any] | None = None
    starts: tuple[str, ...] = ("generic", "zero")
    integrated: bool = False
    products: bool = False
    scales: tuple[float, float] = (0.7, 1.3)
    tolerance: float = TOLERANCE

    @property
    def settings(self):
        return self.method if self.formula is None else self.formula


GENERIC = ("generic",)
BETAS = {"betas": (0.8, 0.99)}
DECAY = {"weight_decay": 0.03}
# A case with the defaults of both sides, and cases with other settings, since defaults are small or zero.
CASES = [
    Case("lora_gd", integrated=True),
    Case("lora_adam"),
    Case("lora_adam", method=BETAS),
    Case("lora_adamw"),
    Case("lora_adamw", method=DECAY | BETAS),
    Case("lora_plus", lr=2e-3),
    Case("lora_plus", method={"ratio": 3.0} | BETAS),
    Case("lora_fa"),
    Case("lora_fa", method=DECAY | BETAS),
    Case("scaled_gd", integrated=True, starts=GENERIC),
    Case("scaled_gd", integrated=True, method={"damping": 0.05}),
    Case("scaled_adamw", method={"sequential": False}),
    Case("scaled_adamw", method={"sequential": True}),
    Case("scaled_adamw", method={"sequential": False, "damping": 0.05} | DECAY | BETAS),
    Case("lora_pro", integrated=True),
    Case("lora_pro", integrated=True, method={"damping": 1e-3}),
    Case("lora_pro_adamw"),
    Case("lora_pro_adamw", method=DECAY | BETAS),
    Case("lora_rite", formula={"clip": 0.0}),
    Case("lora_rite", method={"clip": 0.1, "skip": 0.35, "eps": 1e-4} | BETAS),
    Case("altlora"),
    Case("altlora", method={"beta": 0.9, "damping": 0.05}),
    Case("altlora_plus"),
    Case("altlora_plus", method={"damping": 0.05, "eps": 1e-3} | BETAS),
    Case("reflora", formula={"warmup": 0}, starts=GENERIC),
    Case("reflora", formula={"warmup": 100}, starts=("zero",)),
    Case("reflora", method={"warmup": 5} | BETAS),
    Case("balora", lr=3e-2),
    Case("balora", lr=3e-2, method={"gauge": "nearest"}, formula={"nearest": True}),
    Case("loft"),
    Case("loft", method={"eps": 1e-2} | BETAS),
    Case("lora_muon", method={"momentum": 0.9}),
    Case("lora_muon", method={"momentum": 0.9, "decay": 0.3}, formula={"momentum": 0.9, "weight_decay": 0.3}),
    # PyTorch iterates in bfloat16; ``test_muon_on_factors_is_pytorchs`` is exact.
    Case("factor_muon", tolerance=5e-3),
    Case("allora", scales=(1.0, 1.0)),
    Case("allora", method={"eta": 0.5} | BETAS, scales=(1.0, 1.0)),
    Case("geolora", products=True, starts=GENERIC),
]
# PoLAR has three variables, and a test of its own; DoRA has a layer of its own, and is compared in ``test_dora``.
NAMES = {case.name for case in CASES} | {"polar", "dora"}


def test_every_method_has_a_formula():
    """A rival that is added needs a formula or a reason."""
    assert set(METHODS) - EXEMPT <= NAMES


def optimizer(case, groups):
    make = getattr(po.methods, case.name)
    if case.integrated:
        return make(RungeKutta(h=case.lr), **case.method).optimizer(groups)
    return make(lr=case.lr, **case.method).optimizer(groups)


def copied(tensors):
    return [x.detach().numpy().copy() for x in tensors]


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

    for _ in range(n):
        mover.step(closure)
        path.append(([tuple(copied(pair)) for pair in pairs], *copied([c])))
    return path


def distance(point, other, products=False):
    """Of two points, pair by pair and for the vector, relative to the size of each."""
    pairs, vector = point
    known = lambda pair: [pair[1] @ pair[0]] if products else pair
    norm = lambda tensors: np.sqrt(sum(np.sum(x**2) for x in tensors))
    sides = [(known(a), known(b)) for a, b in zip(pairs, other[0], strict=True)] + [([vector], [other[1]])]
    return max(norm([x - y for x, y in zip(a, b, strict=True)]) / norm(b) for a, b in sides)


def followed(case, path):
    """Settings that let a formula choose the signs of singular vectors, which no paper fixes, as a path did."""
    free = case.name == "balora" and not case.method
    return {"like": iter([pair for pairs, _ in path for pair in pairs])} if free else {}


@pytest.mark.parametrize(
    ("case", "start"),
    [
        pytest.param(case, start, id=f"{case.name}-{start}-{number}")
        for number, case in enumerate(CASES)
        for start in case.starts
        if case.name in METHODS
    ],
)
def test_twenty_steps_equal_the_formula(case, start):
    setting, first = problem.Problem.random(case.scales), getattr(problem, start)()
    path = torch_path(lambda groups: optimizer(case, groups), setting, first)
    formula, settings = importlib.import_module(f"formulas.{case.name}"), case.settings | followed(case, path)
    expected = driver.steps(formula, setting, first, case.lr, STEPS, **settings)
    apart = [distance(x, y, case.products) for x, y in zip(path, expected, strict=True)]
    assert max(apart) < case.tolerance, [f"{d:.1e}" for d in apart]
    assert distance(first, expected[-1], case.products) > 1e-3


@pytest.mark.skipif("polar" not in METHODS, reason="no method of this name")
@pytest.mark.parametrize("settings", [{}, {"landing": 0.2} | BETAS])
def test_twenty_steps_of_polar_equal_the_formula(settings):
    """From generic pairs: at Θ = 0 Adam divides rounding errors of XᵀX − I by its ε."""
    setting, (pairs, c) = problem.Problem.random(), problem.generic()
    path = torch_path(lambda groups: optimizer(Case("polar", method=settings), groups), setting, (pairs, c))
    renamed = {"landing": "penalty"}
    of_formula = {renamed.get(key, key): value for key, value in settings.items()}
    triples = polar.steps(setting, ([polar.from_pair(*pair) for pair in pairs], c), 1e-2, STEPS, **of_formula)
    expected = [([polar.to_pair(*triple) for triple in point], vector) for point, vector in triples]
    apart = [distance(x, y) for x, y in zip(path, expected, strict=True)]
    assert max(apart) < TOLERANCE, [f"{d:.1e}" for d in apart]


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


def peft_model(setting, start, **settings):
    """The problem's network adapted by PEFT at a start, and its two adapted layers."""
    peft = pytest.importorskip("peft")
    (pairs, c), ranks = start, {"first": 3, "second": 2}
    config = peft.LoraConfig(r=3, rank_pattern=ranks, target_modules=list(ranks), **settings)
    model = peft.get_peft_model(Model(setting, c), config).double()
    base = model.base_model.model
    base.c.requires_grad_()
    layers = [base.first, base.second]
    for layer, (A, B), s in zip(layers, pairs, setting.scales, strict=True):
        layer.scaling["default"] = s
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = torch.tensor(A), torch.tensor(B)
    return model, layers


def peft_path(make, setting, start, n=STEPS, extra=lambda layer: (), **settings):
    """The points after each of n steps of an optimiser made from a PEFT model, with ``extra`` tensors of its layers."""
    model, layers = peft_model(setting, start, **settings)
    known = [(x.lora_A["default"].weight, x.lora_B["default"].weight, *extra(x)) for x in layers]
    mover, path = make(model), []
    x, y, w = map(torch.tensor, (setting.x, setting.y, setting.w))
    for _ in range(n):
        model.zero_grad()
        (0.5 * (w * ((model(x) - y) ** 2).sum(1)).sum()).backward()
        mover.step()
        path.append(([tuple(copied(group)) for group in known], *copied([model.base_model.model.c])))
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


@pytest.mark.parametrize("start", ["generic", "zero"])
def test_the_formula_of_dora_is_pefts(start):
    """Magnitudes, and norms that are constants in the gradient."""
    setting, first = problem.Problem.random(), getattr(problem, start)()

    def adam(model):
        for layer, norms in zip((model.base_model.model.first, model.base_model.model.second), starts, strict=True):
            layer.lora_magnitude_vector["default"].weight.data = torch.tensor(norms)
        return torch.optim.Adam([x for x in model.parameters() if x.requires_grad], lr=1e-2)

    starts = dora.magnitudes(setting, first[0])
    magnitude = lambda layer: [layer.lora_magnitude_vector["default"].weight]
    path = peft_path(adam, setting, first, extra=magnitude, use_dora=True)
    expected = dora.steps(setting, first, 1e-2, STEPS)
    apart = [distance(x, y) for x, y in zip(path, expected, strict=True)]
    assert max(apart) < TOLERANCE, [f"{d:.1e}" for d in apart]


def test_muon_on_factors_is_pytorchs():
    """Exactly: both iterate in bfloat16."""
    setting, first = problem.Problem.random(), problem.generic()

    def muon(groups):
        matrices, rest = tensors(groups[:-1]), tensors(groups[-1:])
        return both(torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.0), torch.optim.Adam(rest, lr=1e-2))

    path = torch_path(lambda groups: optimizer(Case("factor_muon"), groups), setting, first)
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

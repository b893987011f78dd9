"""Starts of the factors: what they are made from, and that every method can go on from them."""

import math

import pytest
import torch
from torch import linalg, nn

import pinn_odelora as po
from pinn_odelora.errors import InputError
from pinn_odelora.integrators import tableau
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.settings import KEPT, OF_GRADIENT, SINGULAR, STARTS
from pinn_odelora.lowrank.start import lora_ga, lora_one, named, nora, olora
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.system import Solution, System, draw_points
from problems.heat import Heat

BALANCED = ("orthonormal", "pissa", "lora_one")
every_start = pytest.mark.parametrize("start", STARTS)


def matrix(m=7, n=9, seed=2, dtype=torch.float64):
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def drawn(start, M, rank=3, scale=0.7, seed=0):
    return named(start, 0.3)(M, rank, scale, torch.Generator().manual_seed(seed))


# The factors.


@every_start
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_precision_rank_and_balance(start, dtype):
    for m, n in ((7, 9), (9, 7)):
        A, B = drawn(start, matrix(m, n, dtype=dtype))
        assert (A.shape, B.shape) == ((3, n), (m, 3))
        assert A.dtype == B.dtype == dtype
        assert not A.requires_grad
        ranks = [int(linalg.matrix_rank(x.double(), rtol=1e-5)) for x in (A, B)]
        assert sorted(ranks) == ([0, 3] if start in SINGULAR else [3, 3])
        gap = float((B.mT @ B - A @ A.mT).norm() / (B.norm() ** 2 + A.norm() ** 2))
        assert (gap < 1e-6) == (start in BALANCED)


@every_start
def test_the_seed_decides(start):
    first, again, other = (drawn(start, matrix(), seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    random = start in ("zero", "orthonormal", "nora")
    assert all(map(torch.equal, first, other)) != random


@every_start
def test_the_layer_keeps_its_function_unless_the_paper_changes_it(start):
    layer = nn.Linear(9, 7).double()
    with torch.no_grad():
        layer.weight.copy_(matrix())
    factors = drawn(start, matrix(seed=5) if start in OF_GRADIENT else layer.weight)
    adapted = LowRankLinear(layer, factors, 0.7, subtracted=start not in KEPT)
    expected = 0.7 * factors.B @ factors.A if start in KEPT else torch.zeros(7, 9, dtype=torch.float64)
    assert torch.allclose(adapted.weight - layer.weight, expected, atol=1e-14)
    assert (expected.norm() > 0) == (start in KEPT)


def test_olora_takes_the_leading_part_of_qr():
    W, s = matrix(), 0.7
    A, B = olora(W, 3, s, None)
    assert torch.allclose(B.mT @ B, torch.eye(3, dtype=torch.float64))
    assert torch.allclose((B @ A)[:, :3], W[:, :3])  # the first r columns lie in the span of Q_r
    assert torch.allclose(B @ A, B @ B.mT @ W)


def test_nora_sketches_the_weight(generator):
    W = matrix(40, 30) @ torch.diag(torch.logspace(0, -3, 30, dtype=torch.float64))
    A, B = nora(W, 4, 1.0, generator)
    assert not A.any()
    assert torch.allclose(W @ linalg.lstsq(W, B).solution, B)  # in the column space of W
    widths = torch.stack([nora(torch.eye(30, dtype=torch.float64), 4, 1.0, generator).B for _ in range(200)])
    assert float(widths.var()) == pytest.approx(1 / 30, rel=0.05)


def test_lora_ga_takes_neighbouring_singular_vectors_of_the_gradient():
    G = matrix(16, 9)
    A, B = lora_ga(G, 3, 1.0, None)
    values = linalg.svdvals(G)
    for k in range(3):
        # Row k of A is a leading right vector; column k of B one of the next left vectors, times its value.
        assert float(A[k].norm()) == pytest.approx(1)
        assert float((G @ A[k]).norm()) == pytest.approx(float(values[k]))
        assert float(B[:, k].norm()) == pytest.approx(float(values[3 + k]) * 16**0.25 / 4)
        assert float((B[:, k] @ G).norm() / B[:, k].norm()) == pytest.approx(float(values[3 + k]))
    with pytest.raises(InputError, match="rank is 5, but it must be at most 4 with the start lora_ga"):
        lora_ga(G, 5, 1.0, None)


def test_lora_one_has_the_direction_of_the_best_step_of_rank_r():
    G = matrix()
    A, B = lora_one(G, 3, 1.0, None)
    U, sigma, Vh = linalg.svd(G)
    best = (U[:, :3] * sigma[:3]) @ Vh[:3]
    assert torch.allclose(B @ A, -best / sigma[0] / 128)
    with pytest.raises(InputError, match="the gradient at the start is zero"):
        lora_one(torch.zeros(4, 5), 2, 1.0, None)


@pytest.mark.parametrize("start", ["pissa", "olora", "lora_ga"])
def test_products_are_those_of_peft(start):
    peft = pytest.importorskip("peft")
    W, G = matrix(16, 12, dtype=torch.float32), matrix(16, 12, seed=8, dtype=torch.float32)
    model = nn.Sequential(nn.Linear(12, 16, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(W)
    settings = {"lora_ga_config": peft.LoraGAConfig()} if start == "lora_ga" else {}
    model[0]._peft_loraga_grad = G.clone()
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=start, **settings)
    )
    layer = wrapped.base_model.model[0]
    theirs = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    ours = drawn(start, G if start == "lora_ga" else W, scale=layer.scaling["default"])
    for x, y in zip(theirs, ours, strict=True):  # up to the signs of singular vectors
        assert torch.allclose(x.mT @ x if len(x) == 16 else x @ x.mT, y.mT @ y if len(y) == 16 else y @ y.mT, atol=1e-4)
        assert torch.allclose(x.abs(), y.abs(), atol=1e-4)
    assert layer.scaling["default"] == 2
    changed = layer.scaling["default"] * theirs[1] @ theirs[0] + layer.base_layer.weight
    assert torch.allclose(changed, W, atol=1e-4)


# Runs.


def pretrained(seed=1):
    return po.MLP(2, 1, width=10, depth=3, generator=torch.Generator().manual_seed(seed))


def run(start, method=None, evals=5, seed=0, **settings):
    points = po.Sampling.fixed(100, 30)
    lora = po.LoRA(rank=2, start=start)
    budget = po.Budget(gradient_evals=evals)
    return po.steps(pretrained(), Heat(), lora=lora, method=method, points=points, budget=budget, seed=seed, **settings)


METHODS = {
    "odelora": None,
    "lora_gd": po.methods.lora_gd(po.RungeKutta(tableau.EULER, h=1e-3)),
    "lora_adam": po.methods.lora_adam(),
    "lora_ssbroyden": po.methods.lora_ssbroyden(),
    "altlora": po.methods.altlora(),
}


@every_start
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", [64, 32])
def test_methods_take_steps_from_every_start(start, method, precision):
    result = run(start, METHODS[method], precision=precision)
    before = [record.loss for record in result]
    assert len(before) >= 1
    assert all(map(math.isfinite, before))
    assert result.result().failure == ""


@pytest.mark.parametrize("start", STARTS)
def test_the_gradient_costs_one_evaluation(start):
    adaptation = run(start, METHODS["lora_adam"])
    counts = [record.gradient_evals for record in adaptation]
    assert counts[0] == (2 if start in OF_GRADIENT else 1)
    assert counts[-1] == 5


def test_the_gradient_is_that_of_full_fine_tuning_on_points_of_its_own():
    adaptation = run("lora_one", METHODS["lora_adam"])
    net, problem = pretrained(), Heat()
    system = System(problem, Solution(problem, net))
    points = draw_points(system.terms, 100, 30, 0, purpose="start")
    targets = linear_targets(net)
    found = torch.autograd.grad(system.loss(points).total, [layer.weight for layer in targets.values()])
    _ = adaptation.training
    for name, G in zip(targets, found, strict=True):
        layer = adaptation.net.get_submodule(name)
        expected = lora_one(G, 2, 1.0, None)
        assert torch.allclose(layer.update(), expected.B @ expected.A, rtol=1e-9)
        assert layer.start.A.shape == (0, 10)
    training = draw_points(system.terms, 100, 30, 0)
    assert not any(torch.equal(points[k][c], training[k][c]) for k in points for c in ("x",))


def test_lora_one_decreases_the_loss_at_its_own_points_to_first_order():
    net, problem = pretrained(), Heat()
    system = System(problem, Solution(problem, net))
    points = draw_points(system.terms, 100, 30, 0)
    targets = linear_targets(net)
    weights = [layer.weight for layer in targets.values()]
    before = system.loss(points).total
    gradients = dict(zip(targets, torch.autograd.grad(before, weights), strict=True))
    scale, slope = 1e-4, 0.0
    layers = put_factors(net, targets, 2, scale, lora_one, None, gradients, subtracted=False)
    for name, layer in layers.items():
        slope += float((gradients[name] * layer.update().detach()).sum())
    change = float((system.loss(points).total - before).detach())
    assert slope < 0
    assert change == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("start", ["lora_one", "lora_ga", "nora"])
def test_what_starts_elsewhere_is_saved_and_read_back(start, tmp_path):
    adaptation = run(start, METHODS["lora_adam"])
    for _ in adaptation:
        pass
    result = adaptation.result()
    result.save(tmp_path / "run")
    x, t = torch.rand(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    loaded = po.load(tmp_path / "run")
    assert torch.allclose(loaded(x, t), result.solution(x, t), rtol=1e-10)


@pytest.mark.parametrize("start", ["lora_one", "olora"])
def test_a_state_is_continued_with_the_same_bits(start):
    first, second = (run(start, METHODS["lora_adam"], evals=8) for _ in range(2))
    taken = iter(first)
    for _ in range(3):
        next(taken)
    second.training  # noqa: B018  made at the first request
    second.load_state_dict(first.state_dict())
    ends = [[*taken][-1].loss, [*second][-1].loss]
    assert ends[0] == ends[1]


def test_starts_at_zero_are_refused_where_the_flow_is_singular():
    explicit = po.methods.odelora(po.RungeKutta(tableau.EULER))
    for start in SINGULAR:
        with pytest.raises(InputError, match=f"start is {start}, where the flow is singular"):
            run(start, explicit)
        with pytest.raises(InputError, match="if the rank is adaptive"):
            po.LoRA(rank="adaptive", start=start)
    with pytest.raises(InputError, match="start is 'best', but it must be zero, orthonormal, pissa, olora"):
        po.LoRA(start="best")


def test_an_adaptive_rank_goes_on_from_a_start_that_is_not_subtracted():
    lora = po.LoRA(rank="adaptive", start="lora_one")
    result = po.adapt(pretrained(), Heat(), lora=lora, budget=po.Budget(steps=12))
    assert result.failure == ""

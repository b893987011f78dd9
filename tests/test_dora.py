"""DoRA: a layer that is no product of factors, trained, resumed, saved, and refused where products are needed."""

import copy

import pytest
import torch
from formulas import dora as formula
from formulas import problem
from torch import Tensor, linalg, nn

import pinn_odelora as po
from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.layer import Factors, LowRankLinear, adapters, formed_weights
from pinn_odelora.lowrank.magnitude import MagnitudeLinear
from pinn_odelora.lowrank.start import orthonormal, zero
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.nets import MLP
from pinn_odelora.objective import Batch, Objective
from pinn_odelora.rivals.dora import dora
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.heat import Heat

FEW = po.Sampling(interior=30, boundary=10, residual=0, batch_size=None, initial_batch_size=None)


def adapted(generator, start=orthonormal, scale=0.7):
    net = MLP(2, 1, width=8, depth=3, generator=generator)
    return net, put_factors(net, linear_targets(net), 2, scale, start, generator, layer=MagnitudeLinear)


@pytest.fixture
def trained(generator):
    """A run of a few steps, whose magnitudes have moved."""
    net = MLP(2, 1, width=8, depth=3, generator=generator)
    run = po.steps(net, Heat(), method=dora(lr=3e-2), rank=2, points=FEW, budget=po.Budget(steps=12))
    return net, run


def test_the_function_is_unchanged_at_first_and_rows_have_the_magnitudes(generator):
    net, layers = adapted(generator)
    plain = MLP(2, 1, width=8, depth=3, generator=torch.Generator().manual_seed(7))
    x = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    assert torch.allclose(net(x), plain(x), atol=1e-14)
    for layer in layers.values():
        for p in (layer.A, layer.B, layer.magnitude):
            p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        assert torch.allclose(linalg.vector_norm(layer.weight, dim=1), layer.magnitude.abs(), atol=1e-14)
        V = layer.direction
        assert torch.allclose(layer.weight / layer.magnitude[:, None], V / linalg.vector_norm(V, dim=1)[:, None])
        assert not torch.allclose(layer.weight, V)
    assert not torch.allclose(net(x), plain(x), atol=1e-2)


def test_gradients_are_those_of_constant_norms_and_vanish_where_the_true_ones_do(generator):
    _, layers = adapted(generator)
    layer = layers["linears.1"]
    layer.A.data += 0.3 * torch.randn(2, 8, generator=generator, dtype=torch.float64)
    target = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    with formed_weights({"": layer}) as W:
        loss = (W[""] - target).pow(4).sum()
        G, g_A, g_B, g_mu = torch.autograd.grad(loss, [W[""], layer.A, layer.B, layer.magnitude])
    V = layer.direction.detach()
    norms = linalg.vector_norm(V, dim=1)
    H = (layer.magnitude.detach() / norms)[:, None] * G
    assert torch.allclose(g_A, 0.7 * layer.B.mT @ H, atol=1e-12)
    assert torch.allclose(g_B, 0.7 * H @ layer.A.mT, atol=1e-12)
    assert torch.allclose(g_mu, (G * V).sum(1) / norms, atol=1e-12)
    # Of the true gradient by V the part along V is missing, which is that of μ.
    V = V.requires_grad_()
    true = layer.magnitude.detach()[:, None] * V / linalg.vector_norm(V, dim=1)[:, None]
    (exact,) = torch.autograd.grad((true - target).pow(4).sum(), V)
    along = (layer.magnitude.detach() * g_mu / norms**2)[:, None] * V
    assert torch.allclose(exact, H - along.detach(), atol=1e-10)


class Network(nn.Module):
    """That of the formulas, with a layer of DoRA for each weight."""

    def __init__(self, setting, pairs, c):
        super().__init__()
        for name, W0, s, (A, B) in zip(("first", "second"), setting.bases, setting.scales, pairs, strict=True):
            base = nn.Linear(*W0.shape[::-1], bias=False)
            # The start is subtracted by the layer.
            base.weight.data = torch.tensor(W0 + s * B @ A)
            layer = MagnitudeLinear(base, Factors(torch.tensor(A), torch.tensor(B)), s)
            self.add_module(name, layer)
        self.c = nn.Parameter(torch.tensor(c))

    def forward(self, x):
        return self.second(torch.tanh(self.first(x))) + self.c


@pytest.mark.parametrize("start", ["generic", "zero"])
def test_twenty_steps_equal_the_formula(start):
    setting, first = problem.Problem.random(), getattr(problem, start)()
    net = Network(setting, *first)
    method = dora(lr=1e-2)
    optimizer = method.optimizer(method.groups(Solution(Heat(), net)))
    x, y, w = map(torch.tensor, (setting.x, setting.y, setting.w))
    found = []
    for _ in range(20):
        optimizer.zero_grad()
        (0.5 * (w * ((net(x) - y) ** 2).sum(1)).sum()).backward()
        optimizer.step()
        point = [(x.A, x.B, x.magnitude) for x in (net.first, net.second)]
        found.append([p.detach().clone() for triple in point for p in triple] + [net.c.detach().clone()])
    expected = formula.steps(setting, first, 1e-2, 20)
    for here, (triples, c) in zip(found, expected, strict=True):
        there = [*(x for triple in triples for x in triple), c]
        assert all(torch.allclose(a, torch.tensor(b), rtol=0, atol=1e-10) for a, b in zip(here, there, strict=True))


@pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers", "ignore:::torch.jit")
def test_its_gradients_are_those_of_peft(generator):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    base = nn.Sequential(nn.Linear(5, 6).double())
    start = zero(base[0].weight, 2, 0.5, generator)
    start.A.normal_(generator=generator)
    ours = MagnitudeLinear(copy.deepcopy(base[0]), start, 0.5)
    config = peft.LoraConfig(r=2, lora_alpha=1, target_modules=["0"], use_dora=True)
    theirs = peft.get_peft_model(base, config).double().base_model.model[0]
    B = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    ours.B.data, theirs.lora_B["default"].weight.data = B.clone(), B.clone()
    theirs.lora_A["default"].weight.data = start.A.clone()
    mu = theirs.lora_magnitude_vector["default"].weight
    for p in (ours.magnitude, mu):
        p.data *= torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    x = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    for layer in (ours, theirs):
        layer(x).pow(3).sum().backward()
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)
    pairs = [(ours.magnitude, mu), *((getattr(ours, f"lora_{k}"), getattr(theirs, f"lora_{k}")) for k in "AB")]
    grads = [[(p if isinstance(p, Tensor) else p["default"].weight).grad for p in pair] for pair in pairs]
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in grads)


def test_an_objective_has_the_gradients_of_every_parameter(generator):
    """As autograd has them, without the formulas for products."""
    net, layers = adapted(generator)
    for layer in layers.values():
        layer.magnitude.data *= 1.2
    solution = Solution(Burgers(), net)
    system = System(solution.problem, solution)
    points = draw_points(system.terms, 32, 8, seed=1)
    method = dora()
    parameters = [p for group in method.groups(solution) for p in group["params"]]
    assert any(p is layers["linears.1"].magnitude for p in parameters)
    objective = Objective(system, parameters, layers)
    objective.begin(Batch(0, points))
    objective()
    expected = torch.autograd.grad(system.loss(points).total, parameters, allow_unused=True)
    for p, g in zip(parameters, expected, strict=True):
        assert torch.allclose(p.grad, torch.zeros_like(p) if g is None else g, atol=1e-12)
    with pytest.raises(InputError, match=r"The rows of layer linears\.1 are rescaled \(DoRA\), of which there is no"):
        objective.linearise()


def test_a_run_is_saved_as_whole_weights_and_read_again(trained, tmp_path):
    _, run = trained
    for _ in run:
        pass
    result = run.result()
    layers = adapters(result.net)
    assert all(type(layer) is MagnitudeLinear for layer in layers.values())
    assert all(not torch.equal(x.magnitude, linalg.vector_norm(x.base_layer.weight, dim=1)) for x in layers.values())
    assert result.rel_l2 != result.rel_l2_before
    with pytest.raises(InputError, match=r"an adapter cannot hold a weight whose rows are rescaled, as those of DoRA"):
        result.adapter.save(tmp_path / "adapter")
    result.save(tmp_path / "run")
    assert (tmp_path / "run/network.safetensors").is_file()
    assert not (tmp_path / "run/adapter").exists()
    again = po.load(tmp_path / "run")
    assert not adapters(again.solution.net)
    x = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)
    assert torch.allclose(again(x, 0.3), result.solution(x, 0.3), atol=1e-14)


def test_a_run_continues_from_its_state_with_the_same_bits(trained):
    net, run = trained
    records = iter(run)
    for _ in range(5):
        next(records)
    state = copy.deepcopy(run.state_dict())
    other = po.steps(net, Heat(), method=dora(lr=3e-2), rank=2, points=FEW, budget=po.Budget(steps=12))
    other.load_state_dict(state)
    assert len([*records]) == len([*other]) == 7
    whole, resumed = (x.result().net.state_dict() for x in (run, other))
    assert all(torch.equal(x, resumed[name]) for name, x in whole.items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weighting": "ntk"}, "weighting needs a linearisation, which layers of dora do not have"),
        ({"log": po.Log(kernel=True)}, r"log\.kernel needs a linearisation, which layers of dora do not have"),
        ({"lora": po.LoRA(rank="adaptive")}, "rank is 'adaptive', but it must be a number with dora"),
    ],
)
def test_what_needs_a_product_is_refused_before_training(settings, said, generator):
    net = MLP(2, 1, width=8, depth=3, generator=generator)
    with pytest.raises(InputError, match=said):
        po.steps(net, Heat(), method=dora(), **settings)


def test_its_pairs_are_not_those_of_an_optimiser_of_products(generator):
    net, _ = adapted(generator)
    with pytest.raises(InputError, match=r"The LoRA pair of 'linears\.1' has rescaled rows \(DoRA\)"):
        po.factor_pairs(net)


def test_refuses_a_row_without_a_direction(generator):
    net = MLP(2, 1, width=8, depth=3, generator=generator)
    net.linears[1].weight.data[3] = 0
    with pytest.raises(InputError, match="a row of a weight to adapt is zero"):
        put_factors(net, linear_targets(net), 2, 1.0, orthonormal, generator, layer=MagnitudeLinear)
    assert not any(isinstance(x, LowRankLinear) for x in net.modules())


def test_a_linearised_model_has_no_magnitudes(generator):
    from pinn_odelora.ntk.training import check_method

    with pytest.raises(InputError, match="the change of a weight by dora is not linear in a product of factors"):
        check_method(None, dora(), 0.0)


@pytest.mark.parametrize("value", [{"lr": 0}, {"betas": (0.9, 1.0)}])
def test_refuses_settings_that_have_no_meaning(value):
    with pytest.raises(InputError, match=f"{next(iter(value))} is "):
        dora(**value)

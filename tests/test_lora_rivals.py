"""What the papers of the rivals claim: invariance, projections, balance; and that steps are those of PEFT and torch."""

import copy

import pytest
import torch
from torch import linalg, nn

import pinn_odelora as po
from pinn_odelora import methods
from pinn_odelora.errors import InputError
from pinn_odelora.flows import Damped, balanced_flow, gradient_flow, scaled_flow
from pinn_odelora.integrators import LinearlyImplicit, RungeKutta, tableau
from pinn_odelora.lowrank.layer import adapters
from pinn_odelora.lowrank.pairs import factor_pairs, trainable_groups
from pinn_odelora.manifolds.factors import Factors, balance_defect
from pinn_odelora.optim import ODELoRA
from pinn_odelora.rivals.allora import ALLoRA
from pinn_odelora.rivals.balora import BaLoRA
from pinn_odelora.rivals.base import adam_direction
from pinn_odelora.rivals.lora_fa import LoRAFA
from pinn_odelora.rivals.lora_pro import LoRAProAdamW, full_gradient
from pinn_odelora.rivals.reflora import WARMUP, RefLoRA, refactoring
from pinn_odelora.rivals.scaled_adamw import ScaledAdamW
from problems.burgers import Burgers

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers", "ignore:::torch.jit")

M, N, R, SCALE = 7, 6, 3, 0.7


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Pair:
    """A LoRA pair A, B and a loss of its product with a full gradient G of any rank, quadratic in W."""

    def __init__(self, scale=SCALE, gauge=None, size=1.0):
        A, B = randn(R, N, seed=1), size * randn(M, R, seed=2)
        if gauge is not None:
            A, B = gauge @ A, B @ linalg.inv(gauge)
        self.A, self.B, self.scale = nn.Parameter(A), nn.Parameter(B), scale
        self.weights, self.target = randn(M, N, seed=3).square() + 0.5, randn(M, N, seed=4)

    def groups(self):
        return [{"params": [self.A, self.B], "scale": self.scale, "name": "pair"}]

    @property
    def y(self):
        return Factors(self.A.detach().clone(), self.B.detach().clone())

    @property
    def product(self):
        return self.scale * self.B.detach() @ self.A.detach()

    def closure(self):
        self.A.grad = self.B.grad = None
        loss = (self.weights * (self.scale * self.B @ self.A - self.target).square()).sum()
        loss.backward()
        return loss.detach()

    @property
    def g(self):
        self.closure()
        return Factors(self.A.grad.clone(), self.B.grad.clone())

    @property
    def G(self):
        return 2 * self.weights * (self.product - self.target)


def projections(y):
    Q_A, Q_B = linalg.qr(y.A.mT).Q, linalg.qr(y.B).Q
    return Q_A @ Q_A.mT, Q_B @ Q_B.mT


def projected(y, G):
    P_A, P_B = projections(y)
    return P_B @ G + G @ P_A - P_B @ G @ P_A


GAUGE = randn(R, R, seed=9) + 2 * torch.eye(R, dtype=torch.float64)


# Flows with damping.


@pytest.mark.parametrize("flow", [balanced_flow, scaled_flow])
def test_damping_is_added_to_both_gram_matrices(flow):
    """Against the formulas with formed inverses, at a damping that matters."""
    pair, δ, s, I = Pair(), 0.3, SCALE, torch.eye(R, dtype=torch.float64)
    (A, B), (g_A, g_B) = pair.y, pair.g
    S_A, S_B = A @ A.mT, B.mT @ B
    dA = linalg.inv(S_B + δ * I) @ g_A / s**2
    dB = g_B @ linalg.inv(S_A + δ * I) / s**2
    if flow is balanced_flow:
        dB = dB - B @ linalg.inv(S_B + δ * I) @ B.mT @ dB
        kronecker = torch.kron(S_B, I) + torch.kron(I, S_A)
        X = linalg.solve(kronecker, (-dA @ A.mT).flatten()).reshape(R, R)
        dA, dB = dA + X @ A, dB - B @ X
    found = Damped(flow, δ)(pair.y, pair.g, s)
    assert torch.allclose(found.A, -dA, rtol=1e-11, atol=1e-11)
    assert torch.allclose(found.B, -dB, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("flow", [balanced_flow, scaled_flow])
def test_the_velocity_of_the_product_loses_its_dependence_on_the_factors_with_the_damping(flow):
    def velocity(gauge, δ):
        pair = Pair(gauge=gauge)
        v = Damped(flow, δ)(pair.y, pair.g, SCALE)
        return SCALE * (v.B @ pair.y.A + pair.y.B @ v.A)

    distance = [float((velocity(None, δ) - velocity(GAUGE, δ)).norm()) for δ in (1e-2, 1e-4, 0.0)]
    assert distance[0] > 50 * distance[1] > 1e4 * distance[2]


@pytest.mark.parametrize("flow", [balanced_flow, scaled_flow])
def test_a_damped_flow_is_regular_at_a_zero_adapter(flow):
    pair, δ = Pair(size=0.0), 1e-8
    v = Damped(flow, δ)(pair.y, pair.g, SCALE)
    S_A = pair.y.A @ pair.y.A.mT + δ * torch.eye(R, dtype=torch.float64)
    assert not v.A.any()
    assert torch.allclose(v.B, -pair.g.B @ linalg.inv(S_A) / SCALE**2, rtol=1e-10)
    with pytest.raises(InputError, match="factor B has lost rank"):
        flow(pair.y, pair.g, SCALE)


def test_damped_methods_start_from_zero_and_refuse_implicit_schemes():
    euler = RungeKutta(tableau.EULER)
    assert methods.scaled_gd(euler).full_rank
    assert not methods.scaled_gd(euler, damping=1e-6).full_rank
    assert methods.lora_pro(euler).full_rank
    for method in (lambda i: methods.scaled_gd(i, damping=1e-2), methods.lora_pro):
        with pytest.raises(InputError, match="choose an explicit integrator"):
            method(LinearlyImplicit())
    with pytest.raises(InputError, match=r"but not balanced_flow with a damping of 1e-08: choose"):
        methods.lora_pro(LinearlyImplicit())
    with pytest.raises(InputError, match="damping is 0"):
        methods.lora_pro(euler, damping=0)


@pytest.mark.parametrize("flow", [balanced_flow, scaled_flow])
def test_a_damped_flow_leaves_a_direction_alone_that_both_factors_lack(flow):
    """As of a pair from a weight of lower rank than r, or of a rank above those of the weight."""
    pair = Pair()
    A, B = torch.cat([pair.y.A, torch.zeros(1, N).double()]), torch.cat([pair.y.B, torch.zeros(M, 1).double()], dim=1)
    smaller = Damped(flow, 1e-3)(pair.y, pair.g, SCALE)
    g = Factors(SCALE * B.mT @ pair.G, SCALE * pair.G @ A.mT)
    larger = Damped(flow, 1e-3)(Factors(A, B), g, SCALE)
    assert torch.allclose(larger.A[:R], smaller.A)
    assert torch.allclose(larger.B[:, :R], smaller.B)
    assert not larger.A[R].any()
    assert not larger.B[:, R].any()


# LoRA-Pro.


def test_lora_pro_by_euler_is_odelora_without_retraction():
    pairs = [Pair(), Pair()]
    damped = ODELoRA(pairs[0].groups(), lr=1e-3, flow=Damped(balanced_flow, 1e-12), retract=False)
    plain = ODELoRA(pairs[1].groups(), lr=1e-3, retract=False)
    for _ in range(5):
        damped.step(pairs[0].closure)
        plain.step(pairs[1].closure)
    assert torch.allclose(pairs[0].A, pairs[1].A, rtol=1e-9)
    assert torch.allclose(pairs[0].B, pairs[1].B, rtol=1e-9)


def test_lora_pro_starts_at_zero_with_a_step_in_the_row_space_of_a():
    pair, h = Pair(size=0.0), 1e-2
    P_A, G = projections(pair.y)[0], pair.G
    method = methods.lora_pro(RungeKutta(tableau.EULER, h=h))
    method.optimizer(pair.groups()).step(pair.closure)
    assert torch.allclose(pair.product, -h * G @ P_A, rtol=1e-7, atol=1e-9)


def test_the_gradient_that_lora_pro_stands_for_is_the_projected_one():
    for gauge in (None, GAUGE):
        pair = Pair(gauge=gauge)
        assert torch.allclose(full_gradient(pair.y, pair.g, SCALE, 1e-14), projected(pair.y, pair.G), atol=1e-9)


def test_lora_pro_adamw_moves_the_product_by_the_projected_adam_step():
    """The step of the product, to first order in the learning rate, in any gauge."""
    for gauge in (None, GAUGE):
        pair, lr = Pair(gauge=gauge), 1e-7
        optimizer = LoRAProAdamW(pair.groups(), lr=lr, damping=1e-14)
        state = {}
        for t in (1, 2, 3):
            y, before = pair.y, pair.product
            state["step"] = t
            adam = adam_direction(projected(y, pair.G), state, (0.9, 0.999), 1e-8)
            optimizer.step(pair.closure)
            assert torch.allclose((pair.product - before) / lr, -projected(y, adam), atol=1e-5)


def test_lora_pro_adamw_is_of_the_size_of_the_weight_and_decays_only_if_asked():
    pair, decayed = Pair(), Pair()
    optimizer = LoRAProAdamW(pair.groups(), lr=1e-2)
    optimizer.step(pair.closure)
    assert {x.shape for x in optimizer.state[pair.A].values() if torch.is_tensor(x)} == {(M, N)}
    before = decayed.y
    LoRAProAdamW(decayed.groups(), lr=1e-2, weight_decay=0.5).step(decayed.closure)
    assert torch.allclose(decayed.A - pair.A, -5e-3 * before.A, atol=1e-12)
    assert torch.allclose(decayed.B - pair.B, -5e-3 * before.B, atol=1e-12)


# Against PEFT and torch.


def peft_models(start="gaussian", trained_bias=False):
    """Two copies of an adapted model of float64 whose pairs are of full rank, and data."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], init_lora_weights=start)
    model = peft.get_peft_model(base, config).double()
    for name, p in model.named_parameters():
        if "lora_B" in name and start == "gaussian":
            p.data = randn(*p.shape, seed=len(p)) / 3
        if trained_bias and name.endswith("bias"):
            p.requires_grad_(True)
    return model, copy.deepcopy(model), randn(40, 6, seed=11), randn(40, 5, seed=12)


def follow(stepped, x, target, steps=12):
    for model, optimizer in stepped.items():
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x) - target).square().mean().backward()
            optimizer.step()
    ours, theirs = ([p.detach() for p in model.parameters()] for model in stepped)
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_scaled_adamw_takes_the_steps_of_peft(decay):
    optimizers = pytest.importorskip("peft.optimizers")
    if not hasattr(optimizers, "create_riemannian_optimizer"):
        pytest.skip("this version of PEFT has no Riemannian optimiser")
    ours, theirs, *data = peft_models(trained_bias=True)
    own = {"lr": 1e-2, "weight_decay": decay}
    mine = ScaledAdamW(trainable_groups(ours), damping=1e-2, **own)
    other = optimizers.create_riemannian_optimizer(theirs, torch.optim.AdamW, reg=1e-2, **own)
    assert follow({ours: mine, theirs: other}, *data) < 1e-12


@pytest.mark.parametrize(("decay", "start"), [(0.0, "gaussian"), (0.1, "gaussian"), (0.0, True)])
def test_lora_fa_takes_the_steps_of_peft(decay, start):
    optimizers = pytest.importorskip("peft.optimizers")
    ours, theirs, *data = peft_models(start)
    mine = LoRAFA(factor_pairs(ours), lr=1e-2, weight_decay=decay)
    other = optimizers.create_lorafa_optimizer(theirs, r=3, lora_alpha=6, lr=1e-2, weight_decay=decay)
    for p in theirs.parameters():  # PEFT freezes A, and asks for no gradient of it
        p.grad = None
    before = [p.detach().clone() for name, p in ours.named_parameters() if "lora_A" in name]
    assert follow({ours: mine, theirs: other}, *data) < 1e-8  # PEFT has δ in single precision
    assert all(map(torch.equal, before, (p for name, p in ours.named_parameters() if "lora_A" in name)))


def test_lora_adamw_is_that_of_torch():
    ours, theirs, *data = peft_models(trained_bias=True)
    groups = trainable_groups(ours)
    flat = [p for p in theirs.parameters() if p.requires_grad]
    mine = methods.lora_adamw(lr=1e-2, weight_decay=0.2).optimizer(groups)
    assert follow({ours: mine, theirs: torch.optim.AdamW(flat, lr=1e-2, weight_decay=0.2)}, *data) < 1e-14


# The others.


def test_scaled_adamw_scales_the_gradient_of_b_by_the_new_a_if_asked():
    pair = Pair()
    before, g = pair.y, pair.g
    ScaledAdamW(pair.groups(), lr=0.3, damping=0.1, sequential=True).step(pair.closure)
    S = pair.A @ pair.A.mT + 0.1 * torch.eye(R, dtype=torch.float64)
    scaled = (g.B @ linalg.inv(S)).detach()
    assert torch.allclose(pair.B - before.B, -0.3 * scaled / (scaled.abs() + 1e-8))
    former = Pair()
    ScaledAdamW(former.groups(), lr=0.3, damping=0.1).step(former.closure)
    assert torch.equal(former.A, pair.A)
    assert not torch.allclose(former.B, pair.B)


def test_lora_fa_moves_the_product_in_the_row_space_of_a():
    """Its gradient is that for which the product moves by −G P_A."""
    pair = Pair()
    P_A, G = projections(pair.y)[0], pair.G
    optimizer = LoRAFA(pair.groups(), damping=0.0)
    optimizer.step(pair.closure)
    gradient = optimizer.state[pair.A]["m"] / 0.1
    assert torch.allclose(SCALE * gradient @ pair.A.detach(), G @ P_A, atol=1e-10)


def test_reflora_solves_for_the_mean_of_the_gram_matrices():
    y = Pair(gauge=GAUGE).y
    S, inverse = refactoring(y)
    assert torch.allclose(S @ (y.A @ y.A.mT) @ S, y.B.mT @ y.B, rtol=1e-9, atol=1e-9)
    assert torch.allclose(S @ inverse, torch.eye(R, dtype=torch.float64), atol=1e-9)


def test_reflora_is_a_step_of_lora_at_the_balanced_pair():
    """A gradient step there, taken back by the same refactoring; and that pair is balanced."""
    pair = Pair(gauge=GAUGE)
    y, g = pair.y, pair.g
    S, inverse = refactoring(y)
    P = linalg.cholesky(S)
    balanced = Factors(P.mT @ y.A, y.B @ linalg.inv(P).mT)
    assert float(balance_defect(balanced)) < 1e-9 * float(balanced.A.norm()) ** 2
    there = Factors(linalg.inv(P) @ g.A, g.B @ P)
    assert torch.allclose(linalg.inv(P).mT @ there.A, inverse @ g.A, atol=1e-9)
    assert torch.allclose(there.B @ P.mT, g.B @ S, atol=1e-9)
    optimizer = RefLoRA(pair.groups(), lr=1e-3)
    optimizer.step(pair.closure)
    assert torch.allclose(optimizer.state[pair.A]["m_A"], 0.1 * inverse @ g.A, atol=1e-12)
    assert torch.allclose(optimizer.state[pair.A]["m_B"], 0.1 * g.B @ S, atol=1e-12)


def test_reflora_takes_plain_steps_first_where_b_is_zero_or_as_many_as_it_is_told():
    def leaves_adam(pair, steps, **settings):
        other = Pair(size=0.0 if not pair.B.any() else 1.0)
        reflora = RefLoRA(pair.groups(), lr=1e-3, **settings)
        adam = torch.optim.Adam([other.A, other.B], lr=1e-3)
        for t in range(1, steps + 1):
            reflora.step(pair.closure)
            adam.step(other.closure)
            if not torch.allclose(pair.product, other.product, rtol=0, atol=1e-12):
                return t
        return None

    assert leaves_adam(Pair(size=0.0), WARMUP + 1) == WARMUP + 1
    assert leaves_adam(Pair(), 3) == 1
    assert leaves_adam(Pair(), 5, warmup=3) == 4


def test_reflora_leaves_a_start_at_a_zero_a():
    pair = Pair()
    pair.A.data.zero_()
    RefLoRA(pair.groups(), lr=1e-3).step(pair.closure)
    assert torch.allclose(pair.A.detach().abs(), torch.full((R, N), 1e-3, dtype=torch.float64), rtol=1e-5)


def test_ranks_above_those_of_the_weight():
    """LoRA-Pro has finite steps there, BaLoRA no balanced pairs of that shape."""
    pair = Pair()
    wide = {"params": [nn.Parameter(randn(9, N, seed=1)), nn.Parameter(randn(M, 9, seed=2))], "name": "pair"}
    A, B = wide["params"]
    A.grad, B.grad = B.detach().mT @ pair.G, pair.G @ A.detach().mT
    LoRAProAdamW([wide], lr=1e-2).step()
    assert bool(A.isfinite().all() and B.isfinite().all())
    with pytest.raises(InputError, match="pair has rank 9, more than its weight 7 x 6 can have, for which BaLoRA"):
        BaLoRA([wide])


@pytest.mark.parametrize("gauge", ["singular", "nearest"])
def test_balora_leaves_balanced_pairs_of_the_product_of_its_inner_step(gauge):
    pair = Pair()
    optimizer = BaLoRA(pair.groups(), lr=1e-2, gauge=gauge, weight_decay=0.1)
    for _ in range(3):
        other = copy.deepcopy(pair)
        inner = torch.optim.AdamW([other.A, other.B], lr=1e-2, weight_decay=0.1)
        inner.load_state_dict(inner.state_dict() | {"state": adam_state(optimizer.state[pair.A])})
        inner.step(other.closure)
        optimizer.step(pair.closure)
        assert torch.allclose(pair.product, other.product, atol=1e-12)
        assert float(balance_defect(pair.y)) < 1e-12
        if gauge == "singular":
            S = pair.y.A @ pair.y.A.mT
            assert torch.allclose(S, S.diag().diag(), atol=1e-12)


def adam_state(state):
    if not state:
        return {}
    step = torch.tensor(float(state["step"]))
    moments = [{"exp_avg": state[f"m_{x}"].clone(), "exp_avg_sq": state[f"v_{x}"].clone()} for x in "AB"]
    return {i: {"step": step.clone(), **found} for i, found in enumerate(moments)}


@pytest.mark.parametrize("gauge", ["singular", "nearest"])
def test_balora_moves_the_factors_little_in_a_short_step_from_its_own_pair(gauge):
    pair = Pair()
    optimizer = BaLoRA(pair.groups(), lr=1e-9, gauge=gauge)
    optimizer.step(pair.closure)
    before = pair.y
    for _ in range(3):
        optimizer.step(pair.closure)
    assert torch.allclose(pair.A, before.A, atol=1e-6)
    assert torch.allclose(pair.B, before.B, atol=1e-6)


def test_allora_divides_the_gradient_of_rows_of_b():
    pair, eta = Pair(scale=1.0), 3.0
    pair.B.data[2] = 0
    g, rows = pair.g, pair.y.B.norm(dim=1)
    optimizer = ALLoRA(pair.groups(), lr=1e-3, eta=eta)
    optimizer.step(pair.closure)
    factor = optimizer.state[pair.A]["m_B"] / 0.1 / g.B
    assert torch.allclose(factor, (1 / (rows + eta**-2).sqrt())[:, None].expand(M, R))
    assert torch.allclose(factor[2], torch.full((R,), eta, dtype=torch.float64))
    assert torch.allclose(optimizer.state[pair.A]["m_A"] / 0.1, g.A)


def test_allora_has_no_scale():
    with pytest.raises(InputError, match=r"the scale of pair is 0\.7, but ALLoRA has 1"):
        ALLoRA(Pair().groups(), lr=1e-3)


# The scale.


@pytest.mark.parametrize(("scaling", "rslora"), [("standard", False), ("rslora", True)])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_scale_that_follows_from_alpha_is_that_of_peft(scaling, rslora, rank):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=rank, lora_alpha=12, use_rslora=rslora, target_modules=["0"])
    layer = peft.get_peft_model(nn.Sequential(nn.Linear(9, 9)), config).base_model.model[0]
    assert po.LoRA(alpha=12, scaling=scaling).scale_at(rank) == pytest.approx(layer.scaling["default"], rel=1e-15)


@pytest.mark.parametrize("rank", ["auto", 2, "adaptive"])
def test_the_layers_of_a_run_have_the_scale_of_their_rank_at_the_start(rank):
    target = Burgers()
    net = po.MLP(2, 1, width=12, depth=3, generator=torch.Generator().manual_seed(0))
    run = po.steps(net, target, lora=po.LoRA(rank=rank, alpha=6.0, scaling="rslora"), device="cpu")
    layers = adapters(run.solution).values() if run.training else ()
    assert {layer.scale for layer in layers} == {6 / run.rank**0.5}
    assert {layer.rank for layer in layers} == {run.rank}


def test_with_the_rslora_scale_the_step_of_the_output_does_not_fall_with_the_rank():
    """Gradient descent from B = 0 at one input x moves the output by s² ‖Ax‖², and ‖Ax‖² is of the size of r."""
    x, output = randn(40, 1), randn(40, 1, seed=1)

    def moved(scaling, rank, seed):
        A, B = randn(rank, 40, seed=seed), torch.zeros(40, rank, dtype=torch.float64)
        s = po.LoRA(alpha=1.0, scaling=scaling).scale_at(rank)
        step = gradient_flow(Factors(A, B), Factors(torch.zeros_like(A), s * output @ x.mT @ A.mT), s)
        return float((s * step.B @ A @ x).norm())

    def ratio(scaling):
        few, many = (sum(moved(scaling, rank, seed) for seed in range(50)) for rank in (4, 64))
        return many / few

    assert ratio("rslora") == pytest.approx(1, rel=0.2)
    assert ratio("standard") == pytest.approx(1 / 16, rel=0.2)

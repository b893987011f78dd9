"""ODELoRA keeps the contract of ``torch.optim.Optimizer``, on any model with LoRA pairs.

Each group of tests is one kind of fault: numbers that are not finite, groups that are no pairs, tensors that must not
move, the start B = 0, a scale that changes, copies and files, the gauge of the factors, 16 bits.
"""

import copy
import io
import math
import pickle
import re
import warnings
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import linalg, nn

from pinn_odelora.errors import InputError
from pinn_odelora.flows import balanced_flow, gradient_flow, scaled_flow
from pinn_odelora.integrators import RKC, ROS2, LinearlyImplicit, RungeKutta, tableau
from pinn_odelora.integrators.linearly_implicit import ImplicitState
from pinn_odelora.lowrank.layer import Factors, LowRankLinear
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.manifolds.factors import balance_defect
from pinn_odelora.nets import MLP
from pinn_odelora.objective import Batch, Objective
from pinn_odelora.optim import ODELoRA, factor_pairs
from pinn_odelora.rivals.factor_muon import FactorMuon
from pinn_odelora.rivals.lbfgs import LBFGS
from pinn_odelora.system import Solution, System
from problems.burgers import Burgers

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers", "ignore:::torch.jit")

WIDTH, RANK, SCALE = 8, 2, 0.7
CLOSURE_SCHEMES = {
    "euler": lambda h=None: RungeKutta(tableau.EULER, h=h),
    "rk4": lambda h=None: RungeKutta(tableau.RK4, h=h),
    "bogacki_shampine": lambda h=None: RungeKutta(tableau.BOGACKI_SHAMPINE, h=h),
    "rkc1": lambda h=None: RKC(1, h=h),
    "rkc2": lambda h=None: RKC(2, h=h),
}
SETTINGS = {
    **{f"{name} factors": {"chart": "factors", "scheme": name} for name in CLOSURE_SCHEMES},
    **{f"{name} manifold": {"chart": "manifold", "scheme": name} for name in CLOSURE_SCHEMES},
}
every_scheme = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
embedded = pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "bogacki_shampine", "flow": balanced_flow},
        {"scheme": "bogacki_shampine", "flow": gradient_flow},
        {"scheme": "bogacki_shampine", "flow": scaled_flow},
        {"scheme": "bogacki_shampine", "chart": "manifold"},
        {"scheme": "rkc2", "chart": "manifold"},
        {"scheme": "rkc2", "chart": "factors"},
        {"scheme": "rkc1", "chart": "manifold"},
    ],
    ids=["balanced", "gradient", "scaled", "manifold", "rkc2", "rkc2 factors", "rkc1"],
)
implicit = pytest.mark.parametrize("integrator", [LinearlyImplicit, ROS2])


class Regression:
    """Two layers with LoRA pairs and a bias that is trained, and data for them."""

    def __init__(self, dtype=torch.float64, start=orthonormal, seed=0):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).double()
        for i in (0, 2):
            base = self.net[i]
            pair = Factors(*(x.double().contiguous() for x in start(base.weight, RANK, SCALE, generator)))
            self.net[i] = LowRankLinear(base, pair, SCALE)
        self.x = torch.randn(16, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        self.target = torch.randn(16, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        self.net.to(dtype)
        self.calls = 0

    @property
    def pairs(self):
        return [self.net[0].factors, self.net[2].factors]

    def products(self):
        return [pair.B.detach().double() @ pair.A.detach().double() for pair in self.pairs]

    def values(self):
        return [p.detach().clone() for p in self.net.parameters()]

    def loss(self):
        return (self.net(self.x) - self.target).square().mean()

    def closure(self):
        self.calls += 1
        self.net.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.detach()

    def optimizer(self, scheme="euler", h=None, **settings):
        return ODELoRA(factor_pairs(self.net), integrator=CLOSURE_SCHEMES[scheme](h), **settings)


class Physics:
    """A small network on Burgers' equation, for schemes that linearise."""

    def __init__(self, seed=1):
        generator = torch.Generator().manual_seed(seed)
        problem = Burgers()
        self.net = MLP(2, 1, width=WIDTH, depth=3, generator=generator)
        self.layers = {}
        for p in self.net.parameters():
            p.requires_grad_(False)
        for name in ("1", "2"):
            base = self.net.linears[int(name)]
            layer = LowRankLinear(base, orthonormal(base.weight, RANK, SCALE, generator), SCALE)
            self.net.linears[int(name)] = self.layers[f"linears.{name}"] = layer
        system = System(problem, Solution(problem, self.net))
        self.groups = factor_pairs(self.net)
        self.objective = Objective(system, [p for group in self.groups for p in group["params"]], self.layers)
        self.points = {name: system.sample(name) for name in system.terms}
        self.begin()

    def begin(self):
        self.objective.begin(Batch(0, self.points))
        return self.objective

    def values(self):
        return [p.detach().clone() for group in self.groups for p in group["params"]]

    def fails_after(self, good):
        """Residuals that are NaN from the one after next on, for ``good`` = 1; a trial point then."""
        residuals, self.seen = self.objective.residuals, 0

        def failing():
            self.seen += 1
            r = residuals()
            return r * math.nan if self.seen > good else r

        self.objective.residuals = failing


def lora():
    return pytest.importorskip("peft", minversion="0.17")


def peft_model(init=True, net=None, targets=("0",), **options):
    peft = lora()
    torch.manual_seed(0)
    net = net or nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    config = peft.LoraConfig(r=RANK, target_modules=list(targets), init_lora_weights=init, **options)
    with warnings.catch_warnings(action="ignore"):
        return peft.get_peft_model(net, config)


def backward(model, x):
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return loss.detach()


def same(before, after):
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# --- numbers that are not finite ------------------------------------------------------------------------------------


@every_scheme
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_start_that_is_not_finite_is_named_and_leaves_everything_as_it_was(settings, bad, where):
    at = Regression()
    optimizer, before = at.optimizer(**settings, h=1e-2), at.values()
    state = copy.deepcopy(optimizer.state_dict())

    def closure():
        loss = at.closure()
        if where == "loss":
            return loss * bad
        at.net[2].A.grad[0, 0] = bad
        return loss

    with pytest.raises(FloatingPointError, match="loss" if where == "loss" else "In 2|of 2"):
        optimizer.step(closure)
    assert same(before, at.values())
    assert optimizer.state_dict() == state


@every_scheme
@pytest.mark.parametrize("retract", [True, False])
@pytest.mark.parametrize("h", [1e200, 1e308])
def test_a_step_that_overflows_is_refused(settings, retract, h):
    """At the larger h the step itself does, at the other one the next gradient or a product of factors."""
    if settings["chart"] == "manifold" and not retract:
        pytest.skip("no such setting")
    at = Regression()
    at.target *= 1e3
    optimizer, failure = ODELoRA(factor_pairs(at.net), lr=h, retract=retract, **made(settings)), None
    while failure is None:
        before = at.values()
        try:
            optimizer.step(at.closure)
        except (FloatingPointError, InputError) as error:
            failure = error
    # RKC refuses as many stages as that asks for.
    assert isinstance(failure, InputError if "rkc" in settings["scheme"] else FloatingPointError)
    assert same(before, at.values())
    assert all(bool(x.isfinite().all()) for x in before)


def made(settings):
    return {"chart": settings["chart"], "integrator": CLOSURE_SCHEMES[settings["scheme"]]()}


def test_present_gradients_are_checked_too():
    at = Regression()
    optimizer, before = at.optimizer(h=0.1), at.values()
    at.closure()
    at.net[0].A.grad[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="gradient of 0 is NaN"):
        optimizer.step()
    assert same(before, at.values())


@embedded
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_error_control_takes_a_smaller_step_where_a_trial_fails(settings, bad):
    """Every evaluation fails at a larger distance from the start than half of what the first step wants to go."""
    free, at = Regression(), Regression()
    free.optimizer(**settings).step(free.closure)
    start = at.products()
    reach = sum(float((x - y).norm()) for x, y in zip(free.products(), start, strict=True)) / 2
    optimizer = at.optimizer(**settings)

    def closure():
        loss, here = at.closure(), at.products()
        far = sum(float((x - y).norm()) for x, y in zip(here, start, strict=True)) > reach
        return loss * bad if far else loss

    optimizer.step(closure)
    assert optimizer.report.rejected > 0
    moved = sum(float((x - y).norm()) for x, y in zip(at.products(), start, strict=True))
    assert 0 < moved <= reach


@embedded
def test_an_error_control_ends_where_no_step_is_finite(settings):
    at = Regression()
    optimizer, before = at.optimizer(**settings), at.values()

    def closure():
        loss = at.closure()
        return loss if at.calls == 1 else loss * math.nan

    with pytest.raises(FloatingPointError):
        optimizer.step(closure)
    assert at.calls < 2000
    assert same(before, at.values())


@pytest.mark.parametrize("flow", [balanced_flow, scaled_flow])
@pytest.mark.parametrize("scheme", ["bogacki_shampine", "rkc2"])
def test_a_trial_point_of_lost_rank_counts_as_too_far_and_a_start_does_not(flow, scheme):
    at = Regression()
    start, most = at.pairs[0].B.detach().clone(), 1e-3

    def singular(y, g, scale):
        far = bool(((y.B - start).flatten(-2).norm(dim=-1) > most).all())
        return flow(Factors(y.A, 0 * y.B) if far else y, g, scale)

    optimizer = ODELoRA(factor_pairs(at.net)[:1], integrator=CLOSURE_SCHEMES[scheme](), flow=singular, retract=False)
    optimizer._keep(type(optimizer.integrator.init())(h=1.0))
    optimizer.step(at.closure)
    assert optimizer.report.rejected > 0
    assert 0 < (at.pairs[0].B - start).norm() < 2 * most
    most = -1.0
    with pytest.raises(InputError, match="In 0: the flow is singular here, because the factor B has lost rank"):
        optimizer.step(at.closure)


@implicit
def test_residuals_that_are_not_finite_leave_the_factors(integrator):
    at = Physics()
    before = at.values()
    optimizer = ODELoRA(at.groups, integrator=integrator())
    with torch.no_grad():
        at.layers["linears.1"].base_layer.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        optimizer.step(at.objective)
    assert same(before, at.values())


@implicit
def test_trial_residuals_that_are_not_finite_are_refused_and_not_taken(integrator):
    at = Physics()
    before = at.values()
    at.fails_after(0)
    optimizer = ODELoRA(at.groups, integrator=integrator())
    # Pseudo-transient continuation stays where it is; an error control says that no step is finite.
    with nullcontext() if integrator is LinearlyImplicit else pytest.raises(FloatingPointError, match="finite numbers"):
        optimizer.step(at.objective)
    assert at.seen > 20
    for x, y in zip(before, at.values(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


# --- groups ---------------------------------------------------------------------------------------------------------


def test_plain_parameters_are_refused():
    at = Regression()
    pair = at.net[0].factors
    for params in (at.net.parameters(), list(at.net.named_parameters()), [*pair], pair.A, at.net):
        with pytest.raises(InputError, match=r"takes parameter groups.*factor_pairs\(model\).*from_model\(model\)"):
            ODELoRA(params, lr=0.1)


def matrix(*shape, **options):
    return nn.Parameter(torch.randn(*shape, dtype=torch.float64), **options)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"params": []}, "has 0 tensors"),
        ({"params": [matrix(2), matrix(2), matrix(2)]}, "has 3 tensors"),
        ({"params": [matrix(2, 5), matrix(4, 3)]}, r"shapes \[\(2, 5\), \(4, 3\)\]"),
        ({"params": [matrix(4, 5), matrix(3, 4)]}, "rank 4, more than its weight 3 x 5"),
        ({"params": [matrix(2, 5), matrix(4, 2, requires_grad=False)]}, r"one trained factor alone \(A\)"),
        ({"params": [matrix(2, 5), matrix(4, 2)], "scale": 0.0}, "scale of one is 0.0"),
        ({"params": [matrix(2, 5), matrix(4, 2)], "scale": math.nan}, "scale of one is nan"),
        ({"params": [matrix(2)], "lr": -1.0}, "step size lr is -1.0"),
        ({"params": [matrix(2)], "lr": math.inf}, "step size lr is inf"),
        ({"params": [matrix(2)], "lr": math.nan}, "step size lr is nan"),
        ({"params": [matrix(2)], "weight_decay": 0.1}, "sets weight_decay"),
        ({"params": [matrix(2)], "betas": (0.9, 0.99)}, "sets betas"),
    ],
)
def test_a_group_that_cannot_be_stepped_is_refused_wherever_it_is_added(group, said):
    group = {"name": "one", **group}
    with pytest.raises(InputError, match=said):
        ODELoRA([group], lr=0.1)
    optimizer = ODELoRA([{"params": [matrix(3)]}], lr=0.1)
    with pytest.raises(InputError, match=said):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("lr", [-1.0, math.inf, math.nan])
def test_a_step_size_set_later_is_checked_as_well(lr):
    at = Regression()
    optimizer, before = at.optimizer(h=0.1), at.values()
    optimizer.param_groups[1]["lr"] = lr
    with pytest.raises(InputError, match=f"step size lr is {lr}"):
        optimizer.step(at.closure)
    assert same(before, at.values())
    with pytest.raises(InputError, match=f"step size lr is {lr}"):
        ODELoRA(factor_pairs(at.net), lr=lr)


def test_two_groups_of_one_name_are_refused():
    with pytest.raises(InputError, match="two parameter groups are named x"):
        ODELoRA([{"params": [matrix(2)], "name": "x"}, {"params": [matrix(2)], "name": "x"}], lr=0.1)


@every_scheme
def test_groups_without_names_in_any_order_take_the_same_step(settings):
    """Singles before pairs, or added later."""

    def moved(order, late=0):
        at = Regression()
        bias = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))
        pairs = [{"params": [*pair], "scale": SCALE} for pair in at.pairs]
        groups = [[{"params": [bias]}, *pairs][i] for i in order]
        optimizer = ODELoRA(groups[: len(groups) - late], lr=0.02, **made(settings))
        for group in groups[len(groups) - late :]:
            optimizer.add_param_group(group)

        def closure():
            at.calls += 1
            optimizer.zero_grad()
            loss = (at.net(at.x) + bias - at.target).square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return [*at.products(), bias.detach()]

    straight = moved([1, 2, 0])
    for other in (moved([0, 2, 1]), moved([0, 1, 2], late=2), moved([2, 0, 1], late=1)):
        for x, y in zip(straight, other, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


def test_groups_stay_those_of_the_caller():
    at = Regression()
    groups = factor_pairs(at.net)
    kept = [dict(group) for group in groups]
    ODELoRA(groups, lr=0.1)
    assert groups == kept


def test_schemes_say_what_they_need():
    at = Regression()
    for integrator in (LinearlyImplicit(), ROS2()):
        optimizer = ODELoRA(factor_pairs(at.net), integrator=integrator)
        for closure in (at.closure, None):
            with pytest.raises(InputError, match=r"residuals and their Jacobian.*pinn_odelora\.Objective.*RungeKutta"):
                optimizer.step(closure)
    for settings in SETTINGS.values():
        if settings == {"chart": "factors", "scheme": "euler"}:
            continue
        with pytest.raises(InputError, match="step needs a closure"):
            at.optimizer(**settings, h=0.1).step()


# --- what must not move ---------------------------------------------------------------------------------------------


@every_scheme
def test_a_step_of_zero_moves_nothing_and_returns_the_loss(settings):
    at = Regression()
    optimizer, before = ODELoRA(factor_pairs(at.net), lr=0.0, **made(settings)), at.values()
    loss = optimizer.step(at.closure)
    assert float(loss) == float(at.loss().detach())
    assert same(before, at.values())
    assert at.calls == 1


@implicit
def test_an_implicit_step_of_zero_moves_nothing(integrator):
    at = Physics()
    before = at.values()
    ODELoRA(at.groups, lr=0.0, integrator=integrator()).step(at.objective)
    assert same(before, at.values())
    assert at.objective.first is not None


def test_a_step_without_gradients_moves_nothing():
    at = Regression()
    with torch.no_grad():
        at.net[0].A.mul_(3)
    optimizer, before = at.optimizer(h=0.1), at.values()
    assert optimizer.step() is None
    assert same(before, at.values())


@every_scheme
@pytest.mark.parametrize("why", ["unused", "step size of zero", "frozen later"])
def test_a_pair_that_is_not_trained_keeps_its_bits(settings, why):
    """Also its gauge: it is not balanced, and a B of zero stays one."""
    at = Regression()
    still = at.net[0]
    with torch.no_grad():
        still.A.mul_(3.0)
        if why == "unused":
            still.B.zero_()
    optimizer = ODELoRA(factor_pairs(at.net), lr=0.02, **made(settings))
    if why == "step size of zero":
        optimizer.param_groups[0]["lr"] = 0.0
    if why == "frozen later":
        for p in still.factors:
            p.requires_grad_(False)
    before, other = [x.detach().clone() for x in still.factors], at.net[2].B.detach().clone()
    hidden = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def closure():
        if why != "unused":
            return at.closure()
        at.calls += 1
        at.net.zero_grad()
        loss = (at.net[2](hidden) - at.target).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert same(before, still.factors)
    assert not torch.equal(other, at.net[2].B)


def test_gradients_that_are_zero_leave_a_zero_adapter():
    """Balancing it would make A zero, too, from where no step leads."""
    at = Regression()
    with torch.no_grad():
        at.net[0].B.zero_()
    before = [x.detach().clone() for x in at.net[0].factors]
    optimizer = at.optimizer(h=0.05)
    at.closure()
    for p in at.net[0].factors:
        p.grad.zero_()
    optimizer.step()
    assert same(before, at.net[0].factors)


def test_one_factor_alone_is_refused():
    at = Regression()
    optimizer, before = at.optimizer(h=0.1), at.values()
    at.closure()
    at.net[0].A.grad = None
    with pytest.raises(InputError, match="0 has a gradient for B alone"):
        optimizer.step()
    assert same(before, at.values())


def test_inactive_and_frozen_adapters_of_peft_keep_their_bits():
    model = peft_model("pissa")
    model.add_adapter("other", lora().LoraConfig(r=RANK, target_modules=["0"], init_lora_weights="gaussian"))
    optimizer = ODELoRA(factor_pairs(model), lr=0.1)
    layer = model.base_model.model[0]
    other = [x["other"].weight.detach().clone() for x in (layer.lora_A, layer.lora_B)]
    mine = layer.lora_B["default"].weight.detach().clone()
    optimizer.step(lambda: backward(model, torch.randn(16, WIDTH)))
    assert same(other, [x["other"].weight for x in (layer.lora_A, layer.lora_B)])
    assert not torch.equal(mine, layer.lora_B["default"].weight)


def test_distributed_checkpoints_ask_for_the_state_without_a_step():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    at = Regression()
    optimizer, before = at.optimizer("bogacki_shampine"), at.values()
    get_optimizer_state_dict(at.net, optimizer)
    assert same(before, at.values())
    optimizer.step(at.closure)
    saved, values = copy.deepcopy(get_optimizer_state_dict(at.net, optimizer)), at.values()
    there = Regression()
    there.net.load_state_dict(at.net.state_dict())
    resumed = there.optimizer("bogacki_shampine")
    set_optimizer_state_dict(there.net, resumed, saved)
    assert same(values, there.values())
    for _ in range(2):
        optimizer.step(at.closure)
        resumed.step(there.closure)
    assert same(at.values(), there.values())


# --- the whole model ------------------------------------------------------------------------------------------------


def test_everything_trainable_is_trained_or_named():
    net = nn.ModuleDict(
        {"embed": nn.Embedding(7, WIDTH), "hidden": nn.Linear(WIDTH, WIDTH), "head": nn.Linear(WIDTH, 3)}
    )
    net.forward = lambda ids: net["head"](torch.tanh(net["hidden"](net["embed"](ids))))
    model = peft_model("gaussian", net, ["embed", "hidden"], modules_to_save=["head"], bias="lora_only")
    ids = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])
    with pytest.warns(UserWarning, match=r"omits.*hidden\.base_layer\.bias.*head.*from_model"):
        ODELoRA(factor_pairs(model), lr=0.1)
    optimizer = ODELoRA.from_model(model, lr=0.05)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained.values()}
    before = {name: p.detach().clone() for name, p in trained.items()}

    def closure():
        model.zero_grad()
        loss = model(ids).square().mean() + model(ids).sum() / 10
        loss.backward()
        return loss.detach()

    for _ in range(2):
        optimizer.step(closure)
    assert [name for name, p in trained.items() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [({"use_dora": True}, "variant of LoRA"), ({"init": "olora", "use_dora": True}, "variant of LoRA")],
)
def test_pairs_whose_update_is_another_matrix_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        ODELoRA.from_model(peft_model(**options), lr=0.1)


# --- the start B = 0 ------------------------------------------------------------------------------------------------


def weight_gradient(model, x):
    """G, the gradient of the weight that PEFT keeps in its base layer."""
    W = model.base_model.model[0].base_layer.weight.requires_grad_(True)
    (G,) = torch.autograd.grad(model(x).square().mean(), [W])
    W.requires_grad_(False)
    return G


@every_scheme
@pytest.mark.parametrize("init", [True, "gaussian"])
def test_the_first_step_from_b_zero_is_one_of_euler(settings, init, generator):
    """s·BA = -h G P_A, with the gradient G of the base weight by autograd; the pair is balanced then."""
    model, h = peft_model(init, lora_alpha=3).double(), 0.1
    x = torch.randn(16, WIDTH, generator=generator, dtype=torch.float64)
    (group,) = factor_pairs(model)
    A, B = group["params"]
    Q = linalg.qr(A.detach().mT).Q
    expected = -h * weight_gradient(model, x) @ Q @ Q.mT
    optimizer = ODELoRA([group], lr=h, **made(settings))
    loss = optimizer.step(lambda: backward(model, x))
    torch.testing.assert_close(group["scale"] * (B @ A).detach(), expected, rtol=0, atol=1e-15)
    assert balance_defect(Factors(A.detach(), B.detach())) < 1e-15
    assert optimizer.report.h == h
    assert optimizer.report.loss == float(loss)


def test_the_mirror_start_a_zero(generator):
    at = Regression()
    with torch.no_grad():
        for pair in at.pairs:
            pair.A.zero_()
    Bs = [pair.B.detach().clone() for pair in at.pairs]
    at.closure()
    grads = [pair.A.grad.clone() for pair in at.pairs]
    at.optimizer(h=0.1).step(at.closure)
    for B, g, product in zip(Bs, grads, at.products(), strict=True):
        # g_A = s BᵀG, and s·BA = -h P_B G.
        expected = -0.1 * B @ linalg.inv(B.mT @ B) @ g / SCALE**2
        torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_orthogonal_start_of_peft_steps_along_both_projections(dtype):
    """B A = 0 with rank r/2 in each factor: s·BA = -h (P_B G + G P_A - P_B G P_A), up to the h² dB dA of Euler."""
    model = peft_model("orthogonal", lora_alpha=3).to(dtype)
    x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)
    (group,) = factor_pairs(model)
    A, B = group["params"]
    half = lambda X: linalg.svd(X.detach().double(), full_matrices=False).U[:, : RANK // 2]
    U, V, h = half(B), half(A.mT), 1e-4
    P_B, P_A = U @ U.mT, V @ V.mT
    G = weight_gradient(model, x).double()
    before = group["scale"] * B.detach().double() @ A.detach().double()
    optimizer = ODELoRA([group], lr=h)
    optimizer.step(lambda: backward(model, x))
    eps = torch.finfo(dtype).eps
    masters = [optimizer.state[p].get("master", p.detach()).double() for p in (A, B)]
    found = (before - group["scale"] * masters[1] @ masters[0]) / h
    expected = P_B @ G + G @ P_A - P_B @ G @ P_A
    torch.testing.assert_close(found, expected, rtol=0, atol=float(G.norm()) * max(1e-2, 16 * eps))


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", "pissa", "olora"])
@pytest.mark.parametrize("settings", [SETTINGS["euler factors"], SETTINGS["rk4 factors"], SETTINGS["rkc1 manifold"]])
def test_a_hundred_steps_from_the_starts_of_peft(init, settings):
    model = peft_model(init)
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(3))
    target = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(4))

    def closure():
        model.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        return loss.detach()

    optimizer = ODELoRA(factor_pairs(model), lr=0.5, **made(settings))
    losses = [float(optimizer.step(closure)) for _ in range(20 if "rkc" in settings["scheme"] else 100)]
    assert losses[-1] < 0.99 * losses[0]
    assert max(b / a for a, b in pairwise(losses)) < 1.01


def test_a_zero_start_asks_for_a_step_size_where_there_is_none():
    model = peft_model()
    with pytest.raises(InputError, match=r"give lr for the first step.*init_lora_weights='pissa'"):
        ODELoRA(factor_pairs(model), integrator=CLOSURE_SCHEMES["bogacki_shampine"]()).step(
            lambda: backward(model, torch.randn(16, WIDTH))
        )


def test_two_factors_of_zero_are_a_saddle_and_said_to_be():
    at = Regression()
    with torch.no_grad():
        for p in at.pairs[0]:
            p.zero_()
    with pytest.raises(InputError, match="In 0: both factors are zero"):
        at.optimizer(h=0.1).step(at.closure)


def test_messages_speak_of_no_command_line():
    model = peft_model()
    said = []
    for params, settings in (
        (list(model.parameters()), {}),
        (factor_pairs(model), {"lr": -1}),
        (factor_pairs(model), {"integrator": ROS2(), "chart": "factors"}),
        (factor_pairs(model), {"integrator": ROS2(), "flow": scaled_flow}),
        (factor_pairs(model), {"flow": scaled_flow, "chart": "manifold"}),
    ):
        with pytest.raises(InputError) as error:
            ODELoRA(params, **settings)
        said.append(str(error.value))
    command_line = r"(?<!pinn_ode)(?<!odelora)\b(lora|method|integrator)\.\w|\w=(pissa|factors)|_implicit"
    assert not [text for text in said if re.search(command_line, text)]


# --- the scale is the layer's ---------------------------------------------------------------------------------------


def test_the_scale_is_read_from_the_layer_at_each_step():
    def moved(late):
        model = peft_model("pissa").double()
        layer = model.base_model.model[0]
        if not late:
            layer.set_scale("default", 3.0)
        optimizer = ODELoRA(factor_pairs(model), lr=0.1)
        if late:
            layer.set_scale("default", 3.0)
        optimizer.step(lambda: backward(model, torch.linspace(-1, 1, 4 * WIDTH, dtype=torch.float64).view(4, WIDTH)))
        return layer.get_delta_weight("default").detach()

    assert torch.equal(moved(late=True), moved(late=False))


def test_a_state_of_another_alpha_leaves_the_scale():
    saved = ODELoRA(factor_pairs(peft_model("pissa", lora_alpha=16)), lr=0.3).state_dict()
    optimizer = ODELoRA(factor_pairs(peft_model("pissa", lora_alpha=4)), lr=0.1)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["scale"] == 4 / RANK
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_a_scale_of_zero_is_refused_at_the_step():
    model = peft_model("pissa")
    optimizer = ODELoRA(factor_pairs(model), lr=0.1)
    model.base_model.model[0].set_scale("default", 0.0)
    with pytest.raises(InputError, match=r"scale of base_model\.model\.0 is 0\.0"):
        optimizer.step(lambda: backward(model, torch.randn(16, WIDTH)))


# --- copies and files -----------------------------------------------------------------------------------------------


def test_states_of_other_groups_are_refused():
    at = Regression()
    optimizer = at.optimizer(h=0.1)
    saved = optimizer.state_dict()
    with pytest.raises(InputError, match="state is that of the groups 0, 2, but the optimiser has 2, 0"):
        ODELoRA(factor_pairs(at.net)[::-1], lr=0.1).load_state_dict(saved)
    with pytest.raises(InputError, match="state is that of the groups 0, 2, but"):
        ODELoRA(factor_pairs(at.net)[:1], lr=0.1).load_state_dict(saved)
    for layer in (at.net[0], at.net[2]):
        layer.reshape(Factors(matrix(3, WIDTH).data, matrix(WIDTH, 3).data), layer.start)
    with pytest.raises(InputError, match=r"parameters of shapes \[\[2, 8\], \[8, 2\].*has \[\[3, 8\], \[8, 3\]"):
        ODELoRA(factor_pairs(at.net), lr=0.1).load_state_dict(saved)


def test_the_state_of_another_integrator_is_refused():
    at = Physics()
    saved = ODELoRA(at.groups, integrator=RungeKutta(tableau.BOGACKI_SHAMPINE)).state_dict()
    with pytest.raises(InputError, match="another integrator than ROS2"):
        ODELoRA(at.groups, integrator=ROS2()).load_state_dict(saved)


def test_a_state_from_before_the_accelerated_steps_goes_on():
    at = Physics()
    optimizer = ODELoRA(at.groups, integrator=LinearlyImplicit())
    optimizer.step(at.objective)
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"][0]["integrator"].pop("at_least") == 0
    resumed = ODELoRA(at.groups, integrator=LinearlyImplicit())
    resumed.load_state_dict(saved)
    resumed.step(at.begin())
    assert resumed.state_dict()["state"][0]["integrator"].keys() == vars(ImplicitState()).keys()


@every_scheme
def test_saved_by_torch_and_continued_with_the_same_bits(settings):
    at, there = Regression(), Regression()
    optimizer = at.optimizer(**settings, h=0.02 if settings["scheme"] in ("euler", "rk4") else None)
    for _ in range(3):
        optimizer.step(at.closure)
    file = io.BytesIO()
    torch.save({"net": at.net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    kept = [x for x in saved["optimizer"]["state"][0]["integrator"].values() if x is not None]
    assert optimizer.param_groups[0]["lr"] is not None or any(x > 1 or 0 < x < 1 for x in kept)
    there.net.load_state_dict(saved["net"])
    resumed = there.optimizer(**settings, h=0.5)
    if optimizer.param_groups[0]["lr"] is None:
        resumed = there.optimizer(**settings)
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(3):
        optimizer.step(at.closure)
        resumed.step(there.closure)
    assert same(at.values(), there.values())


@implicit
def test_an_implicit_state_is_saved_and_continued(integrator):
    at, there = Physics(), Physics()
    optimizer = ODELoRA(at.groups, integrator=integrator())
    optimizer.step(at.objective)
    file = io.BytesIO()
    torch.save({"net": at.net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["optimizer"]["state"][0]["integrator"].keys() == vars(integrator().init()).keys()
    assert None not in saved["optimizer"]["state"][0]["integrator"].values()
    there.net.load_state_dict(saved["net"])
    resumed = ODELoRA(there.groups, integrator=integrator())
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(2):
        optimizer.step(at.begin())
        resumed.step(there.begin())
    assert same(at.values(), there.values())


def rivals(at):
    groups = [{"params": [*pair], "scale": SCALE} for pair in at.pairs]
    flat = [p for pair in at.pairs for p in pair]
    return {
        "odelora": lambda: at.optimizer("bogacki_shampine"),
        "manifold": lambda: at.optimizer("rkc2"),
        "muon": lambda: FactorMuon(groups, 1e-2),
        "lbfgs": lambda: LBFGS(flat),
    }


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", ["odelora", "manifold", "muon", "lbfgs"])
def test_a_copy_steps_like_the_original(name, copied):
    at = Regression()
    optimizer = rivals(at)[name]()
    for _ in range(2):
        optimizer.step(at.closure)
    there = SimpleNamespace()
    there.at, there.optimizer = copied((at, optimizer))
    for _ in range(2):
        optimizer.step(at.closure)
        there.optimizer.step(there.at.closure)
    assert same(at.values(), there.at.values())


@implicit
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_of_an_implicit_optimizer_keeps_its_state(integrator, copied):
    at = Physics()
    optimizer = ODELoRA(at.groups, integrator=integrator())
    optimizer.step(at.objective)
    there = copied(optimizer)
    assert there.integrator == optimizer.integrator
    saved, kept = (o.state[o._first()]["integrator"] for o in (there, optimizer))
    assert saved.keys() == kept.keys()
    # It moves its own parameters, which no network has.
    at.layers["linears.1"].A.data, at.layers["linears.2"].A.data = (g["params"][0].data for g in there.param_groups)
    assert there.param_groups[0]["params"][0] is not optimizer.param_groups[0]["params"][0]


# --- the gauge ------------------------------------------------------------------------------------------------------


def trained(steps=50, lr=0.1, each=lambda at: None, **settings):
    at = Regression()
    optimizer = ODELoRA(factor_pairs(at.net), lr=lr, **settings)
    each(at)
    for _ in range(steps):
        optimizer.step(at.closure)
        each(at)
    return at


def factors_of(at):
    return [Factors(pair.A.detach().clone(), pair.B.detach().clone()) for pair in at.pairs]


gauge = pytest.mark.parametrize(
    "settings", [SETTINGS["euler factors"], SETTINGS["rkc1 manifold"]], ids=["factors", "manifold"]
)


@gauge
def test_factors_move_no_farther_than_their_product_asks_for(settings):
    """‖dA‖² + ‖dB‖² is within a few per cent of what the balanced pair of the product must change; no row flips."""
    path = []
    trained(50, 0.05, lambda at: path.append(factors_of(at)), **made(settings))
    for before, after in pairwise(path[1:]):
        for y, z in zip(before, after, strict=True):
            moved = float((z.A - y.A).norm() ** 2 + (z.B - y.B).norm() ** 2) ** 0.5
            product = float((z.B @ z.A - y.B @ y.A).norm())
            # On the balanced manifold ‖d(BA)‖ ≥ σ_min(A) ‖(dA, dB)‖ for horizontal motion.
            least = float(linalg.svdvals(z.A)[-1])
            assert moved <= 1.05 * product / least
            assert float((z.A * y.A).sum(1).min()) > 0


@gauge
def test_an_average_of_factors_is_as_good_as_one_of_products(settings):
    means = {"A": None, "B": None, "P": None}
    decay = 0.9

    def average(at):
        found = {
            "A": [y.A for y in factors_of(at)],
            "B": [y.B for y in factors_of(at)],
            "P": [y.B @ y.A for y in factors_of(at)],
        }
        for key, values in found.items():
            old = means[key] or values
            means[key] = [decay * x + (1 - decay) * y for x, y in zip(old, values, strict=True)]

    at = trained(50, 0.05, average, **made(settings))
    averaged = [y @ x for x, y in zip(means["A"], means["B"], strict=True)]

    def loss_at(products):
        with torch.no_grad():
            for layer, product in zip((at.net[0], at.net[2]), products, strict=True):
                layer.lora_A["default"].weight, layer.lora_B["default"].weight = (
                    nn.Parameter(torch.eye(WIDTH, dtype=torch.float64)),
                    nn.Parameter(product),
                )
            return float(at.loss().detach())

    last = float(at.loss().detach())
    # Both lag behind the last iterate; they differ by the curvature of (A, B) -> BA.
    assert last < loss_at(averaged) < last + 1.2 * (loss_at(means["P"]) - last)


@gauge
def test_an_old_gradient_of_the_factors_still_means_the_same(settings):
    at = Regression()
    optimizer = ODELoRA(factor_pairs(at.net), lr=0.005, **made(settings))
    optimizer.step(at.closure)
    at.closure()
    old = [p.grad.clone() for pair in at.pairs for p in pair]
    for _ in range(3):
        optimizer.step(at.closure)
    at.closure()
    new = [p.grad for pair in at.pairs for p in pair]
    for x, y in zip(old, new, strict=True):
        assert (x - y).norm() < 0.1 * y.norm()


@pytest.mark.parametrize("settings", [SETTINGS["euler factors"], SETTINGS["rk4 manifold"]], ids=["factors", "manifold"])
def test_decompositions_of_one_shape_are_one_call(settings, monkeypatch):
    """However many layers there are."""
    calls = []
    for name in ("svd", "qr", "eigh"):
        real = getattr(torch.linalg, name)
        monkeypatch.setattr(
            torch.linalg, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k)
        )

    def count(layers):
        generator = torch.Generator().manual_seed(0)
        new = lambda *shape: nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))
        pairs = [(new(RANK, WIDTH), new(WIDTH, RANK)) for _ in range(layers)]
        optimizer = ODELoRA([{"params": [*pair]} for pair in pairs], lr=1e-3, **made(settings))

        def closure():
            optimizer.zero_grad()
            loss = sum((B @ A).square().sum() + (B @ A).sum() for A, B in pairs)
            loss.backward()
            return loss

        optimizer.step(closure)
        calls.clear()
        optimizer.step(closure)
        return len(calls)

    if settings["chart"] == "factors":
        assert count(2) == count(7)
    else:
        # The start of a step decomposes each pair.
        assert count(7) - count(2) <= 5 * 3


# --- 16 bits --------------------------------------------------------------------------------------------------------

half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@half
@every_scheme
def test_sixteen_bits_do_not_drift_where_nothing_moves(dtype, settings):
    """By a gradient of zero, so that every step is taken, and retracted."""
    at = Regression(dtype)
    optimizer, before = ODELoRA(factor_pairs(at.net), lr=0.1, **made(settings)), at.products()
    steps = 1000 if settings["scheme"] == "euler" and dtype == torch.bfloat16 else 20

    def closure():
        for pair in at.pairs:
            for p in pair:
                p.grad = torch.zeros_like(p)
        return torch.tensor(0.0)

    optimizer.step(closure)
    first = at.products()
    for _ in range(steps):
        optimizer.step(closure)
    eps = torch.finfo(dtype).eps
    for start, one, end in zip(before, first, at.products(), strict=True):
        assert (one - start).norm() <= 2 * eps * start.norm()
        assert (end - one).norm() <= 0.1 * eps * start.norm()


@half
def test_a_step_of_zero_keeps_sixteen_bits(dtype):
    at = Regression(dtype)
    optimizer, before = at.optimizer(h=None, lr=0.0), at.values()
    for _ in range(1000):
        optimizer.step(at.closure)
    assert same(before, at.values())


@half
@gauge
def test_sixteen_bits_follow_the_run_in_float32(dtype, settings):
    """Steps below the resolution of the parameters add up in the masters; only the last rounding remains."""
    steps, h = 100, 0.002
    ends, moved = [], []
    for kind in (torch.float32, dtype):
        at = Regression(kind)
        at.x, at.target = at.x.to(dtype).to(kind), at.target.to(dtype).to(kind)
        at.net.load_state_dict({name: x.to(dtype) for name, x in at.net.state_dict().items()})
        start = at.products()
        optimizer = ODELoRA(factor_pairs(at.net), lr=h, **made(settings))
        for _ in range(steps):
            optimizer.step(at.closure)
        ends.append(at.products())
        moved.append([x - y for x, y in zip(ends[-1], start, strict=True)])
    eps = torch.finfo(dtype).eps
    for exact, rounded, change in zip(*ends, moved[0], strict=True):
        assert (exact - rounded).norm() < eps * exact.norm()
        assert change.norm() > 5 * eps * exact.norm()


def test_a_parameter_written_by_somebody_else_replaces_the_master():
    at = Regression(torch.bfloat16)
    optimizer = at.optimizer(h=0.01)
    optimizer.step(at.closure)
    with torch.no_grad():
        at.net[0].B.mul_(2)
    doubled = at.products()[0]
    at.net.zero_grad(set_to_none=False)
    optimizer.step()
    assert (at.products()[0] - doubled).norm() < 2 * torch.finfo(torch.bfloat16).eps * doubled.norm()


def test_autocast_in_sixteen_bits_trains_float32_factors():
    at = Regression(torch.float32)
    optimizer = at.optimizer(h=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = at.loss()
        loss.float().backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


# --- what training loops do -----------------------------------------------------------------------------------------

SCHEDULES = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n)),
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10, cycle_momentum=False),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "warm_up": lambda o: torch.optim.lr_scheduler.LinearLR(o, 1e-3, 1.0, 5),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("chart", ["factors", "manifold"])
def test_schedules_set_the_step_size(name, chart):
    at = Regression()
    optimizer = ODELoRA(factor_pairs(at.net), lr=0.05, integrator=RungeKutta(tableau.HEUN), chart=chart)
    schedule = SCHEDULES[name](optimizer)
    start = float(at.loss().detach())
    for _ in range(6):
        rate = optimizer.param_groups[0]["lr"]
        loss = optimizer.step(at.closure)
        schedule.step(*([loss] if name == "plateau" else []))
        assert optimizer.report.h == rate
    assert float(at.loss().detach()) < start


def test_different_step_sizes_are_different_speeds_of_time():
    """To first order in h the product of a group at twice the step size moves twice as far."""

    def moved(lr, chart):
        at = Regression()
        optimizer = ODELoRA(factor_pairs(at.net), lr=1e-6, chart=chart)
        optimizer.param_groups[1]["lr"] = lr
        before = at.products()
        optimizer.step(at.closure)
        return [after - start for after, start in zip(at.products(), before, strict=True)]

    for chart in ("factors", "manifold"):
        (a, b), (c, d) = moved(1e-6, chart), moved(2e-6, chart)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-14)
        torch.testing.assert_close(2 * b, d, rtol=1e-4, atol=1e-14)


def test_accumulated_and_clipped_gradients():
    at, whole = Regression(), Regression()
    optimizer, other = at.optimizer(h=0.1), whole.optimizer(h=0.1)
    for half in (slice(0, 8), slice(8, 16)):
        ((at.net(at.x[half]) - at.target[half]).square().mean() / 2).backward()
    whole.closure()
    for o in (optimizer, other):
        torch.nn.utils.clip_grad_norm_([p for g in o.param_groups for p in g["params"]], 0.01)
        o.step()
    for x, y in zip(at.products(), whole.products(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-12)


def test_a_closure_that_returns_nothing_has_set_gradients():
    at = Regression()
    before = at.values()
    assert at.optimizer(h=0.1).step(lambda: at.closure() and None) is None
    assert not same(before, at.values())


def test_lightning_trains_and_continues(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self, scheme):
            super().__init__()
            self.at, self.scheme = Regression(), scheme
            self.net = self.at.net

        def training_step(self, batch, index):
            return self.at.loss()

        def configure_optimizers(self):
            optimizer = ODELoRA(factor_pairs(self.net), lr=0.05, integrator=CLOSURE_SCHEMES[self.scheme]())
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}

    def fit(module, epochs, path=None):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, torch.utils.data.DataLoader([0, 1, 2]), ckpt_path=path)
        return trainer

    with warnings.catch_warnings(action="ignore"):
        for scheme in ("euler", "rk4"):
            straight, first, resumed = Module(scheme), Module(scheme), Module(scheme)
            start = float(straight.at.loss().detach())
            fit(straight, 4)
            fit(first, 2).save_checkpoint(tmp_path / "checkpoint")
            fit(resumed, 4, tmp_path / "checkpoint")
            assert same(straight.at.values(), resumed.at.values())
            assert float(straight.at.loss().detach()) < start


def test_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = peft_model(
        True,
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=11, n_positions=8)
        ),
        ["c_attn"],
        fan_in_fan_out=True,
    )
    tokens = torch.randint(0, 11, (16, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    optimizer = ODELoRA.from_model(model, lr=0.5)
    loss = lambda: float(model.eval()(input_ids=tokens, labels=tokens).loss.detach())
    before = loss()
    with warnings.catch_warnings(action="ignore"):
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                str(tmp_path),
                max_steps=6,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                lr_scheduler_type="cosine",
                report_to=[],
                use_cpu=True,
                save_steps=3,
                disable_tqdm=True,
            ),
            train_dataset=data,
            optimizers=(optimizer, None),
        )
        trainer.train()
    assert trainer.state.global_step == 6
    assert loss() < before


def parallel_rank(rank, kind, folder):
    """One of two processes: half of the data each, three schemes; compared with one process on all of them."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/{kind}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(2, 16, WIDTH, generator=generator)
    mine = slice(8 * rank, 8 * rank + 8)

    def trained(net, settings, rows):
        optimizer = ODELoRA(factor_pairs(net), lr=0.5, **made(settings))

        def closure():
            optimizer.zero_grad()
            loss = (net(x[rows]) - target[rows]).square().mean()
            loss.backward()
            return loss.detach()

        for _ in range(4):
            optimizer.step(closure)
        return [p.detach() for group in optimizer.param_groups for p in group["params"]]

    for settings in (SETTINGS["euler factors"], SETTINGS["rk4 factors"], SETTINGS["rk4 manifold"]):
        alone, net = (peft_model(targets=["0", "2"]) for _ in range(2))
        if kind == "ddp":
            net = nn.parallel.DistributedDataParallel(net)
        else:
            for layer in (net.base_model.model[0], net.base_model.model[2], net):
                fully_shard(layer)
        for one, two in zip(trained(alone, settings, slice(None)), trained(net, settings, mine), strict=True):
            whole = two.full_tensor() if kind == "fsdp" else two
            torch.testing.assert_close(whole, one, rtol=1e-4, atol=1e-6)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one(kind, tmp_path):
    lora()
    torch.multiprocessing.spawn(parallel_rank, (kind, str(tmp_path)), nprocs=2)

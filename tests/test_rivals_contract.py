"""What every optimiser of a comparison keeps, found by its configuration: state, copies, schedules, gradients, groups.

The members are the methods of ``configs/method/`` that take no integrator, and the subclasses of ``PairOptimizer``.
"""

import copy
import importlib
import inspect
import io
import pickle
import pkgutil
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import get_object
from torch import nn

import pinn_odelora as po
import pinn_odelora.rivals
from pinn_odelora import methods
from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.layer import adapters
from pinn_odelora.lowrank.pairs import factor_pairs
from pinn_odelora.lowrank.settings import STARTS
from pinn_odelora.lowrank.start import pissa, zero
from pinn_odelora.lowrank.targets import linear_targets, put_factors, thaw
from pinn_odelora.matrix_problem import MatrixProblem
from pinn_odelora.nets import MLP, MatrixFunctional
from pinn_odelora.registry import problem_classes
from pinn_odelora.rivals.base import PairOptimizer
from pinn_odelora.system import Solution
from problems.heat import Heat

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:::transformers", "ignore:::torch.jit")

CONFIGS = Path(__file__).parents[1] / "configs" / "method"
TARGETS = {file.stem: yaml.safe_load(file.read_text())["_target_"] for file in sorted(CONFIGS.glob("*.yaml"))}
FUNCTIONS = {name: get_object(target) for name, target in TARGETS.items()}
RIVALS = {name: f for name, f in FUNCTIONS.items() if "integrator" not in inspect.signature(f).parameters}
for module in pkgutil.iter_modules(pinn_odelora.rivals.__path__):
    importlib.import_module(f"pinn_odelora.rivals.{module.name}")
PAIRS = [cls for base in PairOptimizer.__subclasses__() for cls in (base, *base.__subclasses__())]

every_rival = pytest.mark.parametrize("name", RIVALS)
every_pair = pytest.mark.parametrize("cls", PAIRS, ids=lambda cls: cls.__name__)


class Case:
    """A network with two adapted layers, whose last layer and biases are trained too, an optimiser and a closure.

    The points are others at each evaluation, so that a memory of gradients is not the gradient.
    """

    def __init__(self, name, start=pissa, scale=1.0, dtype=torch.float64):
        self.generator = torch.Generator().manual_seed(5)
        net = MLP(4, 2, width=9, depth=3, generator=self.generator)
        method = made(name)
        if method.trains == "factors":
            put_factors(net, linear_targets(net), 2, scale, start, self.generator, layer=method.layer)
            thaw(net, ["last", "biases"])
        self.solution = Solution(Heat(), net.to(dtype))
        self.groups = method.groups(self.solution)
        self.optimizer = method.optimizer(self.groups)
        self.seen = 0

    def closure(self):
        self.seen += 1
        like = next(self.solution.parameters())
        x, y = (torch.randn(20, k, generator=self.generator, dtype=torch.float64).to(like) for k in (4, 2))
        self.solution.zero_grad()
        loss = (self.solution.net(x) - y).square().mean()
        loss.backward()
        return loss.detach()

    def steps(self, n=3):
        return [float(self.optimizer.step(self.closure)) for _ in range(n)]

    def values(self):
        return [p.detach().clone() for p in self.solution.parameters()]


def made(name):
    """The method with its defaults; left out where it needs a library that is not installed."""
    try:
        return RIVALS[name]()
    except ImportError as error:
        pytest.skip(str(error))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_every_method_is_reached_by_its_name_and_its_target():
    assert {*methods.__all__} - {"Method"} == TARGETS.keys()
    for name, function in FUNCTIONS.items():
        assert getattr(methods, name) is function
        assert function.__name__ == name


@every_rival
def test_a_method_says_what_it_is_and_with_which_settings(name):
    method = made(name)
    assert method.name == name
    assert method.settings.keys() == inspect.signature(RIVALS[name]).parameters.keys()
    again = RIVALS[name](**method.settings)
    assert again.settings == method.settings
    yaml.safe_dump(dict(method.settings))  # plain values, for config.yaml


@every_rival
def test_settings_out_of_range_are_refused_by_name(name):
    made(name)
    for key in inspect.signature(RIVALS[name]).parameters:
        with pytest.raises(InputError, match=f"{key} is"):
            RIVALS[name](**{key: -1 if key != "betas" else (0.9, 1.0)})


@every_rival
@pytest.mark.parametrize("start", [pissa, zero])
def test_thirty_evaluations_from_either_start_leave_finite_numbers(name, start):
    case = Case(name, start)
    before = case.values()
    while case.seen < 30:
        assert torch.isfinite(case.optimizer.step(case.closure))
    assert all(bool(torch.isfinite(p).all()) for p in case.values())
    assert not same(before, case.values())


@every_rival
def test_a_saved_state_continues_with_the_same_bits(name):
    case, there = Case(name), Case(name)
    case.steps()
    file = io.BytesIO()
    torch.save({"solution": case.solution.state_dict(), "optimizer": case.optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    there.solution.load_state_dict(saved["solution"])
    there.optimizer.load_state_dict(saved["optimizer"])
    there.generator.set_state(case.generator.get_state())
    assert case.steps() == there.steps()
    assert same(case.values(), there.values())


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "full_soap"])  # its package's cannot be copied
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_steps_like_the_original(name, copied):
    case = Case(name)
    case.steps()
    solution, optimizer = copied((case.solution, case.optimizer))
    there = copy.copy(case)
    there.solution, there.optimizer, there.generator = solution, optimizer, torch.Generator()
    there.generator.set_state(case.generator.get_state())
    case.steps()
    there.steps()
    assert same(case.values(), there.values())


@every_rival
def test_single_precision_stays_single(name):
    case = Case(name, dtype=torch.float32)
    case.steps()
    assert {p.dtype for p in case.values()} == {torch.float32}
    assert all(bool(torch.isfinite(p).all()) for p in case.values())


# Optimisers of pairs.


def pair_case(cls):
    case = Case("lora_adam")
    case.groups = [group for group in case.groups if len(group["params"]) == 2]
    case.optimizer = cls(case.groups, lr=1e-2)
    return case


@every_pair
def test_a_class_is_that_of_a_method(cls):
    assert any(isinstance(Case(name).optimizer, cls) for name in RIVALS), cls


@every_pair
def test_a_step_evaluates_once_and_returns_the_loss_before_it(cls):
    case = pair_case(cls)
    state = case.generator.get_state()
    expected = case.closure()
    case.generator.set_state(state)
    case.seen = 0
    assert torch.equal(case.optimizer.step(case.closure), expected)
    assert case.seen == 1


@every_pair
def test_without_closure_the_gradients_that_are_there_are_taken_and_kept(cls):
    case, there = pair_case(cls), pair_case(cls)
    case.closure()
    gradients = [p.grad.clone() for group in case.groups for p in group["params"]]
    case.optimizer.step()
    there.optimizer.step(there.closure)
    assert same(case.values(), there.values())
    assert same(gradients, [p.grad for group in case.groups for p in group["params"]])


@every_pair
def test_a_schedule_changes_the_learning_rate(cls):
    case = pair_case(cls)
    schedule = torch.optim.lr_scheduler.LambdaLR(case.optimizer, lambda step: 1.0 if step == 0 else 0.0)
    case.steps(1)
    schedule.step()
    products = [layer.update().detach() for layer in adapters(case.solution).values()]
    case.steps(1)
    for layer, former in zip(adapters(case.solution).values(), products, strict=True):
        assert torch.allclose(layer.update().detach(), former, rtol=0, atol=1e-12)


@every_pair
def test_a_pair_without_gradients_keeps_its_bits(cls):
    case = pair_case(cls)
    case.closure()
    still, moving = (group["params"] for group in case.groups)
    for p in still:
        p.grad = None
    before = [p.detach().clone() for p in (*still, *moving)]
    case.optimizer.step()
    assert same(before[:2], still)
    assert not same(before[2:], moving)


@every_pair
def test_half_a_pair_is_refused(cls):
    case = pair_case(cls)
    case.closure()
    case.groups[0]["params"][0].grad = None
    with pytest.raises(InputError, match="has a gradient for B alone"):
        case.optimizer.step()
    with pytest.raises(InputError, match="has 3 tensors"):
        cls([{"params": [torch.ones(2, 2)] * 3}], lr=1.0)


@every_pair
def test_groups_are_given_as_torch_takes_them(cls):
    """A tensor alone, a generator, no name, and a group that is added later; a message needs no name."""
    case = pair_case(cls)
    pairs = [group["params"] for group in case.groups]
    optimizer = cls(({"params": iter(pair)} for pair in pairs[:1]), lr=1e-2)
    optimizer.add_param_group({"params": tuple(pairs[1]), "lr": 2e-2})
    optimizer.add_param_group({"params": case.solution.net.linears[-1].bias})
    assert [group["params"] for group in optimizer.param_groups[:2]] == pairs
    before = case.values()
    optimizer.step(case.closure)
    assert not same(before, case.values())
    pairs[0][1].grad = None
    with pytest.raises(InputError, match="group 0 has a gradient for A alone"):
        optimizer.step()
    with pytest.raises(InputError, match="has 3 tensors"):
        optimizer.add_param_group({"params": [torch.ones(2, 2)] * 3})
    with pytest.raises(InputError, match=f"{cls.__name__} takes parameter groups"):
        cls(case.solution.parameters(), lr=1e-2)


@every_pair
def test_a_group_may_set_what_the_method_has_and_nothing_else(cls):
    case = pair_case(cls)
    parameters = inspect.signature(cls).parameters
    for option, value in {"weight_decay": 0.1, "momentum": 0.5, "nesterov": True}.items():
        groups = [{**group, option: value} for group in case.groups]
        if option in parameters:
            assert cls(groups, lr=1e-2).param_groups[0][option] == value
        else:
            with pytest.raises(InputError, match=f"sets {option}, which {cls.__name__} does not have"):
                cls(groups, lr=1e-2)


@every_pair
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_factors_of_16_bits_are_refused(cls, dtype):
    case = pair_case(cls)
    groups = [{"params": [nn.Parameter(p.detach().to(dtype)) for p in group["params"]]} for group in case.groups]
    with pytest.raises(InputError, match="has to be float32 or float64"):
        cls(groups, lr=1e-2)


@every_pair
def test_pairs_of_a_peft_model_are_moved(cls):
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    base = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5))
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0", "2"], init_lora_weights="pissa")
    model = peft.get_peft_model(base, config).double()
    optimizer = cls(factor_pairs(model), lr=1e-2)
    x, y = torch.randn(30, 6, dtype=torch.float64), torch.randn(30, 5, dtype=torch.float64)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(30)]
    assert losses[-1] < losses[0]


@every_pair
def test_the_scale_is_read_from_the_layer_at_each_step(cls):
    """PEFT's ``set_scale`` may be called at any time, and a state may be of another α."""
    peft = pytest.importorskip("peft")

    def moved(when):
        torch.manual_seed(2)
        config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["0"], init_lora_weights="pissa")
        model = peft.get_peft_model(nn.Sequential(nn.Linear(6, 5)), config).double()
        layer, x = model.base_model.model[0], torch.randn(30, 6, dtype=torch.float64)
        if when == "before":
            layer.set_scale("default", 3.0)
        optimizer = cls(factor_pairs(model), lr=1e-2)
        if when == "after":
            layer.set_scale("default", 3.0)
        for _ in range(2):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()
        return layer.get_delta_weight("default").detach()

    if cls.__name__ == "ALLoRA":
        with pytest.raises(InputError, match="but ALLoRA has 1"):
            moved("after")
    else:
        assert torch.equal(moved("before"), moved("after"))


# On every problem.

FROM_ZERO_A = {("lora_fa", "nora"), ("polar", "nora")}
"""Methods that need the A that these starts leave at zero, and refuse them."""


@pytest.mark.parametrize(("name", "start"), sorted(FROM_ZERO_A))
def test_a_method_that_needs_a_refuses_a_start_without_it_before_the_first_step(name, start):
    net, adapted = network(Heat())
    with pytest.raises(InputError, match=r"the factor A of .* (is zero|has linearly dependent rows)"):
        _ = po.steps(net, Heat(), method=made(name), lora=po.LoRA(rank=2, start=start, **adapted)).training


def network(target):
    """An untrained network, and what of it is adapted."""
    if isinstance(target, MatrixProblem):
        return MatrixFunctional(target.at_source()), {"targets": "*", "also": ()}
    made = MLP(target.inputs, len(target.fields), width=12, depth=3, generator=torch.Generator().manual_seed(0))
    return made, {}


QUICK = ("Burgers", "Kovasznay", "MatrixSensing")


@pytest.mark.parametrize(
    "problem",
    [x if x.__name__ in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in problem_classes().values()],
    ids=problem_classes().keys(),
)
@pytest.mark.parametrize("start", [x if x == "pissa" else pytest.param(x, marks=pytest.mark.slow) for x in STARTS])
def test_every_method_takes_thirty_evaluations_on_every_problem(problem, start):
    target, few = problem(), po.Sampling.even(interior=60, boundary=20, best_iterate=False)
    for name in RIVALS:
        net, adapted = network(target)
        if (name, start) in FROM_ZERO_A:
            continue
        lora, log = po.LoRA(rank=2, start=start, **adapted), po.Log(every=100, test=16, heldout=16)
        budget = po.Budget(gradient_evals=30)
        run = po.steps(net, target, method=made(name), lora=lora, points=few, budget=budget, log=log, device="cpu")
        taken = [*run]
        assert run.training.failure is None, name
        assert taken[-1].gradient_evals >= 30, name

"""What moves: variables of every kind, and all optimisers on LoRA pairs with single tensors beside them."""

import copy
import math

import pytest
import torch
from test_optim import SCALE, adapted
from torch import linalg

from pinn_odelora.errors import InputError
from pinn_odelora.integrators import RKC, ROS2, LinearlyImplicit, RungeKutta
from pinn_odelora.integrators.tableau import EULER, HEUN
from pinn_odelora.lowrank.layer import LowRankLinear, adapters
from pinn_odelora.lowrank.targets import thaw
from pinn_odelora.manifolds.variables import FactorPair, Flat, LowRankPair, Positive, variable
from pinn_odelora.methods import full_implicit, lora_gd, odelora
from pinn_odelora.nets import MLP
from pinn_odelora.objective import Batch, Objective
from pinn_odelora.optim.charts import ManifoldChart
from pinn_odelora.optim.groups import parameters
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers

ALSO = ["biases", "last"]


def normal(*size, generator):
    return torch.randn(*size, generator=generator, dtype=torch.float64)


# Variables.


def made(kind, generator):
    pair = [normal(2, 5, generator=generator), normal(7, 2, generator=generator)]
    return {
        "low-rank pair": LowRankPair(pair, SCALE),
        "factor pair": FactorPair(pair, SCALE),
        "flat": Flat([normal(4, 3, generator=generator)]),
        "positive": Positive([0.2 + normal(2, generator=generator).square()], 0.1),
    }[kind]


def ambient(found, y):
    """A point as the numbers that its tangent vectors change."""
    if isinstance(found, LowRankPair):
        return y.matrix()
    if isinstance(found, Positive):
        return (y - found.above).log()
    return torch.cat([x.flatten() for x in y]) if isinstance(found, FactorPair) else y.flatten()


KINDS = ["low-rank pair", "factor pair", "flat", "positive"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_variable_moves_as_its_coordinates_say(kind, generator):
    found = made(kind, generator)
    y = found.start()
    frame = found.frame(y)
    z = normal(found.dimension, generator=generator)
    still = found.move(y, frame, 0 * z)
    assert torch.allclose(ambient(found, still.point), ambient(found, y), atol=1e-14)
    t = 1e-5
    ahead, behind = (ambient(found, found.move(y, frame, sign * t * z).point) for sign in (1, -1))
    slope, vector = (ahead - behind) / (2 * t), found.vector(frame, z)
    assert torch.allclose(slope.flatten(), vector.flatten(), atol=1e-8)
    # Orthogonal projection where the metric is that of the space around; in any case what was there comes back.
    assert torch.allclose(found.coordinates(frame, vector).flatten(), z, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_parameters_again(kind, generator):
    found = made(kind, generator)
    if kind == "low-rank pair":
        A, B = found.values(found.start())
        assert torch.allclose(B @ A, found.params[1] @ found.params[0], atol=1e-13)
        assert torch.allclose(B.mT @ B, A @ A.mT, atol=1e-12)
    else:
        assert all(map(torch.equal, found.values(found.start()), found.params))


@pytest.mark.parametrize("step", [-1e3, -3.0, 2.0])
def test_a_number_above_a_bound_stays_there(step):
    found = Positive([torch.tensor(0.3, dtype=torch.float64)], 0.1)
    y = found.start()
    reached = found.move(y, found.frame(y), torch.tensor([step], dtype=torch.float64)).point
    assert reached.shape == y.shape
    assert float(reached) >= 0.1
    if step > -10:
        assert float(reached) == pytest.approx(0.1 + 0.2 * math.exp(step), rel=1e-14)


def test_a_group_says_what_it_is():
    x = torch.zeros(3, 3)
    group = {"params": [x, x], "scale": 2.0, "above": None}
    assert isinstance(variable(group, "product"), LowRankPair)
    assert isinstance(variable(group, "factors"), FactorPair)
    assert isinstance(variable(group | {"params": [x]}, "product"), Flat)
    assert isinstance(variable(group | {"params": [x], "above": 0.0}, "factors"), Positive)


# Optimisers with single tensors.


def solution_of(net):
    return Solution(Burgers(conditions="soft"), net)


def objective_of(solution, groups):
    system = System(solution.problem, solution)
    layers = adapters(solution.net) or {"linears.1": solution.net.linears[1]}
    found = Objective(system, [p for group in groups for p in group["params"]], layers)
    found.begin(Batch(0, draw_points(system.terms, 50, 12, seed=3)))
    return found


def thawed():
    net = adapted()
    thaw(net, ALSO)
    return solution_of(net)


METHODS = {
    "linearly implicit": lambda h: odelora(LinearlyImplicit(h=h, correction=False)),
    "corrected": lambda h: odelora(LinearlyImplicit(h=h)),
    "ros2": lambda h: odelora(ROS2(h=h)),
    "implicit in factors": lambda h: lora_gd(LinearlyImplicit(h=h)),
    "projected": lambda h: odelora(RungeKutta(HEUN, h=h), chart="manifold"),
    "stabilised": lambda h: odelora(RKC(2, h=h, stages=4)),
    "factor chart": lambda h: odelora(RungeKutta(HEUN, h=h)),
    "plain": lambda h: lora_gd(RungeKutta(EULER, h=h)),
}


def moved(make, h, steps=1):
    """The solution before and after, and the gradients of single tensors before."""
    solution = thawed()
    method = make(h)
    groups = method.groups(solution)
    objective = objective_of(solution, groups)
    objective()
    singles = [group["params"][0] for group in groups if len(group["params"]) == 1]
    gradients = [p.grad.clone() for p in singles]
    before = [p.detach().clone() for p in singles]
    optimizer = method.optimizer(groups)
    for _ in range(steps):
        optimizer.step(objective)
    return singles, before, gradients


@pytest.mark.parametrize("name", METHODS)
def test_single_tensors_follow_their_own_gradient_flow(name):
    h = 1e-6
    singles, before, gradients = moved(METHODS[name], h)
    assert len(singles) == 5  # four biases and the last weight
    for p, x, g in zip(singles, before, gradients, strict=True):
        assert linalg.vector_norm((p.detach() - x) / h + g) < 1e-3 * linalg.vector_norm(g)


@pytest.mark.parametrize("name", [*METHODS, "controlled"])
def test_nothing_changes_where_a_step_fails(name):
    solution = thawed()
    method = METHODS.get(name, lambda h: odelora(LinearlyImplicit()))(0.1)
    groups = method.groups(solution)
    objective = objective_of(solution, groups)
    with torch.no_grad():
        solution.net.linears[0].weight[0] = math.nan
    before = copy.deepcopy(solution.state_dict())
    with pytest.raises(FloatingPointError):
        method.optimizer(groups).step(objective)
    assert all(
        torch.equal(a, b) or bool(a.isnan().any())
        for a, b in zip(before.values(), solution.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"plain"}))
def test_nothing_changes_where_a_later_evaluation_fails(name):
    solution = thawed()
    method = METHODS[name](1.0)
    groups = method.groups(solution)
    objective = objective_of(solution, groups)
    objective()

    def fails(*_):
        raise InterruptedError

    optimizer = method.optimizer(groups)
    optimizer.step(objective)
    before = copy.deepcopy(solution.state_dict())
    objective.residuals = fails
    # What an explicit scheme asks for first is answered from memory.
    objective._evaluate = fails
    linearise, calls = objective.linearise, []
    objective.linearise = lambda memory: fails() if calls else calls.append(1) or linearise(memory)
    with pytest.raises(InterruptedError):
        optimizer.step(objective)
    assert all(map(torch.equal, before.values(), solution.state_dict().values()))


@pytest.mark.parametrize(
    "name", ["linearly implicit", "ros2", "implicit in factors", "projected", "stabilised", "factor chart"]
)
def test_a_state_dict_continues_with_the_same_bits(name):
    def fresh():
        solution = thawed()
        method = METHODS[name](None)
        groups = method.groups(solution)
        return solution, method.optimizer(groups), objective_of(solution, groups)

    solution, optimizer, objective = fresh()
    for _ in range(3):
        optimizer.step(objective)
    other, resumed, other_objective = fresh()
    other.load_state_dict(copy.deepcopy(solution.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        optimizer.step(objective)
        resumed.step(other_objective)
    assert all(map(torch.equal, solution.state_dict().values(), other.state_dict().values()))


def test_a_state_is_plain_and_has_the_form(tmp_path):
    solution = thawed()
    method = odelora(LinearlyImplicit())
    groups = method.groups(solution)
    optimizer = method.optimizer(groups)
    optimizer.step(objective_of(solution, groups))
    assert optimizer.report.form == optimizer.plan(50 + 2 * 12).form == "kernel"
    assert optimizer.report.dimension == optimizer.plan(74).shape.columns
    torch.save(optimizer.state_dict(), tmp_path / "state")
    loaded = torch.load(tmp_path / "state", weights_only=True)
    state = optimizer.state_dict()
    assert loaded["param_groups"] == state["param_groups"]
    saved, again = (x["state"][0]["integrator"] for x in (state, loaded))
    assert saved.keys() == again.keys() == {"mu", "last", "at_least"}
    assert saved["mu"] == again["mu"]
    assert len(saved["last"]) == len(groups)
    assert all(torch.equal(again["last"][name], x) for name, x in saved["last"].items())


def full(h, memory, width=8, correction=False):
    net = MLP(2, 1, width=width, depth=3, generator=torch.Generator().manual_seed(0)).double()
    solution = solution_of(net)
    method = full_implicit(LinearlyImplicit(h=h, correction=correction, memory=memory))
    groups = method.groups(solution)
    return solution, method.optimizer(groups), objective_of(solution, groups)


@pytest.mark.parametrize(("width", "memory", "form"), [(128, 2.0**29, "pairs"), (8, 2.0**29, "kernel"), (8, 3e4, "cg")])
def test_a_step_of_full_implicit_is_the_damped_gauss_newton_step(width, memory, form):
    solution, optimizer, objective = full(h := 20.0, memory, width)
    parameters = list(solution.parameters())
    r = System(solution.problem, solution, derivatives="autograd").residual_vector(objective.batch.points)
    gradients = [torch.autograd.grad(x, parameters, retain_graph=True, materialize_grads=True) for x in r]
    J = torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients])
    d = -J.mT @ linalg.solve(J @ J.mT + torch.eye(len(J), dtype=J.dtype) / h, r.detach())
    before = torch.cat([p.detach().flatten() for p in parameters])
    optimizer.step(objective)
    step = torch.cat([p.detach().flatten() for p in parameters]) - before
    assert optimizer.report.form == form
    # Conjugate gradients stop at a residual of a thousandth.
    assert linalg.vector_norm(step - d) < (1e-2 if form == "cg" else 1e-8) * linalg.vector_norm(d)


@pytest.mark.parametrize(("width", "memory", "form"), [(128, 2.0**29, "pairs"), (8, 3e4, "cg")])
def test_ros2_needs_no_matrix(width, memory, form):
    """A short step is that of the flow, -h Jᵀr; with the second stage's velocity reversed it would be nothing."""
    solution, _, objective = full(None, memory, width)
    parameters = list(solution.parameters())
    before = torch.cat([p.detach().flatten() for p in parameters])
    objective()
    flow = -torch.cat([p.grad.flatten() for p in parameters])
    method = full_implicit(ROS2(h=1e-7, memory=memory))
    optimizer = method.optimizer(method.groups(solution))
    optimizer.step(objective)
    step = torch.cat([p.detach().flatten() for p in parameters]) - before
    assert optimizer.report.form == form
    assert linalg.vector_norm(step / 1e-7 - flow) < 1e-3 * linalg.vector_norm(flow)


def test_steps_by_conjugate_gradients_go_the_way_of_the_dense_ones():
    losses = {}
    for memory in (3e4, 2.0**29):
        _, optimizer, objective = full(None, memory, correction=True)
        losses[memory] = [float(optimizer.step(objective)) for _ in range(4)]
    assert losses[3e4] == sorted(losses[3e4], reverse=True)
    assert losses[3e4] == pytest.approx(losses[2.0**29], rel=0.02)


def test_a_chart_of_everything_is_around_the_right_point():
    """J z is the derivative of the residuals along the chart's own motion; pairs, biases and last layer together."""
    solution = thawed()
    groups = odelora(LinearlyImplicit()).groups(solution)
    objective = objective_of(solution, groups)
    made = odelora(LinearlyImplicit()).optimizer(groups).param_groups
    before = [p.detach().clone() for p in parameters(made)]
    for metric in ("product", "factors"):
        chart = ManifoldChart(metric, 2.0**29, made, before, objective)
        with torch.no_grad():
            local = chart.linearise(chart.start())
            z = normal(local.J.shape[1], generator=torch.Generator().manual_seed(3))
            t = 1e-6
            ahead, behind = (chart.residuals(local.retract(sign * t * z)) for sign in (1, -1))
        slope, exact = (ahead - behind) / (2 * t), local.J @ z
        assert linalg.vector_norm(slope - exact) < 1e-7 * linalg.vector_norm(exact)


def test_what_can_be_thawed_and_what_not():
    net = adapted()
    with pytest.raises(InputError, match=r"Unknown word in also: 'bias' \(did you mean 'biases'\?\)"):
        thaw(net, ["bias"])
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    thaw(net, ["last"])
    assert {n for n, p in net.named_parameters() if p.requires_grad} - trained == {"linears.3.weight", "linears.3.bias"}
    thaw(net, ["biases"])
    assert all(p.requires_grad for name, p in net.named_parameters() if name.endswith("bias"))
    assert not net.linears[0].weight.requires_grad
    thaw(net, ["first"])
    assert net.linears[0].weight.requires_grad
    net = adapted()
    factors = adapters(net)["linears.1"].factors._replace(B=torch.ones(1, 2))
    net.linears[3] = LowRankLinear(net.linears[3], factors, 1.0)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    thaw(net, ["last"])  # is adapted already
    assert {name for name, p in net.named_parameters() if p.requires_grad} == trained
    bare = torch.nn.Sequential(torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 1, bias=False))
    with pytest.raises(InputError, match="have none"):
        thaw(bare, ["biases"])


def test_full_implicit_needs_an_implicit_scheme():
    with pytest.raises(InputError, match="needs an implicit scheme, linearly_implicit or ros2"):
        full_implicit(RungeKutta(EULER))
    assert full_implicit(ROS2()).trains == "weights"


# Within a run.


SMALL = ("net.width=8", "lora.rank=2", "budget.steps=3", "log.every=1")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("lora.also=[bias]",), "lora.also"),
        (("lora.also=last",), "lora.also"),
        (("method=full_implicit", "integrator=rk4"), "implicit scheme, linearly_implicit or ros2"),
        (("method=full_implicit", "integrator=rkc2"), "implicit scheme, linearly_implicit or ros2"),
    ],
)
def test_words_that_do_not_go_together_are_refused_before_training(words, sentence, compose):
    from pinn_odelora.config import build

    with pytest.raises(InputError) as refused:
        build.experiment(compose(*words))
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ("lora.also=[biases,first,last]",),
        ("lora.also=[last]", "lora.targets=*", "lora.rank=1"),
        ("method=full_implicit",),
    ],
)
def test_words_that_do_are_rehearsed(words, compose):
    from pinn_odelora.config import build

    built = build.experiment(compose(*words))
    assert built.adaptation.method.trains == ("weights" if words == ("method=full_implicit",) else "factors")


def last_losses(folder):
    rows = (folder / "history.csv").read_text().splitlines()
    return [float(row.split(",")[rows[0].split(",").index("loss")]) for row in rows[1:]]


def test_an_unusual_form_is_said_before_the_run_and_reported_by_its_steps(compose, run, capsys, tmp_path):
    found = {}
    for memory in ("4e4", "5e8"):
        folder = tmp_path / memory
        cfg = compose("points=fixed", *SMALL, f"integrator.memory={memory}", f"output_dir={folder}")
        done = run(cfg)
        plan, report = done.adaptation.plan(), done.training.optimizer.report
        found[memory] = plan, report, capsys.readouterr().err, last_losses(folder)
    plan, report, said, losses = found["4e4"]
    assert str(plan) in said.partition("step 0")[0]
    assert "conjugate gradients in chunks" in str(plan)
    assert (plan.form, report.form, report.solver.form) == ("cg", "cg", "cg")
    ordinary, report, silent, expected = found["5e8"]
    assert not ordinary.unusual
    assert ordinary.form == report.form
    assert report.form in ("normal", "kernel")
    assert "columns: " not in silent
    assert losses == pytest.approx(expected, rel=0.02)


def test_many_points_are_passed_in_pieces(monkeypatch, generator):
    from pinn_odelora import gradient

    solution = thawed()
    objective = objective_of(solution, odelora(LinearlyImplicit()).groups(solution))
    whole, apart = objective.residuals(), objective.uncounted(objective.batch.points)
    monkeypatch.setattr(gradient, "PIECE", 1.0)
    monkeypatch.setattr(gradient, "at_once", lambda solution: 7)
    sizes = []
    residuals = objective.system.residuals
    objective.system.residuals = lambda points: sizes.extend(p.number for p in points.values()) or residuals(points)
    assert torch.allclose(objective.residuals(), whole, rtol=1e-13, atol=1e-15)
    for name, r in objective.uncounted(objective.batch.points).items():
        assert torch.allclose(r, apart[name], rtol=1e-13, atol=1e-15)
        assert not r.requires_grad
    assert max(sizes) == 7

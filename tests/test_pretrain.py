"""Pretraining: its stages, when each ends, which one is taken, and what it leaves."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pinn_odelora import conditions, loop, problem
from pinn_odelora.budget import Budget, Progress
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box, Cloud
from pinn_odelora.integrators import Report
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.pretraining import following, stages
from pinn_odelora.pretraining.following import Stage, follow
from pinn_odelora.pretraining.pretrain import Pretraining, _assess, pretrain, unseen_error, without_reference
from pinn_odelora.pretraining.stages import natural_gradient, unsuitable
from pinn_odelora.sampling.batch_size import AdaptiveBatchSize
from pinn_odelora.sampling.sampler import Sampler
from pinn_odelora.sampling.settings import Sampling
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.poisson import Poisson

# When a stage ends.


@pytest.fixture
def followed(monkeypatch):
    """How many steps a made-up stage with these errors takes, what is reported, and which iterate is put back."""
    restored = []

    def run(
        errors,
        losses=None,
        most=100,
        patience=5,
        cost=1,
        every=10**6,
        target=1e-3,
        moves=True,
        sizes=None,
        fresh=True,
        halve=None,
    ):
        training, said = SimpleNamespace(progress=Progress(), stalled=not moves), []
        training.objective = SimpleNamespace(snapshot=lambda: training.progress.step, restore=restored.append)
        training.over = lambda budget: budget.used(training.progress) >= 1
        training.sampler = SimpleNamespace(fresh=fresh, largest=1000, sufficient=1120)
        training.optimizer = SimpleNamespace(report=Report(dimension=4961))
        training.batch_size = run.batch_size = AdaptiveBatchSize(125, began=2.0, ended=1.0)
        losses, errors, sizes = (
            iter(losses or itertools.repeat(1.0)),
            iter(errors),
            iter(sizes or itertools.repeat(1000)),
        )

        def steps(training, budget):
            p = training.progress
            while moves and budget.used(p) < 1:
                p.step, p.gradient_evals = p.step + 1, p.gradient_evals + cost
                training.batch_size.size = size = next(sizes)
                yield loop.StepRecord(p.step - 1, next(losses), {}, Report(), p.gradient_evals, 0.0, size)

        monkeypatch.setattr(loop, "steps", steps)
        stage = Stage("Descent", training, patience, every, lambda training: training.progress.gradient_evals, halve)
        follow(stage, Budget(gradient_evals=most), most, lambda: next(errors), target, said.append)
        return training.progress.step, said

    run.restored = restored
    return run


def falling(factor, first=1.0):
    return (first * factor**k for k in range(1000))


def test_a_stage_ends_at_its_target_before_it_has_begun_or_later(followed):
    assert followed([1e-4]) == (0, [])
    assert followed([1.0, 0.1, 1e-3]) == (2, [])


def test_a_stage_leaves_the_best_of_its_iterates_unless_it_has_reached_its_target(followed):
    errors = [9.0, 3.0, 1.0, 2.0, 4.0, 3.0]
    assert followed(errors, [5.0, 4.0, 3.0, 6.0, 7.0], most=5)[0] == 5
    assert followed.restored == [3]
    assert followed(errors, [5.0, 4.0, 3.0, 2.0, 1.0], most=5)[0] == 5
    # The last one is the best, but after a failure the network may be elsewhere.
    assert followed.restored == [3, 5]
    assert followed(errors, [5.0, 4.0, 6.0, 7.0], most=5, target=2.0)[0] == 2
    assert followed.restored == [3, 5]
    followed(itertools.repeat(math.nan), [5.0, 2.0, 3.0, 6.0], most=4)
    assert followed.restored == [3, 5, 2]


def test_a_standstill_ends_a_stage_once_its_batch_cannot_grow(followed):
    still = lambda sizes, **settings: followed(itertools.repeat(1.0), patience=8, sizes=sizes, **settings)
    forever = lambda size: itertools.repeat(size)
    assert still(itertools.chain([250] * 20, [500] * 10, forever(1000)))[0] == 31 + 8
    assert still(forever(500))[0] == 100
    assert still(forever(1000)) == (8, ["Descent 8/100: no further progress"])
    assert still(forever(500), fresh=False)[0] == 8


def test_a_larger_batch_begins_another_while(followed):
    sizes = itertools.chain([1000] * 5, [1200] * 100)
    assert followed(itertools.repeat(1.0), patience=8, sizes=sizes)[0] == 6 + 8


def test_a_stage_ends_at_its_budget(followed):
    assert followed(falling(0.8), most=7)[0] == 7
    assert followed(falling(0.8), most=7, cost=3)[0] == 3


def test_a_stage_ends_where_the_error_has_not_fallen_by_a_tenth_for_a_while(followed):
    done, said = followed(falling(0.99), patience=5)
    # 0.99⁵ is not yet a tenth less.
    assert done == 5
    assert said == ["Descent 5/100: no further progress"]
    assert followed(falling(0.97), patience=5, most=50)[0] == 50


def test_without_a_reference_the_loss_has_to_fall(followed):
    nothing = itertools.repeat(math.nan)
    assert followed(nothing, falling(0.8), most=40)[0] == 40
    assert followed(nothing, falling(0.999), most=40)[0] == 6


def test_a_stage_goes_on_while_the_loss_falls_before_the_error_does(followed):
    plateau = itertools.repeat(1.0)
    assert followed(plateau, falling(0.97), patience=5, most=50)[0] == 50
    assert followed(plateau, falling(0.99), patience=5, most=50)[0] == 5


def test_an_error_that_fails_once_is_no_fall(followed):
    errors = itertools.chain([1.0, math.nan], falling(0.8, 0.8))
    assert followed(errors, itertools.repeat(1e-9), most=20)[0] == 20


def test_a_stage_reports_as_often_as_it_says(followed):
    _, said = followed(falling(0.8), itertools.repeat(7.0), most=20, patience=9, cost=2, every=5, target=1e-9)
    assert said[0] == "Descent 6/20: loss 7.00e+00, relative L2 5.12e-01"
    assert [line.split()[1] for line in said] == ["6/20:", "12/20:", "18/20:"]


def test_a_line_search_that_takes_very_many_evaluations_ends_the_stage(followed):
    assert followed(falling(0.8), most=10**4, patience=10**4, cost=250)[0] == 1


def test_a_stage_ends_where_it_cannot_go_on(followed):
    assert followed(itertools.repeat(1.0), most=10, moves=False) == (0, ["Descent 0/10: no further progress"])


# What the stages do.


def small(generator, problem=None, width=14):
    problem = problem or Poisson()
    net = MLP(problem.inputs, len(problem.fields), width=width, depth=2, generator=generator).double()
    return net, System(problem, Solution(problem, net))


def losses(stage, steps):
    """Of each step on the points where it began."""
    return [record.loss for record in loop.steps(stage.training, Budget(steps=steps))]


@pytest.mark.parametrize(
    ("make", "steps"), [(natural_gradient, 40), (stages.lbfgs, 30)], ids=["natural gradient", "L-BFGS"]
)
def test_both_second_stages_solve_a_problem_from_scratch(make, steps, generator):
    _, system = small(generator)
    error = unseen_error(system, 0)
    first = error()
    losses(make(system, 300, 60, 0), steps)
    assert error() < 1e-3 < first / 100


def test_natural_gradient_on_conditions_that_are_terms(generator):
    _, system = small(generator, Burgers(conditions="soft"))
    found = losses(natural_gradient(system, 200, 40, 0), 20)
    assert found[-1] < found[0] / 20


def test_natural_gradient_in_single_precision(generator):
    net, _ = small(generator)
    system = System(Poisson(), Solution(Poisson(), net.float()))
    found = losses(natural_gradient(system, 60, 12, 0), 12)
    assert found[-1] < found[0] / 20
    assert all(p.dtype == torch.float32 for p in net.parameters())


class Cavity(Problem):
    """Δu + k² u = -k² s on the unit square, u = 0 on its boundary; u = s = sin kx sin ky, k = 3π."""

    coords = ("x", "y")
    region = Box(x=(0, 1), y=(0, 1))
    enforced = ("bc",)
    k = 3 * math.pi

    def reference(self, p):
        return torch.sin(self.k * p.x) * torch.sin(self.k * p.y)

    def terms(self):
        pde = lambda f: f.lap("u") + self.k**2 * (f.u + self.reference(f))
        return {"pde": Term(self.region, pde), "bc": Term(self.region.boundary(), lambda f: f.u)}

    def ansatz(self, p):
        return torch.zeros_like(p.x), p.x * (1 - p.x) * p.y * (1 - p.y)


def test_natural_gradient_leaves_the_plateau_before_the_waves_of_an_indefinite_operator(generator):
    """Without momentum its error is 0.54 after as many steps."""
    net = MLP(2, 1, width=16, depth=3, activation="sin", generator=generator).double()
    system = System(Cavity(), Solution(Cavity(), net))
    losses(natural_gradient(system, 400, 80, 0), 60)
    assert unseen_error(system, 0)() < 1e-2


def test_pretraining_reaches_its_target_and_leaves_a_plain_network(generator):
    """By an error computed here, at points of its own."""
    net, system = small(generator)
    said = []
    Pretraining(adam_steps=20, target=3e-3, interior=300, boundary=60).run(system, said.append)
    p = Poisson().region.sample(777, lambda n, d: torch.rand(n, d, generator=generator, dtype=torch.float64))
    u, exact = Solution(Poisson(), net)(p).detach(), Poisson().reference(p)
    assert float((u - exact).norm() / exact.norm()) < 4e-3
    assert [line for line in said if line.startswith("Adam")][-1].startswith("Adam 20/20")
    assert not any(line.startswith("L-BFGS") for line in said)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_line_is_of_the_iterate_that_has_been_reached(generator):
    """Loss and error of one network, that of the last step, at points that no step has."""
    _, system = small(generator)
    said = []
    settings = Pretraining(adam_steps=5, natural_gradient_steps=20, interior=100, boundary=20, target=1e-30)
    settings.run(system, said.append)
    loss, error = without_reference(system, settings.seed).loss(), unseen_error(system, settings.seed)()
    assert said[-1] == f"Natural gradient 20/20: loss {loss:.2e}, relative L2 {error:.2e}"


# Which one is taken, for which networks.


class Squashed(nn.Module):
    """A network with a function that has no jet rule, so that its derivatives come by reverse mode."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 5, dtype=torch.float64), nn.Linear(5, 1, dtype=torch.float64)

    def forward(self, x):
        return self.two(torch.erf(self.one(x)) + torch.cumsum(self.one(x), dim=1) / 100)


class Apart(Squashed):
    """The same with a weight that is used outside its layer, so that the Jacobian comes row by row."""

    def forward(self, x):
        return super().forward(x) + self.one.weight.sum() / 100


class Mixed(nn.Module):
    """Frozen features, a weight used by two layers, and, if one likes, trained numbers in a product of matrices, and
    others in a sum.
    """

    def __init__(self, alone=0, added=0):
        super().__init__()
        self.features = nn.Parameter(torch.randn(2, 6, dtype=torch.float64), requires_grad=False)
        self.one, self.two = (nn.Linear(6, 6, dtype=torch.float64) for _ in range(2))
        self.two.weight = self.one.weight
        self.last = nn.Linear(6, 1, dtype=torch.float64)
        self.alone, self.added = (nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (alone, added))

    def forward(self, x):
        features = x @ (self.features + self.alone.sum())
        return self.last(torch.tanh(self.two(torch.tanh(self.one(features))))) + self.added.sum()


def chosen(net, monkeypatch, **settings):
    """The stages after Adam with their budgets, and what is reported."""
    taken, said = [], []
    monkeypatch.setattr(following, "follow", lambda stage, budget, most, *_: taken.append((stage.name, most)))
    Pretraining(adam_steps=1, interior=40, boundary=8, **settings).run(posed(net, Burgers()), said.append)
    return taken, said[1:]


def posed(net, problem):
    return System(problem, Solution(problem, net))


def test_natural_gradient_follows_where_the_network_has_the_structure_for_it(monkeypatch, generator):
    net = lambda: MLP(2, 1, width=6, depth=2, generator=generator).double()
    assert chosen(net(), monkeypatch, natural_gradient_steps=7) == ([("Natural gradient", 7)], [])
    assert chosen(net(), monkeypatch, second_stage="lbfgs", lbfgs_evals=9) == ([("L-BFGS", 9)], [])
    assert chosen(net(), monkeypatch, natural_gradient_steps=0) == ([], [])
    assert chosen(net(), monkeypatch, second_stage="lbfgs", lbfgs_evals=0) == ([], [])
    assert chosen(Squashed(), monkeypatch, natural_gradient_steps=7) == ([("Natural gradient", 7)], [])
    assert chosen(Apart(), monkeypatch, lbfgs_evals=9) == (
        [("L-BFGS", 9)],
        ["L-BFGS follows, since the Jacobian of pde is formed row by row: weights are used outside linear layers."],
    )
    taken, _ = chosen(Apart(), monkeypatch, second_stage="natural_gradient", natural_gradient_steps=7)
    assert taken == [("Natural gradient", 7)]
    taken, said = chosen(Mixed(alone=40), monkeypatch, lbfgs_evals=9)
    assert taken == [("L-BFGS", 9)]
    assert said == ["L-BFGS follows, since 40 numbers are trained neither in linear layers nor as factors or summands."]
    assert chosen(Mixed(added=40), monkeypatch, natural_gradient_steps=7) == ([("Natural gradient", 7)], [])
    with pytest.raises(InputError, match="it must be auto, natural_gradient or lbfgs"):
        Pretraining(second_stage="adam")


def test_l_bfgs_follows_where_the_memory_does_not_suffice(generator):
    _, system = small(generator, width=40)
    assert "memory" in unsuitable(natural_gradient(system, 400_000, 8, 0))
    assert unsuitable(natural_gradient(system, 1000, 8, 0)) is None


@pytest.mark.parametrize(
    "net",
    [Mixed, lambda: Mixed(alone=3), Squashed, Apart],
    ids=["tied", "alone", "reverse mode", "row by row"],
)
@pytest.mark.parametrize("second_stage", ["natural_gradient", "lbfgs"])
def test_networks_of_all_kinds_are_trained_and_what_is_frozen_stays(net, second_stage):
    torch.manual_seed(0)
    net = net()
    frozen = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    system = System(Poisson(), Solution(Poisson(), net))
    points = draw_points(system.terms, 100, 20, seed=5)
    settings = {"interior": 60, "boundary": 12, "natural_gradient_steps": 12, "lbfgs_evals": 40, "target": 1e-9}
    losses = [float(system.loss(points).total.detach())]
    for adam_steps in (0, 3):
        Pretraining(adam_steps=adam_steps, second_stage=second_stage, **settings).run(system, lambda line: None)
        losses.append(float(system.loss(points).total.detach()))
    assert losses[1] < losses[0] / 2
    assert losses[2] < 2 * losses[1]
    assert all(torch.equal(dict(net.named_parameters())[name], x) for name, x in frozen.items())
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == set(frozen)


@pytest.mark.parametrize(
    ("second_stage", "then"),
    [("auto", ["Natural gradient", "L-BFGS"]), ("natural_gradient", ["Natural gradient"])],
)
def test_numbers_that_fail_end_natural_gradient_at_the_last_good_weights(second_stage, then, monkeypatch, generator):
    net, system = small(generator)
    taken, said, good = [], [], []

    def follows(stage, *_):
        taken.append(stage.name)
        if stage.name == "L-BFGS":
            return
        for record in loop.steps(stage.training, Budget(steps=9)):
            if record.step == 0:
                good[:] = [p.detach().clone() for p in net.parameters()]
            elif record.step == 1:
                with torch.no_grad():
                    next(net.parameters()).fill_(math.nan)

    monkeypatch.setattr(following, "follow", follows)
    Pretraining(adam_steps=0, interior=60, boundary=10, second_stage=second_stage).run(system, said.append)
    assert taken == then
    assert "NaN or infinite" in said[-1]
    assert all(torch.equal(p, x) for p, x in zip(net.parameters(), good, strict=True))


def test_the_step_size_of_adam_falls_as_a_cosine(generator):
    _, system = small(generator)
    used = []
    note = lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])
    hook = register_optimizer_step_pre_hook(note)
    try:
        stages.adam(system, 20, 4, seed=0, steps=7, lr=3e-3, say=lambda line: None)
    finally:
        hook.remove()
    assert used == pytest.approx([3e-3 * (1 + math.cos(math.pi * k / 7)) / 2 for k in range(7)])


def test_adam_that_leaves_the_finite_numbers_is_refused(generator):
    _, system = small(generator)
    with pytest.raises(InputError, match=r"Pretraining by Adam failed: .*NaN or infinite.* Choose a smaller adam_lr"):
        Pretraining(adam_steps=5, adam_lr=1e200).run(system)


def test_a_residual_that_leaves_its_domain_is_named_with_the_point_and_what_it_read(generator):
    """u' = -√(3 + u), u(0) = -3: on its way u is below -3, where the network is finite and the root is not."""
    line = Box(t=(0, 1))
    start = (line.face(t=0.0), lambda f: f.u + 3)
    drain = problem(coords="t", region=line, pde=lambda f: f.u_t + (3 + f.u).sqrt(), start=start)
    net = MLP(1, 1, width=8, depth=2, generator=generator)
    said = r"The residual of pde is NaN at t = \S+, though what it asks for is finite there \(u_t = \S+, u = -3\.\d+\)"
    with pytest.raises(InputError, match=f"^Pretraining by Adam failed: {said}.* Give it values there too") as refused:
        pretrain(drain, net, settings=Pretraining(adam_steps=300, adam_lr=0.05))
    assert "adam_lr" not in str(refused.value)


def test_points_go_to_the_device_of_the_network(generator):
    """A device without numbers stands in for one that is not here."""
    net, system = small(generator)
    net.to("meta")
    assert system.sample("pde").x.device.type == "meta"
    draw = Sampler(system.terms, Sampling(interior=20, boundary=4)).draw(0).to(torch.device("meta"))
    assert draw.points["pde"].x.device.type == "meta"


# From Python.


def test_pretrain_leaves_the_given_network_and_keeps_the_result(generator, tmp_path):
    net, _ = small(generator)
    before = [p.detach().clone() for p in net.parameters()]
    settings = Pretraining(adam_steps=5, natural_gradient_steps=3, interior=60, boundary=12)
    said = []
    trained = [pretrain(Poisson(), net, settings=settings, cache=tmp_path, say=said.append) for _ in range(2)]
    assert all(torch.equal(p, x) for p, x in zip(net.parameters(), before, strict=True))
    assert not torch.equal(trained[0].linears[0].weight, net.linears[0].weight)
    plain = pretrain(Poisson(), net, settings=settings)
    for other in (trained[1], plain):
        assert all(torch.equal(p, x) for p, x in zip(other.parameters(), trained[0].parameters(), strict=True))
    assert "is kept for the next run" in said[0]
    assert [line.split("(")[1][:7] for line in said if line.startswith("Pretrained")] == ["trained", "cache):"]


def test_pretrain_makes_a_network_of_the_seed():
    settings = lambda seed: Pretraining(adam_steps=0, natural_gradient_steps=0, seed=seed)
    first, again, other = (pretrain(Poisson(), settings=settings(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.linears[1].weight, again.linears[1].weight)
    assert not torch.equal(first.linears[1].weight, other.linears[1].weight)
    with pytest.raises(InputError, match="cannot be called with inputs"):
        pretrain(Poisson(), MLP(3, 1))


# A field that is free by a constant.

FEW = Pretraining(adam_steps=5, interior=100, boundary=10)


def conduction(**more):
    """u'' = 0 with u' = 1 at both ends: u is x and a constant."""
    rod = Box(x=(0, 1))
    ends = conditions.neumann(rod.boundary("x"), lambda f: f.nx)
    return problem(coords="x", region=rod, pde=lambda f: f.u_xx, ends=ends, reference=lambda p: p.x, **more)


def test_a_field_that_is_free_by_a_constant_is_told_and_judged_without_it():
    said = []
    net = pretrain(conduction(), MLP(1, 1, width=8, depth=2), settings=FEW, say=said.append)
    assert said[0].startswith("u is determined up to a constant only, since no term changes when one is added to it: ")
    # It ends by an estimate of the error without the constant, which no training finds.
    x = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    off = (net(x) - x).detach()
    assert off.mean().abs() > 100 * (off - off.mean()).norm() / 50**0.5
    assert "relative L2 error about" in said[-1]
    assert said[-1].startswith("Natural gradient 20/300")
    _assess(System(conduction(), Solution(conduction(), net)), FEW, 1.0, "checkpoint", said.append)
    assert "the pretrained network misses the solution" in said[-1]
    assert said[-1].endswith(said[0])


def test_a_value_at_one_point_fixes_the_constant():
    said = []
    point = conditions.dirichlet(Cloud(Points(x=torch.zeros(1, 1, dtype=torch.float64))))
    net = pretrain(conduction(point=point), MLP(1, 1, width=8, depth=2), settings=FEW, say=said.append)
    assert "constant" not in " ".join(said)
    x = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    assert (net(x) - x).norm() < 2e-4 * x.norm()


def test_the_learning_rate_of_adam_falls_by_a_cosine_of_its_steps_or_of_its_time(generator, monkeypatch):
    rates, own = [], loop.steps

    def steps(training, budget):
        training.clock = itertools.count().__next__  # a second for each look
        for record in own(training, budget):
            rates.append(training.optimizer.param_groups[0]["lr"])
            yield record

    monkeypatch.setattr(loop, "steps", steps)
    _, system = small(generator)
    stages.adam(system, 20, 5, 0, 8, 1e-2, print)
    expected = [1e-2 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert rates == pytest.approx(expected, abs=1e-9)
    rates.clear()
    training = stages.adam(system, 20, 5, 0, 100, 1e-2, print, seconds=4)
    spent = training.progress.seconds / training.progress.step
    assert training.progress.step == math.ceil(4 / spent) < 10
    assert rates[1] == pytest.approx(1e-2 * (1 + math.cos(math.pi * spent / 4)) / 2)


# Off a plateau.


def test_adam_halves_the_loss_where_a_stage_has_not_brought_it_to_a_quarter(followed):
    turns = []

    def halve(budget):
        turns.append(budget)
        return len(turns) < 2, Progress(gradient_evals=7, seconds=1.5)

    # On the plateau for ever: a turn that halves the loss, one that does not, and none after that.
    spent, said = followed(itertools.repeat(1.0), patience=1000, most=300, halve=halve)
    assert [turn.steps for turn in turns] == [following.TURN] * 2
    assert said == [f"Descent {following.TRIAL}/300: goes on where Adam has halved the loss"]
    assert spent == 300 - 2 * 7  # steps: what the turns take is part of the budget
    # What the batch is judged by is not compared across a turn.
    assert (followed.batch_size.began, followed.batch_size.ended) == (None, None)
    turns.clear()
    losses = [1.0, *[0.26] * (following.TRIAL - 2), *itertools.repeat(0.24, 100)]
    followed(itertools.repeat(1.0), losses, patience=1000, most=100, halve=halve)
    assert turns == []
    followed(itertools.repeat(1.0), losses[:-1], patience=1000, most=following.TRIAL - 1, halve=halve)
    assert turns == []


def test_what_is_no_problem_and_no_settings_is_refused():
    with pytest.raises(InputError, match=r"^problem is .*, but it must be a Problem, such as Burgers\(nu=0\.05\)\.$"):
        pretrain(Burgers)
    with pytest.raises(InputError, match=r"^settings is \{'target': 0\.1\}, but it must be a Pretraining, such as"):
        pretrain(Burgers(), settings={"target": 0.1})


def test_a_reference_less_accurate_than_the_target_does_not_tell_when_it_is_reached():
    """Then the error is estimated: else steps go on towards an error that the reference will never have."""
    box = Box(x=(0, 1), t=(0, 1))

    def wrong(p, k):
        return 1.003 * torch.exp(-k * math.pi**2 * p.t) * torch.sin(math.pi * p.x)

    heat = problem(
        coords="xt",
        region=box,
        k=parameter(0.1, 0.2),
        pde=lambda f, k: f.op("u", {"t": 1, "xx": -k}),
        ic=(box.face(t=0.0), lambda f: f.u - torch.sin(math.pi * f.x)),
        bc=(box.boundary("x"), lambda f: f.u),
        reference=wrong,
        accuracy=1e-2,
    )
    said = []
    net = MLP(2, 1, width=16, depth=3, generator=torch.Generator().manual_seed(0))
    trained = pretrain(heat.at_source(), net, settings=Pretraining(interior=400, boundary=80), say=said.append)
    assert "relative L2 error about" in said[-1]
    assert "no further progress" not in said[-1]
    p = Points(x=torch.full((1, 1), 0.5).double(), t=torch.full((1, 1), 0.5).double())
    assert float(trained(p.rows(("x", "t"))).detach()) == pytest.approx(math.exp(-0.05 * math.pi**2), rel=1e-3)


@pytest.mark.parametrize(("width", "rate"), [(20, 5e-3), (40, 5e-3), (160, 1.25e-3)])
def test_adam_takes_shorter_steps_in_wider_networks(width, rate):
    assert stages.adam_lr(MLP(2, 1, width=width, depth=2)) == pytest.approx(rate)


def test_a_turn_of_adam_ends_at_half_the_loss_or_leaves_the_network_as_it_was(generator):
    net, system = small(generator)
    before = [p.clone() for p in net.parameters()]
    halved, cost = stages.halve(system, 5, 0, Budget(steps=2))
    assert not halved
    assert cost.gradient_evals == cost.step == 2
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))
    points = draw_points(system.terms, stages.FEW, 5, 3)
    first = system.loss(points).total.item()
    halved, cost = stages.halve(system, 5, 0, Budget(steps=500))
    assert halved
    assert 5 < cost.step < 500
    assert 0.4 * first < system.loss(points).total.item() < 0.6 * first  # at other points


def test_a_loss_that_rises_is_no_plateau(generator):
    net, system = small(generator)
    losses(natural_gradient(system, 300, 60, 0), 40)
    before = [p.clone() for p in net.parameters()]
    halved, cost = stages.halve(system, 5, 0, Budget(steps=500))
    assert not halved
    assert cost.step < 10
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))


def test_a_frozen_network_is_refused(generator):
    net, _ = small(generator)
    with pytest.raises(InputError, match=r"^All weights of the network are frozen"):
        pretrain(Poisson(), net.requires_grad_(False))


def test_pretraining_differentiates_where_its_caller_does_not(generator):
    net, _ = small(generator)
    few = Pretraining(adam_steps=3, natural_gradient_steps=2, interior=40, boundary=10)
    with torch.no_grad():
        trained = pretrain(Poisson(), net, settings=few)
    assert not torch.equal(trained(torch.ones(1, 2).double()), net.double()(torch.ones(1, 2).double()))

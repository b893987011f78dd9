"""Pretraining: its phases, when each ends, which one is taken, and what it leaves."""

import itertools
import math

import pytest
import torch
from torch import nn

from pinn_odelora.errors import InputError
from pinn_odelora.nets import MLP
from pinn_odelora.pretraining import stages as phases
from pinn_odelora.pretraining.pretrain import Pretraining, unseen_error
from pinn_odelora.pretraining.stages import Leg, Phase, follow, natural_gradient, quasi_newton
from pinn_odelora.sampling.sampler import PointStream
from pinn_odelora.selection.initial_rank import components
from pinn_odelora.system import Solution, System, draw_points
from problems.burgers import Burgers
from problems.poisson import Poisson

# When a phase ends.


def followed(errors, losses=None, most=100, patience=5, cost=1, target=1e-3):
    """How many times a made-up phase with these errors is advanced, and what is reported."""
    said, done = [], []
    losses = iter(losses or itertools.repeat(1.0))
    errors = iter(errors)

    def advance():
        done.append(1)
        return Leg(cost, next(losses))

    follow(Phase("Descent", patience, 10**6, advance), most, lambda: next(errors), target, said.append)
    return len(done), said


def falling(factor, first=1.0):
    return (first * factor**k for k in range(1000))


def test_a_phase_ends_at_its_target_before_it_has_begun_or_later():
    assert followed([1e-4]) == (0, [])
    assert followed([1.0, 0.1, 1e-3]) == (2, [])


def test_a_phase_ends_at_its_budget():
    assert followed(falling(0.8), most=7)[0] == 7
    assert followed(falling(0.8), most=7, cost=3)[0] == 3


def test_a_phase_ends_where_the_error_has_not_fallen_by_a_tenth_for_a_while():
    done, said = followed(falling(0.99), patience=5)
    # 0.99⁵ is not yet a tenth less.
    assert done == 5
    assert said == ["Descent 5/100: no further progress"]
    assert followed(falling(0.97), patience=5, most=50)[0] == 50


def test_without_a_reference_the_loss_has_to_fall():
    nothing = itertools.repeat(math.nan)
    assert followed(nothing, falling(0.8), most=40)[0] == 40
    assert followed(nothing, falling(0.999), most=40)[0] == 6


def test_an_error_that_fails_once_is_no_fall():
    errors = itertools.chain([1.0, math.nan], falling(0.8, 0.8))
    assert followed(errors, itertools.repeat(1e-9), most=20)[0] == 20


def test_a_phase_reports_as_often_as_it_says():
    said = []
    errors = falling(0.8)
    follow(Phase("Descent", 9, 5, lambda: Leg(2, 7.0)), 20, lambda: next(errors), 1e-9, said.append)
    assert said[0] == "Descent 6/20: loss 7.00e+00, relative L2 5.12e-01"
    assert [line.split()[1] for line in said] == ["6/20:", "12/20:", "18/20:"]


def test_a_phase_ends_where_it_cannot_go_on():
    said = []
    follow(Phase("Descent", 5, 1, lambda: None), 10, lambda: 1.0, 1e-3, said.append)
    assert said == ["Descent 0/10: no further progress"]


# What the phases do.


def small(generator, problem=None, width=14):
    problem = problem or Poisson()
    net = MLP(problem.inputs, len(problem.fields), width=width, depth=2, generator=generator).double()
    return net, System(problem, Solution(problem, net))


@pytest.mark.parametrize(("phase", "steps"), [("natural gradient", 40), ("L-BFGS", 30)])
def test_both_phases_solve_a_problem_from_scratch(phase, steps, generator):
    _, system = small(generator)
    by_lbfgs = lambda: quasi_newton(system, draw_points(system.terms, 300, 60, 0))
    made = natural_gradient(system, 300, 60, 0).phase if phase == "natural gradient" else by_lbfgs()
    error = unseen_error(system, 0)
    first = error()
    for _ in range(steps):
        made.advance()
    assert error() < 1e-3 < first / 100


def test_natural_gradient_on_conditions_that_are_terms(generator):
    """By the loss on fresh points where steps begin."""
    _, system = small(generator, Burgers(conditions="soft"))
    phase = natural_gradient(system, 200, 40, 0).phase
    losses = [phase.advance().began for _ in range(20)]
    assert losses[-1] < losses[0] / 20


def test_natural_gradient_in_single_precision(generator):
    net, _ = small(generator)
    system = System(Poisson(), Solution(Poisson(), net.float()))
    phase = natural_gradient(system, 60, 12, 0).phase
    losses = [phase.advance().began for _ in range(12)]
    assert losses[-1] < losses[0] / 20
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_pretraining_reaches_its_target_and_leaves_a_plain_network(generator):
    """By an error computed here, at points of its own."""
    net, _ = small(generator)
    said = []
    Pretraining(adam_steps=20, target=3e-3, interior=300, boundary=60).run(Poisson(), net, said.append)
    p = Poisson().region.sample(777, lambda n, d: torch.rand(n, d, generator=generator, dtype=torch.float64))
    u, exact = Solution(Poisson(), net)(p).detach(), Poisson().reference(p)
    assert float((u - exact).norm() / exact.norm()) < 4e-3
    assert [line for line in said if line.startswith("Adam")][-1].startswith("Adam 20/20")
    assert not any(line.startswith("L-BFGS") for line in said)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


# Which one is taken, for which networks.


class Squashed(nn.Module):
    """A network with a function that has no jet rule, so that its Jacobian comes row by row."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 5, dtype=torch.float64), nn.Linear(5, 1, dtype=torch.float64)

    def forward(self, x):
        return self.two(torch.erf(self.one(x)) + torch.cumsum(self.one(x), dim=1) / 100)


class Mixed(nn.Module):
    """Frozen features, a weight used by two layers, and, if one likes, trained numbers of no layer."""

    def __init__(self, alone=0):
        super().__init__()
        self.features = nn.Parameter(torch.randn(2, 6, dtype=torch.float64), requires_grad=False)
        self.one, self.two = (nn.Linear(6, 6, dtype=torch.float64) for _ in range(2))
        self.two.weight = self.one.weight
        self.last = nn.Linear(6, 1, dtype=torch.float64)
        self.shift = nn.Parameter(torch.zeros(alone, dtype=torch.float64))

    def forward(self, x):
        return self.last(torch.tanh(self.two(torch.tanh(self.one(x @ self.features))))) + self.shift.sum()


def chosen(net, monkeypatch, **settings):
    """The phases after Adam with their budgets, and what is reported."""
    taken, said = [], []
    monkeypatch.setattr(phases, "follow", lambda phase, most, *_: taken.append((phase.name, most)))
    Pretraining(adam_steps=1, interior=40, boundary=8, **settings).run(Burgers(), net, said.append)
    return taken, said[1:]


def test_natural_gradient_follows_where_the_network_has_the_structure_for_it(monkeypatch, generator):
    net = lambda: MLP(2, 1, width=6, depth=2, generator=generator).double()
    assert chosen(net(), monkeypatch, implicit_steps=7) == ([("Natural gradient", 7)], [])
    assert chosen(net(), monkeypatch, finish="lbfgs", lbfgs_evals=9) == ([("L-BFGS", 9)], [])
    assert chosen(net(), monkeypatch, implicit_steps=0) == ([], [])
    assert chosen(Squashed(), monkeypatch, lbfgs_evals=9) == (
        [("L-BFGS", 9)],
        ["L-BFGS follows, since the network has no jet rules, or a term is coupled."],
    )
    assert chosen(Squashed(), monkeypatch, finish="implicit", implicit_steps=7)[0] == [("Natural gradient", 7)]
    taken, said = chosen(Mixed(alone=40), monkeypatch, lbfgs_evals=9)
    assert taken == [("L-BFGS", 9)]
    assert said == ["L-BFGS follows, since 40 numbers are trained outside linear layers."]
    with pytest.raises(InputError, match="allowed: auto, implicit, lbfgs"):
        Pretraining(finish="adam")


def test_l_bfgs_follows_where_the_memory_does_not_suffice(generator):
    _, system = small(generator, width=40)
    assert "memory" in natural_gradient(system, 100_000, 8, 0).unsuitable()
    assert natural_gradient(system, 1000, 8, 0).unsuitable() is None


@pytest.mark.parametrize("net", [Mixed, lambda: Mixed(alone=3), Squashed], ids=["tied", "alone", "row by row"])
@pytest.mark.parametrize("finish", ["implicit", "lbfgs"])
def test_networks_of_all_kinds_are_trained_and_what_is_frozen_stays(net, finish):
    torch.manual_seed(0)
    net = net()
    frozen = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    system = System(Poisson(), Solution(Poisson(), net))
    points = draw_points(system.terms, 100, 20, seed=5)
    settings = {"interior": 60, "boundary": 12, "implicit_steps": 12, "lbfgs_evals": 40, "target": 1e-9}
    losses = [float(system.loss(points).total.detach())]
    for adam_steps in (0, 3):
        Pretraining(adam_steps=adam_steps, finish=finish, **settings).run(Poisson(), net, lambda line: None)
        losses.append(float(system.loss(points).total.detach()))
    assert losses[1] < losses[0] / 2
    assert losses[2] < 2 * losses[1]
    assert all(torch.equal(dict(net.named_parameters())[name], x) for name, x in frozen.items())
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == set(frozen)


def test_numbers_that_fail_end_natural_gradient_at_the_last_good_weights(monkeypatch, generator):
    net, _ = small(generator)
    taken, said, good = [], [], []

    def following(phase, most, *_):
        taken.append(phase.name)
        if phase.name == "L-BFGS":
            return
        phase.advance()
        good[:] = [p.detach().clone() for p in net.parameters()]
        phase.advance()
        with torch.no_grad():
            next(net.parameters()).fill_(math.nan)
        phase.advance()

    monkeypatch.setattr(phases, "follow", following)
    for finish, then in (("auto", ["Natural gradient", "L-BFGS"]), ("implicit", ["Natural gradient"])):
        Pretraining(adam_steps=0, interior=60, boundary=10, finish=finish).run(Poisson(), net, said.append)
        assert taken == then
        assert "NaN or infinite" in said[-1]
        assert all(torch.equal(p, x) for p, x in zip(net.parameters(), good, strict=True))
        taken.clear()


def test_points_go_to_the_device_of_the_network(generator, monkeypatch):
    """A device without numbers stands in for one that is not here."""
    net, system = small(generator)
    net.to("meta")
    given = []
    monkeypatch.setattr(System, "residuals", lambda self, points: given.append(points) or {"pde": torch.ones(8, 1)})
    assert components(system) == {"pde": 1}
    assert given[0]["pde"].x.device.type == "meta"
    draw = PointStream(system.terms, 20, 4, fresh=True).draw(0).to(torch.device("meta"))
    assert draw.points["pde"].x.device.type == "meta"

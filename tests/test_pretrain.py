"""Pretraining: its phases, when each ends, and which one is taken."""

import math

import pytest
import torch
from torch import nn

from pinn_odelora.nets import MLP
from pinn_odelora.system import Solution, System, draw_points
from pinn_odelora.training import cache, phases
from pinn_odelora.training.phases import Gone, Phase, follow, natural_gradient, quasi_newton
from pinn_odelora.training.pretrain import Pretraining, unseen_error
from problems.burgers import Burgers
from problems.poisson import Poisson


def followed(errors, losses=None, most=100, patience=5, cost=1, target=1e-3):
    """How many times a made-up phase with these errors is advanced, and what is reported."""
    said, done = [], []
    losses = iter(losses or [1.0] * 1000)
    errors = iter(errors)

    def advance():
        done.append(1)
        return Gone(cost, next(losses))

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
    # The first look counts as a fall; after it 0.99⁵ is not yet a tenth less.
    assert done == 6
    assert said == ["Descent 6/100: no further progress"]
    assert followed(falling(0.97), patience=5, most=50)[0] == 50


def test_without_a_reference_the_loss_has_to_fall():
    nothing = iter(lambda: math.nan, 0)
    assert followed(nothing, falling(0.8), most=40)[0] == 40
    assert followed(iter(lambda: math.nan, 0), falling(0.999), most=40)[0] == 6


def test_a_phase_ends_where_it_cannot_go_on():
    said = []
    follow(Phase("Descent", 5, 1, lambda: None), 10, lambda: 1.0, 1e-3, said.append)
    assert said == ["Descent 0/10: no further progress"]


def solved(problem, phase, steps, generator, width=14):
    net = MLP(problem.inputs, len(problem.fields), width=width, depth=2, generator=generator).double()
    system = System(problem, Solution(problem, net))
    made = phase(system)
    first = unseen_error(system, 0)
    for _ in range(steps):
        made.advance()
    return first, unseen_error(system, 0)


@pytest.mark.parametrize("phase", ["natural gradient", "L-BFGS"])
def test_both_phases_solve_a_problem_from_scratch(phase, generator):
    def made(system):
        by_lbfgs = phase == "L-BFGS"
        return quasi_newton(system, draw_points(system.terms, 300, 60, 0)) if by_lbfgs else begun(system)

    begun = lambda system: natural_gradient(system, 300, 60, 0)
    first, after = solved(Poisson(), made, 30, generator)
    assert after < 1e-3 < first / 100


def test_natural_gradient_on_conditions_that_are_terms(generator):
    """By the loss on fresh points where steps begin."""
    problem = Burgers(conditions="soft")
    net = MLP(2, 1, width=14, depth=2, generator=generator).double()
    phase = natural_gradient(System(problem, Solution(problem, net)), 200, 40, 0)
    losses = [phase.advance().loss for _ in range(20)]
    assert losses[-1] < losses[0] / 20


class Squashed(nn.Module):
    """A network without jet rules, so that its Jacobian comes row by row."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 5, dtype=torch.float64), nn.Linear(5, 1, dtype=torch.float64)

    def forward(self, x):
        return self.two(torch.erf(self.one(x)) + torch.cumsum(self.one(x), dim=1) / 100)


def chosen(net, monkeypatch, **settings):
    """The phase after Adam."""
    taken = []
    monkeypatch.setattr(phases, "follow", lambda phase, most, *_: taken.append((phase.name, most)))
    Pretraining(adam_steps=1, interior=40, boundary=8, **settings).run(Burgers(), net, lambda line: None)
    return taken


def test_natural_gradient_follows_where_the_network_has_the_structure_for_it(monkeypatch, generator):
    net = lambda: MLP(2, 1, width=6, depth=2, generator=generator).double()
    assert chosen(net(), monkeypatch, implicit_steps=7) == [("Natural gradient", 7)]
    assert chosen(net(), monkeypatch, finish="lbfgs", lbfgs_evals=9) == [("L-BFGS", 9)]
    assert chosen(net(), monkeypatch, implicit_steps=0) == []
    assert chosen(Squashed(), monkeypatch, lbfgs_evals=9) == [("L-BFGS", 9)]
    assert chosen(Squashed(), monkeypatch, finish="implicit", implicit_steps=7) == [("Natural gradient", 7)]


def test_l_bfgs_follows_where_the_memory_does_not_suffice(monkeypatch, generator):
    monkeypatch.setattr(phases.ImplicitODELoRA, "plan", lambda self, rows: phases.ImplicitODELoRA.small)
    monkeypatch.setattr(phases.ImplicitODELoRA, "small", type("Plan", (), {"form": "cg"}), raising=False)
    net = MLP(2, 1, width=6, depth=2, generator=generator).double()
    assert chosen(net, monkeypatch, lbfgs_evals=9) == [("L-BFGS", 9)]


def test_numbers_that_fail_end_natural_gradient_at_the_last_good_weights(generator):
    net = MLP(2, 1, width=6, depth=2, generator=generator).double()
    system = System(Burgers(), Solution(Burgers(), net))
    phase = natural_gradient(system, 60, 10, 0)
    assert phase.advance() is not None
    good = [p.detach().clone() for p in net.parameters()]
    phase.advance()
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    assert phase.advance() is None
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    assert not all(torch.equal(p, x) for p, x in zip(net.parameters(), [0 * x for x in good], strict=True))


def test_the_code_of_natural_gradient_is_part_of_a_key_where_it_may_be_used(monkeypatch, generator):
    net = MLP(2, 1, width=6, depth=2, generator=generator).double()
    keys = lambda: {f: cache.key(Burgers(), net, Pretraining(finish=f)) for f in ("auto", "implicit", "lbfgs")}
    before = keys()
    monkeypatch.setattr(cache, "IMPLICIT", cache.IMPLICIT[:-1])
    after = keys()
    assert before["lbfgs"] == after["lbfgs"]
    assert before["auto"] != after["auto"]
    assert before["implicit"] != after["implicit"]

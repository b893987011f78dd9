"""Turns of natural gradient and of L-BFGS: who has which follows from what each gains."""

import math
from types import SimpleNamespace

import pytest
import torch

from pinn_odelora.pretraining import alternation, stages
from pinn_odelora.pretraining.alternation import LEAST, PARTS, Turn, alternate
from pinn_odelora.pretraining.stages import Unseen

SECONDS = 160.0
LENGTH = SECONDS / PARTS


def turns(first, second, seconds=SECONDS):
    """Who had turns, and of how many seconds; ``first`` and ``second`` are rates as functions of the time."""
    clock, had = [0.0], []

    def taken(name, rate):
        def turn(length):
            begun = clock[0]
            had.append((name, length))
            clock[0] += length
            return Turn(length * rate(begun), length)

        return turn

    alternate(taken("first", first), taken("second", second), seconds, lambda: clock[0])
    return had, clock[0]


def test_who_halves_the_loss_in_every_turn_goes_on_alone():
    had, end = turns(lambda t: math.log(2.1) / LENGTH, lambda t: math.inf)
    assert had == [("first", LENGTH)] * PARTS
    assert end == SECONDS


def test_who_stands_still_gives_way_until_it_is_faster():
    """As on a plateau, which L-BFGS leaves after its second turn."""
    away = lambda t: t >= 5 * LENGTH
    had, _ = turns(lambda t: 0.5 if away(t) else 0.0, lambda t: 0.01 if away(t) else 0.1)
    assert [name for name, _ in had] == ["first", "second", "first", "second"] + ["first"] * 11
    assert [length for name, length in had if name == "second"] == [LENGTH, 2 * LENGTH]


def test_who_was_slower_than_the_other_is_not_asked_again_until_it_is_faster():
    """Progress below a half in a turn is enough where the other makes none."""
    had, _ = turns(lambda t: 0.5 * math.log(2) / LENGTH, lambda t: -1.0)
    assert [name for name, _ in had] == ["first", "second"] + ["first"] * (PARTS - 2)


def test_training_ends_where_neither_gains():
    had, end = turns(lambda t: 1e-4, lambda t: -1.0)
    assert [name for name, _ in had] == ["first", "second"]
    assert end < SECONDS
    failed = lambda seconds: Turn(-math.inf, 0.0)
    alternate(failed, failed, SECONDS, lambda: 0.0)


def test_turns_are_not_shorter_than_a_second_nor_longer_than_what_is_left():
    had, end = turns(lambda t: math.log(3) / LEAST, lambda t: 0.0, seconds=2.5)
    assert had == [("first", 1.0), ("first", 1.0), ("first", 0.5)]
    assert end == 2.5


@pytest.mark.parametrize("after", [1.0, 4.0, math.nan])
def test_a_turn_of_lbfgs_that_does_not_gain_is_undone(monkeypatch, after):
    """Of natural gradient it is not: its points are others in each step."""
    net = torch.nn.Linear(1, 1)
    system, loss, had = SimpleNamespace(solution=net), [2.0], []
    stage = lambda name: SimpleNamespace(name=name, training=SimpleNamespace(progress=SimpleNamespace(seconds=0.0)))

    def follow(stage, budget, *_):
        had.append(stage.name)
        with torch.no_grad():
            net.weight.fill_(len(had))
        loss[0] = {"natural": 2.0, "lbfgs": after}[stage.name]

    monkeypatch.setattr(stages, "follow", follow)
    unseen = Unseen(lambda: loss[0], lambda: None)
    monkeypatch.setattr(alternation, "alternate", lambda first, second, *_: (first(1.0), second(1.0)))
    alternation.train(system, stage("natural"), lambda: stage("lbfgs"), 9.0, lambda: 1.0, 0.0, print, unseen)
    assert had == ["natural", "lbfgs"]
    assert net.weight.item() == (2.0 if after < 2 else 1.0)

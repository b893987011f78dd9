"""Rules of values: what they accept, what they read, and how a refusal names the value."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from pinn_odelora.budget import Budget
from pinn_odelora.config.sentences import of_run
from pinn_odelora.errors import InputError, RefusedValueError, within
from pinn_odelora.log import Log
from pinn_odelora.lowrank.settings import LoRA
from pinn_odelora.nets import MLP
from pinn_odelora.rules import (
    annotated,
    below_one,
    boolean,
    check,
    file,
    fractions,
    list_of,
    null,
    number,
    one_of,
    part,
    path,
    seed,
    text,
    whole,
)
from pinn_odelora.sampling.settings import Sampling

ACCEPTED = [
    (number(), -1e300, -1e300),
    (number(above=0), 5e-324, 5e-324),
    (number(least=0), 0, 0),
    (number(), np.float32(0.5), 0.5),
    (whole(1), 1e4, 10_000),
    (whole(1), np.int64(3), 3),
    (whole(-2, 2), -2, -2),
    (whole(), 2**63 - 1, 2**63 - 1),
    (seed, 2**32 - 1, 2**32 - 1),
    (part, 1, 1),
    (below_one, 0, 0),
    (boolean, False, False),
    (null, None, None),
    (one_of(32, 64), 64, 64),
    (text, 7, "7"),
    (list_of(text, "names"), ["a", 1], ("a", "1")),
    (fractions(2), (0, 0.5), (0, 0.5)),
    (whole(1) | null, None, None),
    (one_of("auto") | whole(1), 2.0, 2),
    (file, __file__, __file__),
    (path, Path("/tmp/../x"), "/tmp/../x"),
]


@pytest.mark.parametrize(("rule", "value", "read"), ACCEPTED)
def test_accepts_and_reads(rule, value, read):
    got = rule.check("x", value)
    assert got == read
    assert type(got) is type(read) or isinstance(value, np.generic)


REFUSED = [
    (number(), math.nan),
    (number(), -math.inf),
    (number(), 10**400),
    (number(), True),
    (number(), "1"),
    (number(above=0), 0),
    (number(least=0), -1e-300),
    (whole(), 0.5),
    (whole(), 2**63),
    (whole(1), 0),
    (whole(1, 5), 6),
    (whole(), True),
    (seed, -1),
    (seed, 2**32),
    (part, 1.0000001),
    (part, -0.1),
    (below_one, 1),
    (boolean, 1),
    (boolean, "true"),
    (null, 0),
    (one_of(32, 64), 32.0),
    (one_of("a"), "b"),
    (text, None),
    (text, True),
    (list_of(text, "names"), "ab"),
    (list_of(whole(1), "sizes"), [1, 0]),
    (fractions(2), [0.5]),
    (fractions(2), [0.5, 1]),
    (whole(1) | null, 0),
    (file, "/nowhere/at/all"),
    (file, "a" * 300),
    (path, ""),
    (path, None),
]


@pytest.mark.parametrize(("rule", "value"), REFUSED)
def test_refuses_with_name_value_and_what_is_allowed(rule, value):
    with pytest.raises(RefusedValueError) as refused:
        rule.check("x", value)
    assert (refused.value.name, refused.value.value) == ("x", value)
    assert str(refused.value) == f"x is {value!r}, but it must be {rule.allowed}."


@pytest.mark.parametrize(
    ("annotation", "good", "bad", "allowed"),
    [
        (int, 1e4, 0.5, "a whole number"),
        (float, 1, "1", "a finite number"),
        (bool, True, 1, "True or False"),
        (float | None, None, math.nan, "a finite number or None"),
        (Literal["a", "b"] | int, 3, "c", "a or b or a whole number"),
    ],
)
def test_an_annotation_is_a_rule(annotation, good, bad, allowed):
    rule = annotated(annotation)
    assert rule.check("x", good) == good
    assert rule.allowed == allowed
    with pytest.raises(RefusedValueError):
        rule.check("x", bad)


@pytest.mark.parametrize("annotation", [list[int], "int", Path, int | Path, lambda: 0])
def test_another_annotation_tells_nothing(annotation):
    assert annotated(annotation) is None


@dataclass(frozen=True)
class Steps:
    h: float | None = None
    number: int = 1

    def __post_init__(self):
        check(self, h=number(above=0) | null, number=whole(1))


def test_an_object_reads_its_settings_by_their_rules():
    steps = Steps(0.5, 1e3)
    assert steps == Steps(0.5, 1000)
    assert type(steps.number) is int


def test_python_and_the_command_line_refuse_the_same_value_each_in_its_own_words():
    with pytest.raises(InputError, match=r"^h is -1, but it must be a finite number above 0 or None\.$"):
        Steps(-1)
    with pytest.raises(RefusedValueError) as refused, within("integrator"):
        Steps(-1)
    assert of_run(refused.value) == "integrator.h is -1, but it must be a finite number above 0 or null."
    with pytest.raises(RefusedValueError) as refused, within("a"), within("b"), within(""):
        boolean.check("x", None)
    assert of_run(refused.value) == "a.b.x is null, but it must be true or false."


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Budget(), "steps is None, but it must be a whole number where neither gradient_evals nor seconds"),
        (lambda: Budget(seconds=0), "seconds is 0, but it must be a finite number above 0 or None."),
        (lambda: Budget(steps=0.5), "steps is 0.5, but it must be a whole number of at least 1 or None."),
        (lambda: Log(every=0), "every is 0, but it must be a whole number of at least 1."),
        (lambda: Sampling(residual=2), "residual is 2, but it must be a number from 0 to 1."),
        (lambda: Sampling(fresh=False), "residual is 0.3, but it must be 0 where points are fixed"),
        (lambda: Sampling(fresh=False, residual=0), "initial_batch_size is 250, but it must be None where points are"),
        (lambda: Sampling(fresh=None), "fresh is None, but it must be True or False."),
        (lambda: LoRA(rank=0), "rank is 0, but it must be a whole number of at least 1 or auto or adaptive."),
        (lambda: LoRA(alpha=0), "alpha is 0, but it must be a finite number above 0 or None."),
        (lambda: LoRA(scaling="rs"), "scaling is 'rs', but it must be standard or rslora."),
        (lambda: LoRA(alpha=16, scale=2.0), "scale is 2.0, but it must be 1, its default, where alpha is given"),
        (lambda: LoRA(scaling="rslora"), "alpha is None, but it must be a number where scaling is rslora."),
        (lambda: LoRA(also="last"), "also is 'last', but it must be a list of words, each biases, first or last."),
        (lambda: LoRA(rank="adaptive", start="zero"), "start is 'zero', but it must be pissa or orthonormal if"),
        (lambda: MLP(2, 1, width=0), "width is 0, but it must be a whole number of at least 1."),
        (lambda: MLP(2, 1, depth=1.5), "depth is 1.5, but it must be a whole number of at least 1."),
    ],
)
def test_settings_check_themselves(make, sentence):
    with pytest.raises(InputError) as refused:
        make()
    assert str(refused.value).startswith(sentence)

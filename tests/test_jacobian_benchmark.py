"""The benchmark of the Jacobian: its rivals form the same one, and it says what misses a target."""

import sys
from pathlib import Path

import pytest
import torch

from problems.kovasznay import Kovasznay

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import jacobian
import reverse_jacobian


# Importing jvp's rules, torch calls what it calls deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_the_rivals_of_the_benchmark_form_the_same_jacobian():
    case = jacobian.Case(6, torch.float64, "cpu", number=20)
    assert max(jacobian.check(case).values()) < 1e-12
    before = [x.clone() for layer in case.layers.values() for x in layer.factors]
    assert 0 < case.step() < 1e3 * float(case.here.loss)
    assert all(map(torch.equal, before, [x for layer in case.layers.values() for x in layer.factors]))


def test_the_benchmark_says_what_is_short():
    laps = {
        "jets": [1.0, 1.5],
        "reverse": [3.0, 3.0],
        "sweep": [1.2, 1.8],
        "columns": [0.8, 1.2],
    }
    laps |= {"gram": [4.0, 6.0], "step": [5.5, 8.25], "vmap_reverse": [10.0, 15.0], "vmap_forward": [20.0, 30.0]}
    assert jacobian.unit(laps) == "jets"
    assert jacobian.shortfalls(40, laps) == [
        "width 40: sweep costs 1.20 gradients, above 1.1.",
        "width 40: sweep and columns are 5.0 times as fast as vmap_reverse, not 6.",
    ]


def test_four_ways_form_the_same_jacobian():
    for ways in (reverse_jacobian.of_problem(Kovasznay, 6, 15), reverse_jacobian.of_conservation_form(15)):
        assert reverse_jacobian.differences(ways) < 1e-11
        assert set(reverse_jacobian.measure(ways, 1)) == {*ways, *(f"{way}, MiB" for way in ways)}


def test_the_benchmark_of_reverse_mode_says_what_is_short():
    costs = {"autograd": 1.0, "autograd, MiB": 20.0}
    found = {
        "a": costs | {"jets": 0.2, "jets, MiB": 10.0},
        "b": costs | {"row by row": 9.0, "row by row, MiB": 3.0, "vmap(jacrev)": 2.5, "vmap(jacrev), MiB": 2.0},
    }
    assert reverse_jacobian.short(found) == [
        "a: 5.0 times the seconds of jets, above 4.",
        "b: 9.0 times as fast as row by row, not 10.",
    ]
    assert "| b | 1.000, 20 MiB |  | 9.000, 3 MiB | 2.500, 2 MiB |" in reverse_jacobian.markdown(found)

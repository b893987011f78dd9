"""The benchmark of the Jacobian: its rivals form the same one, and it says what misses a target."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import jacobian


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

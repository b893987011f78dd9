"""The benchmark of a step's cost: its rival takes LoRA-Pro's step, and it says what misses a target."""

import sys
from pathlib import Path

import pytest
import torch

from pinn_odelora.flows import balanced_flow
from pinn_odelora.manifolds.factors import Factors

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import optimizer_cost


@pytest.mark.parametrize("formed", [False, True])
def test_the_rival_of_the_benchmark_takes_the_step_of_lora_pro(formed):
    (group,) = optimizer_cost.pairs((9, 7, 3), 1, torch.float64, scale=0.7)
    A, B = group["params"]
    before = Factors(A.detach().clone(), B.detach().clone())
    dy = balanced_flow(before, Factors(A.grad, B.grad), group["scale"])
    optimizer_cost.LoRAPro([group], lr=0.1, formed=formed).step()
    # The damping of the pseudo-inverses remains.
    assert torch.allclose(A.detach(), before.A + 0.1 * dy.A, atol=1e-6)
    assert torch.allclose(B.detach(), before.B + 0.1 * dy.B, atol=1e-6)


def test_every_contender_steps_on_parameters_of_its_own():
    laps = optimizer_cost.measure((9, 7, 3), 2, torch.float64, 0.0)
    assert {"odelora", "odelora, careful", "adamw", "lora_pro, plain", "lora_pro, formed", "lora_adam"} <= laps.keys()
    assert all(len(times) == optimizer_cost.LEAST and min(times) > 0 for times in laps.values())


def test_the_benchmark_says_what_is_short():
    laps = {"odelora": [3.0, 6.0, 9.0], "adamw": [1.0, 2.0, 2.5], "lora_pro, plain": [2.0, 4.0, 6.0]}
    assert optimizer_cost.shortfalls("one layer", laps) == [
        "one layer: our step costs 1.50 times lora_pro, plain, above 1.3."
    ]
    laps["adamw"] = [0.9, 1.8, 2.5]
    assert len(optimizer_cost.shortfalls("one layer", laps)) == 2

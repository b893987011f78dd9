"""The rank where none is chosen."""

import pytest
from torch import nn

from pinn_odelora.config import build
from pinn_odelora.sampling.batch_size import below_the_peak
from pinn_odelora.selection import initial_rank as rows


def three(width):
    return {str(i): nn.Linear(width, width) for i in range(3)}


@pytest.mark.parametrize(
    ("width", "beside", "enough", "rank"),
    [
        (40, 41, 800, 8),  # 953 columns at rank 4, 1769 at rank 8
        (40, 41, 2520, 4),  # too many rows for both
        (40, 0, 865, 4),  # 1728 columns
        (64, 65, 800, 8),
        (128, 129, 800, 4),  # 3153 columns at rank 4
        (6, 0, 10, 4),  # 8 is no rank of such layers, and 4 rests
        (6, 0, 800, 4),
        (3, 0, 800, 3),  # 4 is no rank of such layers
    ],
)
def test_the_rank_is_the_smaller_one_that_lets_steps_rest(width, beside, enough, rank):
    assert rows.rank(three(width), beside, enough) == rank


@pytest.mark.parametrize(("problem", "rank"), [("burgers", 8), ("kovasznay", 4)])
def test_a_run_has_it_in_its_configuration(problem, rank, compose):
    cfg = compose(f"problem={problem}", "lora.rank=auto", "points.interior=4000", "points.boundary=200", "net.width=40")
    built = build.experiment(cfg)
    assert cfg.lora.rank == rank
    layers = build.layers(cfg, built.net, built.method.trains)
    assert {layer.rank for layer in layers.values()} == {rank}
    columns = sum(layer.rank * (2 * 40 - layer.rank) for layer in layers.values()) + 41
    assert below_the_peak(800, columns) == (problem == "burgers")


def test_methods_without_factors_have_no_use_for_it(compose):
    cfg = compose("method=full_adam", "lora.rank=auto")
    build.experiment(cfg)
    assert cfg.lora.rank == rows.RANKS[0]

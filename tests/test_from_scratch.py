"""The benchmark of adapting beside training from scratch: what it takes from its runs, and a short run of both ways."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import from_scratch as benchmark

from problems.poisson import Poisson

MARKS = [(0.1, 0.5), (1.0, 9e-5), (2.0, 8e-6), (4.0, 3e-7)]


def test_a_level_is_reached_when_the_error_is_first_there():
    assert benchmark.first(MARKS, 1e-4) == 1.0
    assert benchmark.first(MARKS, 1e-6) == 4.0
    assert benchmark.first(MARKS, 1e-7) is None


def test_medians_are_known_where_half_of_the_runs_came_there():
    assert benchmark.middle([3.0, None, 1.0]) == 3.0
    assert benchmark.middle([3.0, None, None]) is None


def test_the_table_has_both_ways_and_what_is_short():
    runs = {
        "heat/adapting/20": {"before": 2.5, "marks": MARKS},
        "heat/from scratch/20": {"marks": MARKS[:2]},
        f"{benchmark.LAST}/from scratch/20": {"marks": [*MARKS[:3], (121.0, 9e-7), (399.0, 9e-8)]},
    }
    table, said = benchmark.lines(benchmark.medians(runs), 60)
    head, _, heat, last = table.splitlines()
    assert head.startswith("| seconds | pretraining | to 1e-04: adapting / from scratch |")
    assert heat == "| heat | 2.5 | 1.0 / 1.0 | 2.0 / over 60 | 4.0 / over 60 |  |"
    assert last == f"| {benchmark.LAST} |  | 1.0 | 2.0 | 121.0 | 399.0 |"
    assert said == [f"{benchmark.LAST}: 1e-06 not within 120 s from scratch"]


@pytest.mark.parametrize("way", [benchmark.adapting, benchmark.scratch])
def test_a_run_ends_at_its_error_or_its_time(way):
    run = way(Poisson(), 0.3, 0, 20.0)
    assert run["marks"][-1][1] <= 0.3
    assert run["spent"] < 20
    assert (run.get("before", 0) > 0) == (way is benchmark.adapting)

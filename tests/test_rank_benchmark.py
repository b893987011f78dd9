"""The benchmark of the adaptive rank: its verdict against the best fixed rank."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import adaptive_rank


def made(rank, error, seed, case="heat", diverged=False):
    marks = [{"rel_l2": 1.0}, {"rel_l2": error}]
    return {"case": case, "rank": f"rank_{rank}", "seed": seed, "marks": marks, "diverged": diverged, "ranks": {"a": 3}}


def test_the_benchmark_holds_the_median_against_the_best_fixed_rank():
    fixed = [made(rank, error, seed) for rank, error in (("1", 9.0), ("2", 4.0), ("4", 2.0)) for seed in (0, 1, 2)]
    fixed += [made(rank, 0.1, seed, diverged=True) for rank in ("8", "16") for seed in (0, 1, 2)]
    adaptive = [made("adaptive", error, seed) for seed, error in enumerate((2.0, 3.2, 50.0))]
    found = adaptive_rank.verdict(fixed + adaptive, "heat", 3)
    assert found == ("heat", "4", 1.6, True)
    assert "1.60 short" in adaptive_rank.line(fixed + adaptive, found)
    assert not adaptive_rank.verdict(fixed + adaptive[:2], "heat", 3).complete
    assert math.isnan(adaptive_rank.verdict(fixed, "heat", 3).ratio)

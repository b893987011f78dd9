"""The benchmark of PINA's problems: references, both sides on one problem, and its verdict."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import pina_cases as cases
import pina_problems as benchmark

pytestmark = pytest.mark.filterwarnings("ignore")
pytest.importorskip("pina")


def test_references_of_our_own_solve_their_equations():
    rows = torch.tensor([[0.3, -0.7], [1.5, 0.2], [-1.9, 1.1]], dtype=torch.float64)
    h = 1e-3
    moves = h * torch.eye(2, dtype=torch.float64)
    u = cases.poisson_reference
    laplacian = sum(u(rows + m) + u(rows - m) - 2 * u(rows) for m in moves) / h**2
    source = torch.exp(-2 * ((rows - 0.5) ** 2).sum(dim=1, keepdim=True))
    assert torch.allclose(laplacian, source, atol=3e-4)  # the sine series of a source that is not zero at the boundary
    assert torch.allclose(u(rows), u(rows, n=300), atol=1e-6)
    assert u(torch.tensor([[2.0, 0.3], [0.1, -2.0]])).abs().max() < 1e-10
    rows, moves = torch.rand(4, 3, dtype=torch.float64), h * torch.eye(3, dtype=torch.float64)
    second = [cases.wave(rows + m) + cases.wave(rows - m) - 2 * cases.wave(rows) for m in moves]
    assert torch.allclose(second[2], second[0] + second[1], atol=1e-9)


@pytest.mark.slow
def test_both_sides_solve_a_problem_with_and_without_unknowns():
    supervised = benchmark.CASES["SupervisedProblem"]
    for side in (benchmark.ours, benchmark.theirs):
        found = side(supervised, 0.3)
        assert found["error"] < 2.0
        assert found["found"] == {}
    inverse = benchmark.measured("InversePoisson2DSquareProblem", 0.3)
    assert inverse["outcome"] == "runs"
    assert {*inverse["ours"]["found"]} == {*inverse["theirs"]["found"]} == {"mu1", "mu2"}


def test_what_is_missed_is_said():
    side = lambda error, **found: {"error": error, "found": found, "steps": 7, "seconds": 1.0}
    good = {"outcome": "runs", "ours": side(1e-3), "theirs": side(1e-2)}
    runs = dict.fromkeys(benchmark.CASES, good)
    assert benchmark.short(runs) == []
    runs |= {
        "BurgersProblem": good | {"theirs": side(1e-4)},
        benchmark.INVERSE[1]: {"outcome": "failed", "said": "why"},
    }
    runs |= {name: {"outcome": "refused", "said": "no"} for name in [*benchmark.CASES][4:7]}
    assert [line.split(":")[0] for line in benchmark.short(runs)] == [
        "6 entries of the zoo run, not 7",
        "tutorial 3, unknown speed",
        "BurgersProblem",
    ]
    runs["InversePoisson2DSquareProblem"] = good | {"ours": side(1e-3, mu1=0.5, mu2=0.499)}
    assert "| mu1 0.5, mu2 0.499 |  | mu1 0.5, mu2 0.5 |" in benchmark.markdown(runs)

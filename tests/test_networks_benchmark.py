"""The benchmark of networks compares networks of about one size, and sums up its runs rightly."""

import sys
from pathlib import Path

import pytest

from pinn_odelora import nets

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import networks


def run(network, case, error, seed=0):
    shape = {"numbers": 5081, "width": 40, "layers": 3, "rank": 4, "engine": "jets", "before": 0.17, "steps": 50}
    return shape | {"network": network, "case": case, "seed": seed, "seconds": 10.0, "rel_l2": error}


RUNS = [
    *(run("mlp", "burgers", error, seed) for seed, error in enumerate((1e-5, 4e-5))),
    *(run("kan", "burgers", error, seed) for seed, error in enumerate((4e-5, 1.6e-4))),
    run("siren", "burgers", 2e-5),
    run("siren", "kovasznay", 2e-5),
]


@pytest.mark.parametrize("case", networks.CASES)
def test_networks_have_about_as_many_numbers(case):
    problem = networks.CASES[case].target()
    wanted = networks.numbers(nets.MLP(problem.inputs, len(problem.fields)))
    for name in networks.NETWORKS:
        net = networks.sized(name, problem)
        assert type(net) is networks.NETWORKS[name]
        assert abs(networks.numbers(net) / wanted - 1) < 0.1, name
    assert networks.CASES[case].source() == problem.at_source() != problem


def test_ratios_are_those_of_geometric_means_and_misses_need_a_reason(monkeypatch):
    found = {("mlp", "burgers"): 1, ("kan", "burgers"): 4, ("siren", "burgers"): 1}
    assert networks.ratios(RUNS) == pytest.approx(found)
    monkeypatch.setattr(networks, "REASONS", {})
    assert networks.verdict(RUNS) == ["kan on burgers: 4.0 times the MLP"]
    monkeypatch.setitem(networks.REASONS, ("kan", "burgers"), "its functions are few")
    assert networks.verdict(RUNS) == []
    monkeypatch.setitem(networks.REASONS, ("siren", "burgers"), "none")
    assert networks.verdict(RUNS) == ["siren on burgers: a reason, but no need"]
    assert "\n\n* kan on burgers: its functions are few" in networks.markdown(RUNS)


def test_the_table_of_a_page_is_renewed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{networks.START}\n\nold\n\n{networks.END}\n\nafter\n", encoding="utf-8")
    for _ in range(2):
        networks.renew(page, RUNS)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter\n")
    assert text.count("| kan | burgers | 5081 | 40 | 3 | 4 | jets | 1.7e-01 | 8.0e-05 | 4.00 | 50 | 200 |") == 1
    assert "old" not in text

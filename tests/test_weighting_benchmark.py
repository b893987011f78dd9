"""The benchmark of loss weights solves what it says, and sums up its runs rightly."""

import sys
from pathlib import Path

import pytest
import torch

import pinn_odelora as po
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.geometry import sobol

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import loss_weights


@pytest.mark.parametrize("name", loss_weights.CASES)
def test_the_reference_of_every_case_makes_all_its_terms_vanish(name):
    source, target = (make() for make in loss_weights.CASES[name])
    for problem in (source, target):
        assert problem.conditions == "soft"
        assert len(problem.loss_terms()) > 1
        assert all(term.weight == 1 for term in problem.loss_terms().values())
        for key, term in problem.loss_terms().items():
            p = term.where.sample(20, lambda n, d: sobol(n, d, seed=1))
            field = AutogradField(problem.reference, p, problem.fields, problem.coords)
            assert float(term.rows(field).detach().abs().max()) < 1e-7, key
    assert source != target


def test_a_run_of_every_method_and_weighting_has_an_error(monkeypatch):
    net = po.MLP(2, 1, width=8, depth=3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(loss_weights, "network", lambda name: net)
    for method in loss_weights.METHODS:
        for weighting in loss_weights.WEIGHTINGS:
            found = loss_weights.adapted("burgers", method, weighting, 0, 0.05)
            assert 0 < found["rel_l2"] < 10
            assert found["steps"] >= 1
            assert (found["multipliers"] == {}) == (weighting == "fixed")


def runs(errors):
    """(method, case, weighting, errors by seed)."""
    return [
        {"method": m, "case": c, "weighting": w, "seed": seed, "rel_l2": x}
        for m, c, w, found in errors
        for seed, x in enumerate(found)
    ]


def test_errors_are_geometric_means_and_predictions_are_counted_by_case():
    given = runs(
        [
            ("odelora", "burgers", "fixed", [1e-4, 4e-4]),
            ("odelora", "burgers", "ntk", [3e-4, 3e-4]),
            ("odelora", "burgers", "gradnorm", [1e-4, 1e-4]),
            ("odelora", "helmholtz", "fixed", [1e-4]),
            ("odelora", "helmholtz", "ntk", [5e-4]),
            ("odelora", "helmholtz", "gradnorm", [2e-4]),
            ("lora_adam", "helmholtz", "fixed", [1e-1]),
            ("lora_adam", "helmholtz", "ntk", [2e-2]),
            ("lora_adam", "helmholtz", "gradnorm", [4e-4]),
        ]
    )
    errors = loss_weights.summed(given)
    assert errors["odelora", "burgers"] == pytest.approx({"fixed": 2e-4, "ntk": 3e-4, "gradnorm": 1e-4})
    assert [*loss_weights.predictions(errors).values()] == [(1, 2), (1, 2), (1, 1), (1, 1), (0, 1), (0, 1)]

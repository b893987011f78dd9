"""The experiments on the linearised regime: their constructions, their flows, and that their quick forms hold."""

import functools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import linalg
from torch.func import grad

sys.path.insert(0, str(Path(__file__).parents[1] / "studies/ntk"))
import existence
import experiment
import generalisation
import magnitude
import measured
import minima
import misalignment

import pinn_odelora as po
from pinn_odelora.integrators import RungeKutta
from pinn_odelora.integrators.tableau import EULER
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.methods import lora_gd, odelora
from pinn_odelora.ntk import nuclear_norm_solution, optimality, ranks, train

ALL = (existence, minima, generalisation, magnitude, misalignment)


@functools.cache
def quick(module):
    """The records of the quick form, once for all tests."""
    made = module.EXPERIMENT
    return tuple({k: experiment.rounded(v) for k, v in r.items()} for r in made.measure(made.plans[1]))


# The flows of many pairs at once are those of the package.


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("kind", ["lora_gd", "odelora"])
def test_flows_of_many_pairs_are_those_of_the_loop(kind, decay):
    model = measured.gaussian(7, 6, 9, seed=3)
    y = measured.pairs(7, 6, 2, 3, 0.7, seed=5)
    h, steps = 0.1, 6
    if kind == "odelora":
        end = measured.product_steps(model, y, decay, h, steps)
        method = odelora(RungeKutta(EULER, h=h), chart="manifold")
    else:
        end = Factors(*measured.followed(measured.descent(model, decay), y, h, steps, EULER))
        method = lora_gd(RungeKutta(EULER, h=h))
    for k in range(3):
        start = {"W": Factors(y.A[k], y.B[k])}
        run = train(model, method, start=start, decay=decay, budget=po.Budget(steps=steps)).finish()
        assert torch.allclose(run.delta()["W"], end.B[k] @ end.A[k], atol=1e-12)
        assert float(measured.value(model, end, decay)[k]) == pytest.approx(run.regularised(), rel=1e-11)


def test_the_descent_is_along_the_gradient_of_the_value():
    model = measured.gaussian(7, 6, 9, seed=3)
    y = measured.pairs(7, 6, 2, 3, 0.7, seed=5)
    y = Factors(*(x.requires_grad_() for x in y))
    expected = torch.autograd.grad(measured.value(model, y, 0.05).sum(), [*y])
    for found, g in zip(measured.descent(model, 0.05)([*y]), expected, strict=True):
        assert torch.allclose(found, -g, atol=1e-13)


# Constructions.


def test_repeated_features_have_minimisers_of_every_rank():
    model = measured.repeated(12, 3, 3, seed=1)
    weight = 0.3 * model.largest_weight()
    X = nuclear_norm_solution(model, weight, tolerance=1e-9).delta["W"]
    # One of the copies instead of all three, three times as large.
    E = torch.zeros(3, 3).double()
    E[0, 0] = 3
    d = X.unflatten(0, (4, 3)).unflatten(2, (4, 3))[:, 0, :, 0]
    other = {"W": torch.kron(d, E)}
    assert float(model.penalised(other, weight)) == pytest.approx(float(model.penalised({"W": X}, weight)), rel=1e-8)
    assert ranks({"W": X}, 1e-6)["W"] == 3 * ranks(other, 1e-6)["W"]


@pytest.mark.parametrize("q", [1, 2])
def test_flipped_signs_are_strict_minima_of_the_trap_and_not_the_best(q):
    model = minima.trap(q)
    n = 2 * q
    root = torch.zeros(n, q).double()
    for k in range(q):
        root[2 * k : 2 * k + 2, k] = torch.tensor([1.0, -(0.9**0.5)]).double() * (1 + 0.1 * k) ** 0.5
    x = torch.cat([root.mT.flatten(), root.flatten()])
    end, facts = minima.stationary(model, q, minima.LIGHT, x)
    assert facts["gradient"] < 1e-7
    assert facts["curvature"] > -1e-9
    # The flipped signs are still there: the off-diagonal entries are negative.
    X = end[q * n :].view(n, q) @ end[: q * n].view(q, n)
    assert all(float(X[2 * k, 2 * k + 1]) < -0.5 for k in range(q))
    _, best = minima.stationary(model, q, minima.LIGHT, torch.cat([root.abs().mT.flatten(), root.abs().flatten()]))
    assert facts["value"] - best["value"] > 0.02
    # Only the gauge group O(r) (and, with it, the scale of A against B) leaves the objective as it is.
    H = measured.hessian(minima.objective(model, q, minima.LIGHT))(end)
    flat = int((linalg.eigvalsh(H).abs() < 1e-7).sum())
    assert flat == q * (q - 1) // 2


def test_the_trap_of_high_rank_is_one_and_decay_undoes_it_where_it_was_computed():
    model, X0, target = magnitude.trap()
    r = magnitude.R
    G = model.gradient({"W": X0})["W"]
    assert torch.allclose(G, -magnitude.PULL * target, atol=1e-12)
    assert float(model.value({"W": target})) == pytest.approx(0, abs=1e-20)
    H = model.groups[0].blocks["W"].J.flatten(1)
    assert float(linalg.eigvalsh(H.mT @ H)[-1] / linalg.eigvalsh(H.mT @ H)[0]) == pytest.approx(194, rel=0.01)
    U, sigma, Vh = linalg.svd(X0)
    assert torch.allclose(sigma[:r], torch.full((r,), magnitude.C).double())

    def least(decay):
        """The smallest eigenvalue at the trap that is moved to σ = c − λ."""
        root = math.sqrt(magnitude.C - decay)
        x = torch.cat([(root * Vh[:r]).flatten(), (root * U[:, :r]).flatten()])
        F = minima.objective(model, r, decay)
        assert float(grad(F)(x).norm()) < 1e-10
        return float(linalg.eigvalsh(measured.hessian(F)(x))[0])

    assert least(0.9 * magnitude.CRITICAL) > -1e-9
    assert least(1.1 * magnitude.CRITICAL) < -1e-3


def test_the_true_model_is_the_best_one_of_the_data():
    delta = generalisation.truth("logistic", 3)
    model = generalisation.sample("logistic", 4000, delta, 7)
    assert float(linalg.svdvals(delta).sum()) == pytest.approx(30)
    assert float(linalg.matrix_norm(model.gradient({"W": delta})["W"])) < 0.02
    noisy = generalisation.sample("squared", 4000, delta, 7)
    assert float(noisy.value({"W": delta})) == pytest.approx(generalisation.NOISE**2 / 2, rel=0.1)


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_the_penalised_full_solution_is_stationary(loss):
    model = generalisation.sample(loss, 60, generalisation.truth(loss, 3), 7)
    X = generalisation.ridge(model, 0.02)
    assert float((model.gradient({"W": X})["W"] + 0.02 * X).norm()) < 1e-9


def test_balanced_starts_have_the_product_of_the_others():
    plain = misalignment.start(8, 8, 3, 0.1, 4, 2, balanced=False)
    balanced = misalignment.start(8, 8, 3, 0.1, 4, 2, balanced=True)
    assert torch.allclose(plain.B @ plain.A, balanced.B @ balanced.A, atol=1e-14)
    assert torch.allclose(balanced.B.mT @ balanced.B, balanced.A @ balanced.A.mT, atol=1e-14)
    assert not torch.allclose(plain.B.mT @ plain.B, plain.A @ plain.A.mT, atol=1e-3)


def test_the_flow_of_two_layers_is_the_gradient_of_its_loss():
    W1, W2, Y = (measured.normal(*size, seed=k) for k, size in enumerate([(4, 8), (8, 4), (8, 8)]))
    velocity, error = misalignment.two_layers(W1, W2, Y, misalignment.plain)
    y = [x.requires_grad_() for x in (*measured.pairs(4, 8, 1, 2, 0.3, 5), *measured.pairs(8, 4, 1, 2, 0.3, 7))]
    expected = torch.autograd.grad((error(y).square() / 2).sum(), y)
    for found, g in zip(velocity(y), expected, strict=True):
        assert torch.allclose(found, -g, atol=1e-12)


# The quick forms.


@pytest.mark.slow
@pytest.mark.parametrize("module", ALL, ids=lambda m: m.__name__)
def test_the_quick_form_holds(module):
    found = module.EXPERIMENT.statements(list(quick(module)))
    assert [s.said for s in found if not s.holds] == []
    assert {s.claim for s in found} == {*module.EXPERIMENT.claims}


def changed(module, change, **facts):
    """The records with those of these facts changed."""
    hit = lambda r: all(r.get(k) == v for k, v in facts.items())
    return [r | change(r) if hit(r) else r for r in quick(module)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "facts", "change", "claim"),
    [
        (existence, {"section": "repeated"}, lambda r: {"count_after": r["rows"] + 1}, "existence"),
        (existence, {"section": "equation"}, lambda r: {"changed": 1e-3}, "existence"),
        (existence, {}, lambda r: {"gap": 1e-3}, "existence"),
        (existence, {"section": "gaussian"}, lambda r: {"reductions": 1}, "unique"),
        (minima, {"section": "gaussian", "r": 5}, lambda r: {"excess": 1e-3}, "above"),
        (minima, {"section": "gaussian"}, lambda r: {"curvature": -1e-2}, "above"),
        (minima, {"section": "trap"}, lambda r: {"excess": 0.0}, "below"),
        (minima, {"section": "padded"}, lambda r: {"excess": 0.1}, "padded"),
        (minima, {"flow": "odelora", "part": 0.1}, lambda r: {"median": 1e-9}, "flows"),
        (generalisation, {"section": "squared", "number": 480}, lambda r: {"excess": 0.3}, "rate"),
        (generalisation, {"kind": "low rank"}, lambda r: {"excess": 10.0}, "bound"),
        (generalisation, {"kind": "ridge"}, lambda r: {"excess": 1e-3}, "better"),
        (generalisation, {"section": "network", "kind": "low rank"}, lambda r: {"error": 0.5}, "network"),
        (magnitude, {"start": "zero", "section": "quadratic"}, lambda r: {"rank": 3, "norm": 3.0}, "small"),
        (magnitude, {"start": "near the trap"}, lambda r: {"norm": 1.0}, "loud"),
        (magnitude, {"start": "near the trap"}, lambda r: {"excess": 1.0}, "decay"),
        (magnitude, {"section": "equation"}, lambda r: {"norm": 1.0}, "equation"),
        (misalignment, {"section": "scale", "start": "random"}, lambda r: {"error": 1e-3}, "scale"),
        (misalignment, {"section": "angle"}, lambda r: {"error": 0.1}, "angle"),
        (misalignment, {"section": "layers", "theta": 90.0}, lambda r: {"error": 0.0}, "layers"),
        (misalignment, {"start": "spectral"}, lambda r: {"error": 0.1}, "spectral"),
    ],
)
def test_a_wrong_record_is_noticed(module, facts, change, claim):
    found = module.EXPERIMENT.statements(changed(module, change, **facts))
    assert experiment.verdict(claim, found) == "not confirmed"


@pytest.mark.slow
@pytest.mark.parametrize("module", ALL, ids=lambda m: m.__name__)
def test_the_page_is_made_of_what_was_kept(module, tmp_path, monkeypatch):
    made = module.EXPERIMENT._replace(measure=lambda plan: list(quick(module)))
    assert experiment.main(made, ["--quick", "--results", str(tmp_path)]) == 0
    page = (tmp_path / f"{made.name}.md").read_text(encoding="utf-8")
    assert (tmp_path / f"{made.name}.png").stat().st_size > 10_000
    for claim in made.claims.values():
        assert f"| {claim} | confirmed |" in page.replace("\\|", "|")
    assert experiment.main(made._replace(measure=None), ["--report", "--results", str(tmp_path)]) == 0
    assert (tmp_path / f"{made.name}.md").read_text(encoding="utf-8") == page
    broken = made._replace(statements=lambda records: [s._replace(holds=False) for s in made.statements(records)])
    assert experiment.main(broken, ["--quick"]) == 1


def test_a_low_rank_solution_of_the_data_is_a_minimiser():
    model = generalisation.sample("logistic", 120, generalisation.truth("logistic", 3), 7)
    found = nuclear_norm_solution(model, 0.02, tolerance=1e-6)
    assert optimality(model, found.delta, 0.02) <= 1e-6
    assert found.gap < 1e-7

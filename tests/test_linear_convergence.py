"""The study of linear convergence: how rates are read, what theory says, and that a short form of it holds."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import linalg

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
import linear_convergence as command
from convergence import rates, results, sections, setups, starts, theory, verdicts
from convergence.running import run
from convergence.setups import CONTENDERS, RANK, Setup, enter

from pinn_odelora import Budget, loop

SETUPS = [Setup(problem=p, condition=k, seed=4) for p in ("sensing", "regression") for k in (1.0, 30.0)]
on_setups = pytest.mark.parametrize("setup", SETUPS, ids=lambda s: f"{s.problem} {s.condition:g}")

# How a rate is read.


def test_the_rate_is_that_of_the_linear_part():
    """0.9 before the directions are found, 0.7 after, then rounding."""
    errors = [max(0.9**n, 1e-15) for n in range(40)] + [max(0.9**40 * 0.7**n, 3e-14) for n in range(120)]
    found = rates.fitted(errors, 0.1)
    assert found.slope == pytest.approx(-math.log(0.7), rel=1e-9)
    assert found.explained == pytest.approx(1)
    part = rates.linear_part(errors, 0.1)
    assert errors[part[0]] < 1e-2
    assert errors[part[-1]] > rates.FLOOR


def test_where_nothing_is_linear_there_is_no_rate():
    assert rates.fitted([1.0] * 100, 1.0) is None
    assert rates.fitted([10.0**-n for n in range(14)], 1.0) is None


def test_a_power_of_the_steps_is_no_line():
    errors = [1e-2 / (n + 1) for n in range(4000)]
    assert rates.power(errors) == pytest.approx(-1, abs=1e-3)
    assert rates.fitted(errors, 1.0).explained < verdicts.STRAIGHT


def test_intervals_are_those_of_student():
    """t_{0.975} of 4 degrees of freedom is 2.776."""
    found = rates.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3
    assert found.half == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
    assert rates.interval([1.0]).half == math.inf


def test_exponents_are_slopes_in_logarithms_seed_by_seed():
    table = {seed: {x: seed * x**p for x in (1.0, 10.0, 100.0)} for seed, p in ((1, -1.0), (2, -0.8), (3, -0.9))}
    assert rates.exponent(table).mean == pytest.approx(-0.9)
    assert rates.exponent(table).half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)


# Theory, against one step of the method itself.


@on_setups
@pytest.mark.parametrize("name", ["euler", "euler_manifold", "rk4", "rk4_manifold", "implicit", "lora_gd", "scaled_gd"])
@pytest.mark.parametrize("end", ["slowest", "fastest"])
def test_a_step_multiplies_an_eigenvector_as_theory_says(end, name, setup):
    """From W* + εD the first order of a step is D ↦ R(−hλ) D, at both ends of the spectrum."""
    contender, h = CONTENDERS[name], 0.07
    modes = theory.modes(setup, contender.spectrum)
    D, value = (modes.slowest, modes.eigenvalues[0]) if end == "slowest" else (modes.fastest, modes.eigenvalues[-1])
    W = setup.posed().matrix
    W0 = starts.truncated(W + 1e-6 * float(linalg.svdvals(W)[RANK - 1]) * D, RANK)
    layer, training = enter(setup, contender.method(h), W0)
    next(loop.steps(training, Budget(steps=1)))
    expected = contender.factor(-h * value) * (W0 - W)
    assert float((layer.weight.detach() - W - expected).norm()) < 1e-4 * float((W0 - W).norm())


@pytest.mark.parametrize("problem", ["sensing", "regression"])
def test_spectra_of_flow_and_scaled_gradients_do_not_see_the_singular_values(problem):
    at = lambda k, spectrum: theory.modes(Setup(problem=problem, condition=k, seed=5), spectrum).eigenvalues
    for spectrum in ("flow", "scaled"):
        assert torch.allclose(at(1.0, spectrum), at(1e4, spectrum), rtol=1e-9)
    assert float(at(1e2, "factors")[0] / at(1e4, "factors")[0]) == pytest.approx(100, rel=0.02)
    # With W* = U V both factors are orthonormal, and dividing by their Gram matrices does nothing.
    assert torch.allclose(at(1.0, "scaled"), at(1.0, "factors"), rtol=1e-9)


def test_the_spectrum_of_sensing_is_about_that_of_marchenko_and_pastur():
    low, high = theory.marchenko_pastur()
    ends = [theory.modes(Setup(seed=seed), "flow").eigenvalues[[0, -1]] for seed in range(1, 9)]
    mean = torch.stack(ends).mean(dim=0)
    assert float(mean[0]) == pytest.approx(low, rel=0.25)
    assert float(mean[1]) == pytest.approx(high, rel=0.1)


def test_the_best_step_of_euler_is_the_best():
    eigenvalues = torch.tensor([0.4, 1.0, 5.0], dtype=torch.float64)
    tried = [theory.rate(eigenvalues, CONTENDERS["euler"], h / 1000) for h in range(1, 400)]
    assert theory.best_rate(eigenvalues) == pytest.approx(max(tried), rel=5e-3)


# Starts.


@pytest.mark.parametrize("excess", [0, 1])
def test_starts_have_the_rank_of_the_factors_and_are_carried_by_them(excess):
    setup, contender = Setup(condition=10.0, excess=excess), CONTENDERS["euler"]
    for start in ("near", *starts.STARTS, 1e-2):
        W0 = starts.source(setup, start, contender)
        sigma = linalg.svdvals(W0)
        assert float(sigma[RANK + excess - 1]) > 1e-9
        assert float(sigma[RANK + excess]) < 1e-12
        layer = enter(setup, contender.method(0.1), W0).layer
        assert torch.allclose(layer.scale * layer.B @ layer.A, W0, atol=1e-14)
        if start not in ("near", "spectral"):
            assert torch.allclose(sigma[: RANK + excess], sigma[:1].expand(RANK + excess))


def test_the_spectral_start_of_sensing_is_the_back_projection():
    setup = Setup(condition=3.0)
    p = setup.posed().measured()
    M = p.rows(setup.posed().coords).unflatten(1, (setups.ROWS, setups.COLUMNS))
    expected = (p.b[:, :, None] * M).sum(dim=0) / len(M)
    assert torch.allclose(starts.back_projection(setup), expected, rtol=0.05, atol=0.02)
    assert (
        float(torch.cosine_similarity(starts.back_projection(setup).flatten(), expected.flatten(), dim=0)) > 1 - 1e-12
    )


# The study, in a form shorter than its quick one.

SHORT = replace(
    sections.QUICK,
    seeds=(1, 2),
    contenders=("euler", "implicit", "lora_gd"),
    slow_evaluations=250,
    time_evaluations=120,
    far_sweep_evaluations=120,
    start_contenders=("euler_manifold", "lora_gd"),
    excess_evaluations=700,
    sizes=(1e-3, 1e-5),
    peak_contenders=("euler", "euler_manifold"),
    peak_evaluations=12,
)


@pytest.fixture(scope="module")
def short():
    return results.Results(record for section in sections.SECTIONS.values() for record in section(SHORT))


def exponent_of(short, **facts):
    return short.where(**facts).going.exponent("condition").mean


@pytest.mark.slow
def test_the_flow_has_the_rate_of_theory_whatever_the_condition(short):
    flows = short.where(section="local", contender=("euler", "implicit"))
    assert len(flows.going) == len(flows) == 16
    assert results.largest_deviation(flows.ratios()) < 0.05
    assert min(r["explained"] for r in flows) > verdicts.STRAIGHT
    for name in ("euler", "implicit"):
        for problem in SHORT.problems:
            assert abs(exponent_of(short, section="local", contender=name, problem=problem)) < 0.01


@pytest.mark.slow
def test_in_flow_time_all_schemes_have_the_slowest_eigenvalue(short):
    for r in short.where(section="time", contender="rk4"):
        assert r["rate"] / r["h"] == pytest.approx(r["slowest"], rel=5e-3)
    for r in short.where(section="time", contender=("euler", "implicit")):
        assert r["rate"] / r["h"] == pytest.approx(r["slowest"], rel=0.05)


@pytest.mark.slow
def test_gradient_descent_pays_for_the_condition(short):
    for problem in SHORT.problems:
        assert -1.1 < exponent_of(short, section="local", contender="lora_gd", problem=problem) < -0.9
    assert all(r["to_target"] is None for r in short.where(section="starts", contender="lora_gd"))


@pytest.mark.slow
def test_an_explicit_scheme_pays_for_the_curvature_of_the_objective_and_an_implicit_one_does_not(short):
    at = lambda name: short.where(section="curvature", contender=name).going.exponent("curvature").mean
    assert at("euler") < -0.6
    assert at("implicit") > 0


@pytest.mark.slow
def test_with_a_rank_too_many_the_flow_stays_linear_and_gradient_descent_does_not(short):
    there = short.where(section="excess")
    assert min(r["explained"] for r in there.where(contender="euler")) > verdicts.STRAIGHT
    assert all(r["last"] <= 1e-12 for r in there.where(contender="euler"))
    gentle = there.where(contender="lora_gd", h=sections.GENTLE)
    assert all(-1.5 < r["power"] < -0.6 for r in gentle)
    assert all(r["last"] > 1e-3 for r in gentle)


@pytest.mark.slow
def test_euler_in_the_factors_overshoots_from_small_starts_and_on_the_manifold_not(short):
    at = lambda name: short.where(section="peak", contender=name).exponent("start", lambda r: r["peak"]).mean
    assert at("euler") == pytest.approx(-1, abs=0.05)
    assert at("euler_manifold") == pytest.approx(0, abs=0.01)


@pytest.mark.slow
def test_every_statement_holds_on_the_short_form(short):
    found = verdicts.statements(short)
    assert {s.claim for s in found} >= {"sensing", "regression", "condition", "gradient descent", "excess", "tiny"}
    assert [s for s in found if not s.holds] == []


def worse(short, section, contender, change):
    """The records with those of one contender in one section changed."""
    hit = lambda r: r["section"] == section and r["contender"] == contender
    return results.Results(r | change(r) if hit(r) else r for r in short)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "contender", "change", "claim"),
    [
        ("local", "euler", lambda r: {"rate": r["rate"] * r["condition"] ** -0.05}, "condition"),
        ("local", "euler", lambda r: {"rate": 1.1 * r["rate"]}, "sensing"),
        ("local", "implicit", lambda r: {"failure": "lost"}, "regression"),
        ("local", "lora_gd", lambda r: {"rate": r["rate"] * r["condition"] ** 0.5}, "gradient descent"),
        ("time", "rk4", lambda r: {"rate": 1.1 * r["rate"]}, "condition"),
        ("curvature", "euler", lambda r: {"rate": r["rate"] * r["curvature"]}, "regression"),
        ("starts", "euler_manifold", lambda r: {"to_target": None}, "starts"),
        ("excess", "euler", lambda r: {"explained": 0.9}, "excess"),
        ("excess", "lora_gd", lambda r: {"power": -5.0}, "excess"),
        ("peak", "euler_manifold", lambda r: {"peak": 1 / r["start"]}, "tiny"),
    ],
)
def test_a_wrong_record_is_noticed(section, contender, change, claim, short):
    found = verdicts.statements(worse(short, section, contender, change))
    assert verdicts.verdict(claim, found) == "not confirmed"


@pytest.mark.slow
def test_the_report_is_made_of_what_was_kept(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "measured", lambda plan: (short.records, {"all": 1.0}))
    assert command.main(["--quick", "--results", str(tmp_path)]) == 0
    page = (tmp_path / "linear_convergence.md").read_text()
    assert (tmp_path / "linear_convergence.png").stat().st_size > 10_000
    assert "| Gradient descent's rate does | confirmed |" in page
    assert command.main(["--report", "--results", str(tmp_path)]) == 0
    again = (tmp_path / "linear_convergence.md").read_text()
    assert again == page
    broken = worse(short, "local", "euler", lambda r: {"rate": 2 * r["rate"]})
    monkeypatch.setattr(command, "measured", lambda plan: (broken.records, {"all": 1.0}))
    assert command.main(["--quick"]) == 1
    assert "every discretisation of the flow converges" in capsys.readouterr().out


def test_a_run_stops_at_its_target_and_counts_every_gradient():
    path = run(Setup(), "near", CONTENDERS["rk4"], 0.4, evaluations=48)
    assert path.evaluations == [4 * n for n in range(13)]
    path = run(Setup(), "near", CONTENDERS["euler"], 0.28, evaluations=300, until=1e-4)
    assert path.errors[-1] <= 1e-4 < path.errors[-2]
    assert path.reached(1e-4) == path.evaluations[-1]
    assert path.reached(1e-9) is None
    assert run(Setup(), "near", CONTENDERS["lora_gd"], 2.0, evaluations=300).failure == "lost"


@pytest.mark.slow
def test_the_quick_form_holds():
    assert command.main(["--quick"]) == 0

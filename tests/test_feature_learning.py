"""The study of feature learning: exponents as counted, runs of what they are said to be, verdicts that follow."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
import feature_learning as command
from features import network, plan, report, running
from features.contenders import BASE, CONTENDERS, SWEPT
from features.network import PARAMETRISATIONS, RANK, ThinLinear, task
from features.plan import Form, best_steps
from features.predictions import predicted, size_exponent
from features.running import Case, flow, steps
from features.slopes import Slope, slope, state
from features.transfer import climbed, scanned
from features.verdict import cells, claims, sizes, transfers

from pinn_odelora.lowrank.layer import LowRankLinear, adapters

WIDTHS, SEEDS = (64, 128, 256, 512), range(6)
# LoRA+ from the other start has a test of its own: the part of A is not seen at these widths.
EVERY = [
    (name, start)
    for name, c in CONTENDERS.items()
    for start in c.starts
    if start != "pissa" and (name, start) != ("lora_plus", "orthonormal")
]


def exponents(method, start, parametrisation, eta, k=1, widths=WIDTHS, seeds=SEEDS):
    looks = [(n, steps(Case(method, start, parametrisation, n, s), eta, (k,))[0]) for n in widths for s in seeds]
    return [slope([n for n, _ in looks], [getattr(x, q) for _, x in looks]) for q in ("features", "outputs")]


# The predicted exponents.


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize(("method", "start"), EVERY)
def test_one_small_step_has_the_exponents_that_counting_gives(method, start, parametrisation):
    found = exponents(method, start, parametrisation, CONTENDERS[method].small[parametrisation])
    for x, guess in zip(found, predicted(method, start, parametrisation).first, strict=True):
        assert x.low - 0.15 < guess < x.high + 0.15, (x, guess)
        assert x.high - x.low < 0.7


def test_the_part_of_a_shows_in_lora_plus_where_the_ratio_does_not_hide_it(monkeypatch):
    """With ratio 1 the exponent of Adam, ½; with 16 the part of B is still the larger one at these widths."""
    hidden, _ = exponents("lora_plus", "orthonormal", "standard", 1e-6)
    monkeypatch.setattr("features.contenders.RATIO", 1.0)
    shown, _ = exponents("lora_plus", "orthonormal", "standard", 1e-6)
    assert shown.agrees(0.5, 0.5)
    assert hidden.high < 0.35


@pytest.mark.parametrize("method", CONTENDERS)
def test_a_small_step_depends_on_the_size_of_the_start_as_predicted(method):
    sizes = (0.5, 2.0)
    case = Case(method, "orthonormal", "mean-field", 256, 3)
    looks = [steps(case, CONTENDERS[method].small["mean-field"], (1,), size)[0] for size in sizes]
    for quantity in ("features", "outputs"):
        ratio = getattr(looks[1], quantity) / getattr(looks[0], quantity)
        assert math.log(ratio, sizes[1] / sizes[0]) == pytest.approx(size_exponent(method), abs=0.02)


@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS)
@pytest.mark.parametrize(("method", "start"), [("odelora", "orthonormal"), ("odelora", "aligned"), ("lora_gd", "zero")])
def test_a_flow_that_has_fitted_has_moved_features_as_counted(method, start, parametrisation):
    time = plan.TIMES[parametrisation][-1]
    looks = [(n, flow(Case(method, start, parametrisation, n, s), time)) for n in (64, 512) for s in (0, 1)]
    assert all(x.loss < 0.2 for _, x in looks)
    for quantity in ("features", "outputs"):
        found = slope([n for n, _ in looks], [getattr(x, quantity) for _, x in looks])
        guess = getattr(predicted(method, start, parametrisation).fitted, quantity)
        assert found.value == pytest.approx(guess, abs=0.2)


def test_the_product_of_two_motions_takes_over_from_the_first_order():
    """Adam from B = 0 with steps so large that ΔB ΔA h, of exponent 1, is most of what ten steps change."""
    small, _ = exponents("lora_adam", "zero", "mean-field", 1e-6, k=10, seeds=(0, 1))
    large, _ = exponents("lora_adam", "zero", "mean-field", 3e-3, k=10, widths=(64, 128, 256), seeds=(0, 1))
    assert small.value < 0.3
    assert large.value > 0.6


# The pieces.


@pytest.mark.parametrize("start", network.STARTS)
def test_a_network_computes_what_it_did_before_it_was_adapted(start):
    made = task(32, "standard", start, seed=2)
    assert made.changes() == pytest.approx((0.0, 0.0), abs=1e-14)
    assert made.value() == pytest.approx(float(torch.sin(2 * made.x[:, 0] - made.x[:, 1]).square().mean()))
    assert [*adapters(made.net)] == ["linears.1", "linears.2"]


def test_thin_products_are_the_layer_itself(generator):
    made = task(24, "mean-field", "orthonormal", seed=5)
    for layer in adapters(made.net).values():
        with torch.no_grad():
            layer.A.add_(torch.randn(layer.A.shape, generator=generator, dtype=torch.float64))
        x = torch.randn(7, 24, generator=generator, dtype=torch.float64)
        assert isinstance(layer, ThinLinear)
        assert torch.allclose(layer(x), LowRankLinear.forward(layer, x), atol=1e-12)


def test_parametrisations_differ_in_the_readout_only_and_runs_do_not_share_factors():
    one, other = (task(64, p, "orthonormal", seed=1) for p in PARAMETRISATIONS)
    assert torch.equal(one.features, other.features)
    assert torch.allclose(one.outputs, 8 * other.outputs)
    again = task(64, "standard", "orthonormal", seed=1)
    with torch.no_grad():
        again.net.linears[1].A.add_(1.0)
    assert one.changes() == pytest.approx((0.0, 0.0), abs=1e-14)


def test_an_aligned_start_spans_the_first_singular_vectors_of_the_gradient():
    plain, made = task(16, "standard", "zero", seed=4), task(16, "standard", "aligned", seed=4)
    for layer in adapters(plain.net).values():
        W = layer.base_layer.weight.detach().clone().requires_grad_(True)
        layer.base_layer.weight = torch.nn.Parameter(W)
    plain.loss().backward()
    for name, layer in adapters(made.net).items():
        G = adapters(plain.net)[name].base_layer.weight.grad
        U, _, Vh = torch.linalg.svd(G)
        B, A = layer.B.detach(), layer.A.detach()
        assert torch.allclose(B.mT @ B, A @ A.mT, atol=1e-12)
        assert torch.allclose(B @ B.mT, U[:, :RANK] @ U[:, :RANK].mT, atol=1e-8)
        assert torch.allclose(A.mT @ A, Vh[:RANK].mT @ Vh[:RANK], atol=1e-8)


def test_a_run_that_is_too_fast_says_so():
    case = Case("odelora", "aligned", "standard", 128, 0)
    looks = steps(case, 3.0, (1, 10))
    assert looks[-1].worst > 1
    assert steps(case, 3.0, (1, 10), limit=1.0)[-1].loss == math.inf
    fine = steps(case, 1e-3, (1, 10))
    assert 1 > fine[0].worst >= fine[1].loss


def test_the_flow_is_what_many_small_steps_follow():
    case = Case("odelora", "orthonormal", "mean-field", 64, 0)
    look, (euler,) = flow(case, 3.0), steps(case, 0.02, (150,))
    assert (look.features, look.outputs) == pytest.approx((euler.features, euler.outputs), rel=0.02)


@pytest.mark.parametrize("begin", [-6, 2, 9])
def test_climbing_finds_the_best_step_from_either_side_and_from_where_all_fail_and_asks_nothing_twice(begin):
    asked = []

    def loss(j):
        asked.append(j)
        return math.nan if j > 2 else (j - 1) ** 2

    found = {}
    assert climbed(loss, begin, found) == 1
    assert scanned(loss, found, range(-4, 9, 4)) == 0
    assert len(asked) == len(set(asked))


# Verdicts.


def test_slopes_and_what_they_say(generator):
    x = [2.0**k for k in range(6, 12) for _ in range(5)]
    inside = 0
    for _ in range(200):
        noise = torch.randn(len(x), generator=generator, dtype=torch.float64)
        found = slope(x, [a**0.5 * math.exp(0.3 * float(e)) for a, e in zip(x, noise, strict=True)])
        inside += found.low < 0.5 < found.high
    assert 0.88 < inside / 200 <= 1.0
    flat, steep, wide = Slope(0.05, -0.1, 0.19), Slope(0.5, 0.3, 0.7), Slope(0.1, -0.3, 0.5)
    assert [state(flat, y, 0.0) for y in (flat, steep, wide)] == ["stable", "depends", "open"]
    assert state(flat, flat, 0.2) == "unstable"
    assert math.isnan(slope([1.0, 2.0], [math.nan, 1.0]).value)


def synthetic(method_slopes):
    """Rows of an ideal study: every quantity follows a given exponent, times a little noise."""
    generator = torch.Generator().manual_seed(0)
    rows = []

    def row(kind, method, start, p, n, seed, power, **more):
        bend = lambda: n**power * math.exp(0.02 * float(torch.randn((), generator=generator)))
        base = {"kind": kind, "method": method, "start": start, "parametrisation": p, "width": n, "seed": seed}
        measured = {"k": 1, "time": None, "features": bend(), "outputs": bend(), "loss": 0.5, "worst": 0.9}
        return base | measured | {"eta": 1.0} | more

    for p in PARAMETRISATIONS:
        for n in (64, 256, 1024):
            for seed in range(4):
                for method, c in CONTENDERS.items():
                    power = method_slopes.get(method, 0.5)
                    for start in c.starts:
                        rows.append(row("small", method, start, p, n, seed, power))
                        if c.has_flow:
                            rows.append(row("flow", method, start, p, n, seed, power, time=plan.TIMES[p][-1]))
                for method, start in SWEPT:
                    power = method_slopes.get(method, 0.5)
                    rows.append(row("sweep", method, start, p, n, seed, power, eta=2.0 * n**power, k=100))
                    rows += [row("working", method, start, p, n, seed, power, k=k) for k in (1, 10, 100)]
                    rows.append(row("own", method, start, p, n, seed, power, k=100, loss=0.25))
    for method in CONTENDERS:
        for size in plan.SIZES:
            rows += [row("size", method, "orthonormal", "mean-field", 256, s, 0.0) | {"size": size} for s in (0, 1)]
    return rows


def judged(rows):
    return claims(cells(rows), transfers(rows), sizes(rows))


def test_verdicts_follow_from_the_rows():
    def verdicts(found):
        return {claim.claim: claim.verdict for claim in found if claim.claim.startswith("ODELoRA: the ")}

    stable = judged(synthetic({"odelora": 0.0}))
    assert set(verdicts(stable).values()) == {"confirmed"}
    alone = [c for c in stable if "no rival" in c.claim]
    assert [c.verdict for c in alone] == ["confirmed"]
    other = judged(synthetic({"odelora": 0.0, "factor_muon": 0.0}))
    assert "not confirmed" in {c.verdict for c in other if "no rival" in c.claim}
    assert set(verdicts(judged(synthetic({}))).values()) == {"not confirmed"}
    failing = synthetic({"odelora": 0.0})
    for r in failing:
        r["worst"] = 3.0 if r["kind"] == "working" else r["worst"]
    assert {c.verdict for c in judged(failing) if "such steps" in c.claim} == {"not confirmed"}
    assert judged(failing)[-1].verdict == "not testable"


def test_the_step_that_is_kept_works_on_all_seeds_of_the_sweep():
    rows = synthetic({})
    rows[[r["kind"] for r in rows].index("sweep")]["eta"] = 0.125
    assert best_steps(rows)[(*SWEPT[0], PARAMETRISATIONS[0], BASE)] == 0.125


@pytest.mark.slow
def test_the_command_writes_page_figure_and_figures_that_it_can_read_again(tmp_path, monkeypatch, capsys):
    """At toy widths, the whole way; the page again from the raw figures alone."""
    tiny = Form((16, 32, 64), (0, 1), (0,), (0,), (101,), times=1, marks=(1, 2), pissa=16)
    monkeypatch.setattr(command, "QUICK", tiny)
    monkeypatch.setattr(plan, "TIMES", {"standard": (0.1,), "mean-field": (1.0,)})
    monkeypatch.setattr("features.verdict.TIMES", plan.TIMES)
    monkeypatch.setattr("features.plan.BASE", 16)
    monkeypatch.setattr("features.verdict.BASE", 16)
    monkeypatch.setattr(plan, "SIZES", (0.5, 1.0, 2.0))
    assert command.main(["--quick", "--results", str(tmp_path)]) == 0
    page = (tmp_path / report.PAGE).read_text()
    assert "{" not in page.replace("{#", "")
    assert (tmp_path / report.PICTURE).stat().st_size > 10_000
    kept = json.loads((tmp_path / report.RAW).read_text())
    assert {"kind", "width", "features", "outputs"} <= set(kept["columns"])
    assert command.main(["--quick", "--report", "--results", str(tmp_path)]) == 0
    assert (tmp_path / report.PAGE).read_text() == page
    assert "not testable" in capsys.readouterr().out


def test_a_row_that_is_not_finite_is_kept_as_such(tmp_path):
    row = {"kind": "working", "features": math.nan, "outputs": 0.5, "loss": math.inf, "worst": math.inf}
    command.save([row], 1.0, tmp_path / "x.json")
    (again,), _, _ = command.load(tmp_path / "x.json")
    assert math.isnan(again["features"])
    assert (again["outputs"], again["loss"], again["worst"]) == (0.5, math.inf, math.inf)
    assert running.Look(1, None, 0.1, 0.1, 0.5, 0.6).worst == 0.6

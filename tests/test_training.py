"""Runs from configuration to summary: every problem with every method, counters, failures, measurements."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.lowrank.layer import Factors, LowRankLinear
from pinn_odelora.training import conclude, measure
from pinn_odelora.training.budget import Budget, Progress
from pinn_odelora.training.history import History

ROOT = Path(__file__).parent.parent
PROBLEMS = sorted(p.stem for p in (ROOT / "configs/problem").glob("*.yaml"))
METHODS = sorted(p.stem for p in (ROOT / "configs/method").glob("*.yaml"))
INTEGRATORS = sorted(p.stem for p in (ROOT / "configs/integrator").glob("*.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", METHODS)
def test_every_problem_with_every_method_runs_twenty_gradient_evaluations(problem, method, compose, adapt):
    cfg = compose(f"problem={problem}", f"method={method}", "budget.gradient_evals=20")
    module, facts = adapt(cfg)
    result = conclude.summary(cfg, module, facts)
    assert 20 <= result["gradient_evals"] <= 20 + 25
    assert module.failure is None
    assert math.isfinite(result["rel_l2"])
    assert (result["problem"], result["method"]) == (problem, method)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("method", ["odelora", "lora_gd"])
def test_every_integrator_takes_steps_with_no_step_size_given(integrator, method, compose, adapt):
    module, _ = adapt(compose(f"integrator={integrator}", f"method={method}", "budget.steps=6"))
    assert module.progress.step == 6
    assert module.progress.heldout_loss < module.progress.first_heldout_loss


@pytest.mark.parametrize(
    "variant",
    [
        ["problem.amplitude=1.5"],
        ["problem=poisson", "problem.domain=plate_with_hole"],
        ["problem.conditions=soft", "problem.weights.ic=10"],
        ["points=fresh", "precision=32"],
        ["lora.start=pissa", "lora.targets=[linears.1,linears.3]", "lora.scale=2.0"],
        ["method=lora_adam", "lora.start=zero", "lora.rank=1"],
        ["method=odelora", "method.retract=false"],
    ],
    ids=lambda v: v[-1],
)
def test_variants(variant, compose, adapt):
    module, _ = adapt(compose(*variant, "budget.steps=6"))
    assert module.failure is None
    assert module.progress.step == 6


def test_measurements_add_a_term_that_pulls_towards_them(compose, adapt, tmp_path):
    (tmp_path / "data.csv").write_text("x,t,u,weight\n0.25,0.5,-0.4,1\n-0.5,0.25,0.7,2\n0.1,0.9,-0.1,0.5\n")
    cfg = compose(f"data.file={tmp_path / 'data.csv'}", "data.weight=100", "method=lora_adam", "budget.steps=20")
    adapt(cfg)
    rows = History(Path(cfg.output_dir) / "history.csv").rows
    assert rows[-1]["loss/data"] < rows[0]["loss/data"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss/pde"] + rows[0]["loss/data"])


def test_every_method_logs_the_same_names(compose, adapt, tmp_path):
    columns = set()
    for method in METHODS:
        adapt(compose(f"method={method}", "budget.steps=6", f"output_dir={tmp_path / method}"))
        columns.add(tuple(sorted(c for c in History(tmp_path / method / "history.csv").columns if "singular" not in c)))
    assert len(columns) == 1
    assert {
        *("step", "loss", "loss/pde", "error/rel_l2", "error/max", "gradient/norm", "update/norm", "integrator/h"),
        *("lora/balance", "lora/cond_A", "lora/cond_B", "lora/effective_rank", "lora/norm", "flow/alignment"),
        *("stability/heldout_loss", "stability/rose", "stability/largest_rise", "cost/gradient_evals", "cost/seconds"),
    } == set(columns.pop())


@pytest.mark.parametrize(
    ("overrides", "evaluations"),
    [
        # Four stages at every step.
        (["integrator=rk4", "integrator.h=1e-4"], 4 * 6),
        # The last stage of the pair is the first of the next step: four at the first step, then three.
        (["integrator=bogacki_shampine", "integrator.h=1e-4", "method.retract=false"], 4 + 5 * 3),
        # Other points at every step: nothing can be reused.
        (["integrator=bogacki_shampine", "integrator.h=1e-4", "method.retract=false", "points=fresh"], 4 * 6),
        (["method=full_adam"], 6),
    ],
)
def test_evaluations_are_counted_and_not_repeated(overrides, evaluations, compose, adapt):
    module, _ = adapt(compose(*overrides, "budget.steps=6"))
    assert module.progress.gradient_evals == evaluations


def test_a_run_that_overflows_names_term_and_layer_and_keeps_the_last_good_state(compose, adapt, tmp_path):
    cfg = compose("method=lora_gd", "integrator=euler", "integrator.h=1e200", "budget.steps=6")
    module, facts = adapt(cfg)
    assert "loss term 'pde'" in str(module.failure)
    assert "linears.1" in str(module.failure)
    assert all(bool(torch.isfinite(p).all()) for p in module.solution.parameters())
    result = conclude.summary(cfg, module, facts)
    assert result["diverged"]
    conclude.save_weights(module, tmp_path / "run")
    with pytest.raises(NonFiniteError, match="last good state is kept"):
        conclude.last_words(module, result, tmp_path / "run")


def test_float32_runs_in_float32(compose, adapt):
    module, _ = adapt(compose("precision=32", "budget.steps=2"))
    assert {p.dtype for p in module.solution.parameters()} == {torch.float32}


def test_an_unfit_rank_pattern_or_start_is_refused_before_training(compose, adapt):
    for overrides, words in [
        (["lora.rank=13"], "rank"),
        (["lora.targets=[nothing*]"], "nothing"),
        (["lora.start=zero"], "orthonormal"),
    ]:
        with pytest.raises(InputError, match=words):
            adapt(compose(*overrides))


def test_budget_is_the_first_limit_reached():
    budget = Budget(gradient_evals=100, seconds=10, steps=50)
    assert budget.used(Progress(step=10, gradient_evals=90, seconds=2.0)) == pytest.approx(0.9)
    with pytest.raises(InputError, match="steps"):
        Budget(steps=-1)
    with pytest.raises(InputError, match="No budget"):
        Budget()


def test_alignment_is_the_cosine_with_the_descent_direction(generator):
    G = {"a": torch.randn(4, 3, generator=generator), "b": torch.randn(2, 5, generator=generator)}
    before = {name: torch.randn(g.shape, generator=generator) for name, g in G.items()}
    downhill = {name: W - 0.1 * G[name] for name, W in before.items()}
    assert measure.alignment(before, downhill, G) == pytest.approx(1.0, abs=1e-4)
    assert measure.alignment(downhill, before, G) == pytest.approx(-1.0, abs=1e-4)
    assert math.isnan(measure.alignment(before, before, G))


def test_spectrum_is_that_of_the_product(generator):
    start = Factors(*(torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((3, 7), (6, 3))))
    layer = LowRankLinear(nn.Linear(7, 6).double(), start, scale=0.7)
    exact = torch.linalg.svdvals(0.7 * start.B @ start.A)[:3]
    row = measure.low_rank({"layer": layer}, {})
    shown = [row[f"lora/layer/singular_value_{i}"] for i in (1, 2, 3)]
    assert shown == pytest.approx(exact.tolist(), rel=1e-12)
    assert row["lora/norm"] == pytest.approx(float(exact.norm()), rel=1e-12)
    gram = {"A": start.A @ start.A.T, "B": start.B.T @ start.B}
    for name, S in gram.items():
        assert row[f"lora/cond_{name}"] == pytest.approx(float(torch.linalg.cond(S)), rel=1e-10)
    assert row["lora/balance"] == pytest.approx(float(torch.linalg.matrix_norm(gram["B"] - gram["A"])), rel=1e-12)


def test_effective_rank_counts_equal_singular_values():
    assert measure.effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3.0)
    assert 1 < measure.effective_rank(torch.tensor([1.0, 0.1])) < 2
    assert measure.effective_rank(torch.zeros(3)) == 0.0

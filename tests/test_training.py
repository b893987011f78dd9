"""Runs from configuration to summary: every problem with every method, counters, failures, measurements."""

import json
import math
import statistics
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from test_plan import OwnBackward, network
from torch import nn

import pinn_odelora
from pinn_odelora import checkpoints, methods
from pinn_odelora import diagnostics as measure
from pinn_odelora.budget import Budget, Progress
from pinn_odelora.config import begin
from pinn_odelora.config.build import experiment
from pinn_odelora.config.running import Run
from pinn_odelora.errors import InputError, NonFiniteError
from pinn_odelora.log import Log
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.pretraining import cache
from pinn_odelora.pretraining.pretrain import Pretraining
from pinn_odelora.runs.compare import compare, summaries
from pinn_odelora.runs.history import History
from pinn_odelora.system import Solution, System
from problems.heat import Heat

ROOT = Path(__file__).parent.parent
PROBLEMS = sorted(p.stem for p in (ROOT / "configs/problem").glob("*.yaml"))
METHODS = sorted(p.stem for p in (ROOT / "configs/method").glob("*.yaml"))
PRETRAINING = 3
"""Steps of Adam in the fixture ``compose``."""
INTEGRATORS = sorted(p.stem for p in (ROOT / "configs/integrator").glob("*.yaml"))

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


INTEGRATED = [name for name in METHODS if "integrator" in signature(getattr(methods, name)).parameters]
# Rivals by themselves, on every problem and from every start, are in test_rivals_contract.py.
# Every problem with the default and every method on one problem; the other pairs take a minute together.
PAIRS = [
    pytest.param(problem, method, marks=() if problem == "heat" or method == "odelora" else pytest.mark.slow)
    for problem in PROBLEMS
    for method in METHODS
    if method in INTEGRATED or problem == "heat"
]


@pytest.mark.parametrize(("problem", "method"), PAIRS)
def test_every_problem_with_every_method_runs_twenty_gradient_evaluations(problem, method, compose, run):
    cfg = compose(f"problem={problem}", f"method={method}", "budget.gradient_evals=20")
    done = run(cfg)
    result = done.result.summary
    assert 20 <= result["gradient_evals"] <= 20 + 25
    assert done.training.failure is None
    assert math.isfinite(result["rel_l2"])
    assert (result["problem"], result["method"]) == (problem, method)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_both_derivative_engines_train_alike(problem, compose, run, tmp_path):
    losses = {}
    for engine in ("jets", "autograd"):
        folder = tmp_path / engine
        overrides = (f"problem={problem}", f"derivatives={engine}", f"output_dir={folder}")
        run(compose(*overrides, "method=lora_adam", "budget.steps=50", "log.every=1"))
        losses[engine] = [row["loss"] for row in History(folder / "history.csv").rows]
    assert len(losses["jets"]) == 51
    assert losses["jets"] == pytest.approx(losses["autograd"], rel=1e-8)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("method", ["odelora", "lora_gd"])
def test_every_integrator_takes_steps_with_no_step_size_given(integrator, method, compose, run):
    # Of few points a loss is hardly known, and the end of so short a run might be its start.
    done = run(compose(f"integrator={integrator}", f"method={method}", "points.interior=400", "budget.steps=6"))
    assert done.progress.step == 6
    assert done.progress.heldout_loss < done.progress.first_heldout_loss


@pytest.mark.parametrize(
    "variant",
    [
        ["problem.amplitude=1.5"],
        ["problem=poisson", "problem.domain=plate_with_hole"],
        ["problem.conditions=soft", "problem.weights.ic=10"],
        ["points=fresh", "precision=32"],
        ["lora.start=pissa", "lora.targets=[linears.1,linears.3]", "lora.scale=2.0"],
        ["method=lora_adam", "lora.start=zero", "lora.rank=1"],
        ["method=odelora", "integrator=bogacki_shampine", "method.retract=false"],
    ],
    ids=lambda v: v[-1],
)
def test_variants(variant, compose, run):
    done = run(compose(*variant, "budget.steps=6"))
    assert done.training.failure is None
    assert done.progress.step == 6


def test_measurements_add_a_term_that_pulls_towards_them(compose, run, tmp_path):
    (tmp_path / "data.csv").write_text("x,t,u,weight\n0.25,0.5,-0.4,1\n-0.5,0.25,0.7,2\n0.1,0.9,-0.1,0.5\n")
    cfg = compose(f"data.file={tmp_path / 'data.csv'}", "data.weight=100", "method=lora_adam", "budget.steps=20")
    run(cfg)
    rows = History(Path(cfg.output_dir) / "history.csv").rows
    assert rows[-1]["loss/data"] < rows[0]["loss/data"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss/pde"] + rows[0]["loss/data"])


@pytest.mark.slow
def test_every_method_logs_the_same_names(compose, run, tmp_path):
    """Those that it has of a section are the same; what it does not have, such as a balance, is left out."""
    columns = []
    for method in METHODS:
        run(compose(f"method={method}", "budget.steps=6", f"output_dir={tmp_path / method}"))
        columns.append({c for c in History(tmp_path / method / "history.csv").columns if "singular" not in c})
    always = {"step", "loss", "loss/pde", "error/rel_l2", "error/max", "gradient/norm", "update/norm", "lora/norm"}
    assert always <= set.intersection(*columns)
    assert {
        *("step", "loss", "loss/pde", "error/rel_l2", "error/max", "gradient/norm", "update/norm", "integrator/h"),
        *("lora/balance", "lora/cond_A", "lora/cond_B", "lora/effective_rank", "lora/norm", "flow/alignment"),
        *("stability/heldout_loss", "stability/iterate_loss", "stability/rose", "stability/largest_rise"),
        *("cost/gradient_evals", "cost/seconds"),
        *("cost/batch_size", "lora/discarded", "integrator/bits", "integrator/fallback", "integrator/rejected"),
        *("lora/rank", *(f"lora/linears.{i}/rank" for i in (1, 2, 3))),
    } == set.union(*columns)


@pytest.mark.parametrize(
    ("overrides", "evaluations"),
    [
        # Four stages at every step.
        (["integrator=rk4", "integrator.h=1e-4", "points=fresh"], 4 * 6),
        # The last stage of the pair is the first of the next step: four at the first step, then three.
        (["integrator=bogacki_shampine", "integrator.h=1e-4", "method.retract=false", "points=fixed"], 4 + 5 * 3),
        # Other points at every step: nothing can be reused.
        (["integrator=bogacki_shampine", "integrator.h=1e-4", "method.retract=false", "points=fresh"], 4 * 6),
        (["method=full_adam"], 6),
        # A linearisation, and the residual ahead, with the correction and without it.
        (["integrator.h=1e-4", "points=fresh"], 4 * 6),
        (["integrator.h=1e-4", "integrator.correction=false", "points=fresh"], 2 * 6),
        # And the residual at the candidates, where points follow it.
        (["integrator.h=1e-4", "points=residual"], 5 * 6),
    ],
)
def test_evaluations_are_counted_and_not_repeated(overrides, evaluations, compose, run):
    done = run(compose(*overrides, "budget.steps=6"))
    assert done.progress.gradient_evals == evaluations


def test_a_run_that_overflows_names_term_and_layer_and_keeps_the_last_good_state(compose, run, tmp_path):
    cfg = compose("method=lora_gd", "integrator=euler", "integrator.h=1e200", "budget.steps=6")
    done = run(cfg)
    assert "loss term 'pde'" in done.result.failure
    assert "linears.1" in done.result.failure
    assert all(bool(torch.isfinite(p).all()) for p in done.adaptation.solution.parameters())
    assert done.result.diverged
    with pytest.raises(NonFiniteError, match="last good state is kept"):
        done.run.conclude(done.result, done.facts)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["diverged"]
    assert np.isfinite(pinn_odelora.load(tmp_path / "run")(0.3, 0.4))


@pytest.mark.parametrize(
    "error",
    [
        InputError("the flow is singular here."),
        FloatingPointError("No step is short enough."),
        torch.linalg.LinAlgError("linalg.eigh: the algorithm failed to converge."),
    ],
)
def test_what_a_step_refuses_ends_the_run_as_numbers_that_fail_do(error, compose, run, monkeypatch):
    """By an optimiser that refuses its sixth step."""
    cfg = compose("method=lora_adam", "budget.steps=9")
    step, taken = torch.optim.Adam.step, []

    def refusing(optimizer, closure=None):
        taken.append(1)
        if len(taken) > PRETRAINING + 5:
            raise error
        return step(optimizer, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", refusing)
    done = run(cfg)
    assert isinstance(done.training.failure, NonFiniteError)
    assert done.result.failure == str(error)
    assert (done.result.steps, done.result.diverged) == (5, True)


def test_a_measurement_before_the_first_step_does_not_choose_another_derivative_engine(generator):
    """Held-out losses are found with weights that have no gradient, by which jets would be told to be wrong."""
    problem = Heat()
    system = System(problem, Solution(problem, OwnBackward(network("xt", "u", generator))))
    measure.Reference(system, Log()).loss()
    assert system.engine("pde").plan is None
    apart = System(problem, system.solution)
    assert apart.engine("pde").plan is None


def test_float32_runs_in_float32(compose, run):
    done = run(compose("precision=32", "budget.steps=2"))
    assert {p.dtype for p in done.adaptation.solution.parameters()} == {torch.float32}


def test_an_unfit_rank_pattern_or_start_is_refused_before_training(compose, run):
    for overrides, words in [
        (["lora.rank=13"], r"lora\.rank is 13, but it must be at most 12 for layer linears\.1"),
        (["lora.targets=[nothing*]"], "nothing"),
        (["lora.start=zero", "integrator=euler"], "orthonormal"),
    ]:
        with pytest.raises(InputError, match=words):
            run(compose(*overrides))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("pretrain.cache=/dev/null/cache", "cannot be kept in /dev/null/cache"),
        ("net._target_=os.getcwd", "net._target_ is os.getcwd, but it must be the dotted name of a class"),
    ],
)
def test_what_would_end_a_run_after_pretraining_is_refused_before_it(line, sentence, compose):
    with pytest.raises(InputError, match=sentence):
        Run(cfg := compose(line), Path(cfg.output_dir), experiment(cfg))


def test_a_cache_that_cannot_be_written_serves_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="no permission"):
        cache.check_writable(tmp_path, "abc")
    (tmp_path / "heat-abc.safetensors").touch()
    cache.check_writable(tmp_path, "abc")


def test_an_accelerator_that_is_not_there_is_refused_before_pretraining(compose, tmp_path):
    with pytest.raises(InputError, match="Lightning's Trainer refuses: You selected an invalid accelerator"):
        Run(cfg := compose("trainer.accelerator=abacus"), tmp_path, experiment(cfg))


@pytest.mark.parametrize(("name", "what"), [("last.ckpt", "the state to continue from"), ("start.json", "is damaged")])
def test_a_damaged_run_is_refused_and_not_changed(name, what, compose, tmp_path):
    (tmp_path / name).write_bytes(b'{"half')
    with pytest.raises(InputError, match=what):
        Run(cfg := compose(), tmp_path, experiment(cfg))
    assert (tmp_path / name).read_bytes() == b'{"half'


def test_all_weights_of_a_network_without_hidden_layers_can_be_trained(compose, run):
    done = run(compose("method=full_adam", "net.depth=1", "budget.steps=2"))
    assert [*done.layers] == ["linears.0", "linears.1"]


def test_a_full_method_measures_the_layers_that_are_chosen(compose, run):
    done = run(compose("method=full_adam", "lora.targets=*.0", "budget.steps=2"))
    assert [*done.layers] == ["linears.0"]


def test_ctrl_c_while_pretraining_says_how_to_continue(compose, run, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pretraining, "run", interrupted)
    with pytest.raises(SystemExit) as left:
        run(compose())
    assert left.value.code == 130
    assert "continue with: python train.py resume=" in capsys.readouterr().err


def summary(folder, seed, rank, error):
    folder.mkdir(parents=True)
    numbers = dict.fromkeys(("rel_l2_before", "loss_rises", "largest_rise", "gradient_evals", "seconds"), 1.0)
    names = {"problem": "heat", "method": "odelora", "integrator": "rk4", "diverged": False}
    (folder / "summary.json").write_text(json.dumps(names | numbers | {"seed": seed, "rel_l2": error}))
    (folder / "config.yaml").write_text(f"seed: {seed}\nlora: {{rank: {rank}}}\noutput_dir: {folder}\n")


def test_compare_averages_seeds_and_nothing_else(tmp_path):
    for i, (seed, rank, error) in enumerate([(0, 2, 1e-1), (1, 2, 1e-3), (0, 8, 1e-4)]):
        summary(tmp_path / str(i), seed, rank, error)
    rows = compare(summaries([tmp_path]))
    assert [(row["settings"], row["runs"]) for row in rows] == [("lora.rank=2", 2), ("lora.rank=8", 1)]
    assert [row["rel_l2"] for row in rows] == pytest.approx([1e-2, 1e-4])
    assert rows[0]["spread"] == pytest.approx(math.exp(statistics.stdev([math.log(1e-1), math.log(1e-3)])))
    assert [row["settings"] for row in compare(summaries([tmp_path / "0", tmp_path / "1"]))] == ["-"]


def test_compare_refuses_a_summary_that_is_none(tmp_path):
    summary(tmp_path / "run", 0, 2, 0.1)
    (tmp_path / "run" / "summary.json").write_text("{")
    with pytest.raises(InputError, match="are not those of a run"):
        summaries([tmp_path])


def test_budget_is_the_first_limit_reached():
    budget = Budget(gradient_evals=100, seconds=10, steps=50)
    assert budget.used(Progress(step=10, gradient_evals=90, seconds=2.0)) == pytest.approx(0.9)
    with pytest.raises(InputError, match="steps"):
        Budget(steps=-1)
    with pytest.raises(InputError, match="steps is None, but it must be a whole number"):
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


def test_the_file_of_a_checkpoint_is_read_once(compose, run, tmp_path, monkeypatch):
    own = tmp_path / "own.pt"
    torch.save(pinn_odelora.MLP(2, 1, width=12).state_dict(), own)
    read, files = checkpoints._maps, []
    monkeypatch.setattr(checkpoints, "_maps", lambda path, part=None: (files.append(str(path)), read(path, part))[1])
    done = run(compose(f"pretrain.checkpoint={own}", "budget.steps=1"))
    assert files == [str(own)]
    assert done.run.experiment.weights is None
    run(begin(compose(f"resume={tmp_path / 'run'}", "budget.steps=2"))[0])
    assert files[1:] == [str(tmp_path / "run" / "pretrained.safetensors")]

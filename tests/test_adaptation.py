"""The Python API: adapt, steps, what they return, leave and refuse, and an adaptation under somebody's own Trainer."""

import copy
import itertools
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from threadpoolctl import ThreadpoolController
from torch import nn

import pinn_odelora as po
from pinn_odelora import config as commandline
from pinn_odelora.integrators import tableau
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.runs.compare import compare, summaries
from pinn_odelora.runs.history import History
from pinn_odelora.sampling.batch_size import AdaptiveBatchSize
from pinn_odelora.threads import set_threads
from problems.burgers import Burgers
from problems.heat import Heat
from problems.kovasznay import Kovasznay

POINTS = po.Sampling(interior=40, boundary=12)
FIXED = po.Sampling(False, 40, 12, residual=0, batch_size=None, initial_batch_size=None, best_iterate=False)
SHORT = {"points": POINTS, "log": po.Log(every=3, heldout=32, test=64), "rank": 3}
TIMED = "cost/seconds"
METHODS = {
    "odelora": {},
    "adaptive": {
        "rank": "adaptive",
        "lora": po.LoRA(rank="adaptive", adaptive=po.AdaptiveRank(outside=0.05, residuals=0.1)),
    },
    "rk4": {"method": po.methods.odelora(po.RungeKutta(tableau.RK4))},
    "lora_adam": {"method": po.methods.lora_adam()},
}
METHODS["adaptive"].pop("rank")

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning", "ignore:.*LeafSpec:FutureWarning"
)


def network(problem=None, **sizes):
    problem = problem or Burgers()
    generator = torch.Generator().manual_seed(1)
    return po.MLP(problem.inputs, len(problem.fields), **{"width": 12} | sizes, generator=generator)


def begun(number=12, problem=None, **settings):
    """An adaptation of a small network, not yet iterated over."""
    problem = problem or Burgers()
    settings = SHORT | {"budget": po.Budget(steps=number)} | settings
    if "lora" in settings:
        del settings["rank"]
    return po.steps(network(problem), problem, device="cpu", **settings)


def finished(run):
    for _ in run:
        pass
    return run.result()


def rows(history):
    """Without what a clock says, and with NaN equal to itself."""
    return [{name: repr(float(x)) for name, x in row.items() if name != TIMED} for row in history]


def assert_same_bits(a, b):
    assert rows(a.history) == rows(b.history)
    assert len(a.history) > 2
    for (name, x), y in zip(a.net.state_dict().items(), b.net.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


# The call.


def test_adapt_leaves_the_given_network_unchanged():
    net = network().float().eval()
    net.linears[0].weight.requires_grad_(False)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    result = po.adapt(net, Burgers(), **SHORT, budget=po.Budget(steps=5))
    for name, x in net.state_dict().items():
        assert torch.equal(x, before[name]), name
        assert x.dtype == torch.float32
    assert [type(layer) for layer in net.linears] == 5 * [nn.Linear]
    assert [p.requires_grad for p in net.parameters()] == [False] + 9 * [True]
    assert all(p.grad is None for p in net.parameters())
    assert result.steps == 5


@pytest.mark.parametrize("method", [None, po.methods.dora()], ids=["product", "dora"])
def test_an_adaptation_goes_on_from_the_network_of_another(method):
    """Its adapter has become a part of the weights; the network of the first result stays as it was."""
    # The last iterate: of so few points, and from weights that solve nothing, the best one may be the start.
    points = replace(POINTS, best_iterate=False)
    settings = SHORT | {"method": method, "budget": po.Budget(steps=7), "points": points}
    first = po.adapt(network(), Burgers(nu=0.04), **settings)
    x = torch.rand(9, 2, dtype=torch.float64)
    values = first.net(x)
    assert not torch.allclose(values, network().double()(x), rtol=0, atol=1e-6)
    on = po.steps(first.net, Burgers(nu=0.03), **settings)
    assert not any(isinstance(layer, LowRankLinear) for layer in on.net.modules())
    assert torch.allclose(on.net(x), values, rtol=0, atol=1e-13)
    assert finished(on).steps == 7
    assert torch.equal(first.net(x), values)


def test_adapt_is_its_steps_to_the_end():
    run = begun()
    records = [*run]
    assert [record.step for record in records] == [*range(12)]
    assert [bool(record.measured) for record in records] == 4 * [True, False, False]
    assert all(math.isclose(sum(record.terms.values()), record.loss) for record in records)
    assert all(a.gradient_evals < b.gradient_evals and a.seconds < b.seconds for a, b in itertools.pairwise(records))
    result = po.adapt(network(), Burgers(), **SHORT, budget=po.Budget(steps=12), device="cpu")
    assert_same_bits(run.result(), result)
    assert result.loss == records[-1].loss
    assert result.gradient_evals >= records[-1].gradient_evals


def test_a_result_tells_errors_of_its_solution():
    """Found here again, from the reference at other points."""
    problem = Heat()
    result = finished(begun(30, problem, points=po.Sampling(interior=200, boundary=40)))
    p = problem.region.sample(3000, lambda n, d: torch.rand(n, d, generator=torch.Generator().manual_seed(5)).double())
    u, exact = result.solution(p.x, p.t).detach(), problem.reference(p)
    assert u.shape == exact.shape
    assert result.rel_l2 == pytest.approx(float((u - exact).norm() / exact.norm()), rel=0.2)
    assert result.max_error == pytest.approx(float((u - exact).abs().max()), rel=0.3)
    assert result.rel_l2 < 0.5 * result.rel_l2_before
    assert result.history[-1]["error/rel_l2"] == pytest.approx(result.rel_l2, rel=0.3)
    assert (result.diverged, result.stalled, result.failure) == (False, False, "")
    assert set(result.ranks.values()) == {3}
    assert repr(result).startswith(
        f"heat, odelora: relative L2 {result.rel_l2_before:.2e} -> {result.rel_l2:.2e} in 30 st"
    )
    assert json.loads(json.dumps(result.summary)) == result.summary


# Left, taken up, saved and continued.


def test_a_process_has_the_threads_that_it_is_given():
    libraries = ThreadpoolController().select(user_api="blas")
    outside = libraries.limit(limits=2)
    try:
        set_threads(3)
        assert torch.get_num_threads() == 3
        assert {library["num_threads"] for library in libraries.info()} == {3}
    finally:
        outside.restore_original_limits()
        set_threads(1)


def test_libraries_that_are_loaded_later_have_the_threads_of_the_process_too():
    lines = [
        "from pinn_odelora.threads import set_threads",
        "set_threads(1)",
        "import scipy.linalg, pinn_odelora.linalg.damped",
        "from threadpoolctl import threadpool_info",
        "print({library['num_threads'] for library in threadpool_info() if library['user_api'] == 'blas'})",
    ]
    alone = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=alone, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "{1}"


@pytest.mark.parametrize("given", [1, 3, None])
def test_steps_have_the_threads_they_are_given_and_leave_those_of_the_process(given):
    """Those of torch, and those of the linear algebra of NumPy and SciPy."""
    seen = set()
    libraries = ThreadpoolController().select(user_api="blas")
    number = lambda: {torch.get_num_threads()} | {library["num_threads"] for library in libraries.info()}

    class Watched(Burgers):
        def ansatz(self, p):
            seen.update(number())
            return super().ansatz(p)

    before = torch.get_num_threads()
    outside = libraries.limit(limits=2)
    torch.set_num_threads(2)
    try:
        run = po.steps(network(), Watched(), device="cpu", budget=po.Budget(steps=4), **SHORT, threads=given)
        assert run.training.objective
        seen.clear()
        for _ in run:
            assert number() == {2}
        assert seen == {given or 2}
        seen.clear()
        run.conclude()
        assert (seen, number()) == ({given or 2}, {2})
    finally:
        torch.set_num_threads(before)
        outside.restore_original_limits()


def test_steps_can_be_left_and_taken_up_again():
    whole, run = finished(begun()), begun()
    for record in run:
        if record.step == 4:
            break
    assert run.training.progress.step == 5
    assert [record.step for record in run] == [*range(5, 12)]
    assert_same_bits(run.result(), whole)
    assert [*run] == []


def test_a_result_can_be_asked_for_before_the_budget_is_spent():
    run = begun()
    next(iter(run))
    result = run.result()
    assert result.steps == 1
    assert [row["step"] for row in result.history] == [0, 1]


@pytest.mark.parametrize(
    "counted", [{}, {"tried": 9, "excess": 0.1}, {"tried": 9, "excess": 0.1, "level": -2.0, "former": None}]
)
def test_a_state_in_which_steps_at_a_batch_were_counted_otherwise_counts_them_anew(counted):
    run = begun(3)
    list(run)
    state = run.state_dict()
    batch = state["training"]["batch_size"]
    for name in ("tried", "excess", "level", "gaps", "levels"):
        del batch[name]
    del state["sha256"]
    batch.update(counted)
    continued = begun(3)
    continued.load_state_dict(state)
    kept = {name: batch[name] for name in ("size", "gap", "progress", "began", "ended")}
    assert continued.training.batch_size == AdaptiveBatchSize(**kept)


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_a_saved_state_continues_with_the_same_bits(settings, tmp_path):
    whole, run = finished(begun(**settings)), begun(**settings)
    for record in run:
        if record.step == 6:
            break
    torch.save(run.state_dict(), tmp_path / "state.pt")
    continued = begun(**settings)
    continued.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert continued.training.progress.step == 7
    assert_same_bits(finished(continued), whole)
    if "lora" in settings:
        assert len({row["lora/rank"] for row in whole.history}) > 1, "the rank has changed on the way"


@pytest.mark.parametrize(
    "method", [po.methods.odelora(po.LinearlyImplicit()), po.methods.lora_adam()], ids=lambda m: m.name
)
def test_a_state_is_not_changed_by_the_steps_that_follow(method):
    whole, run = finished(begun(method=method)), begun(method=method)
    for record in run:
        if record.step == 6:
            break
    state = run.state_dict()
    finished(run)
    for _ in range(2):
        continued = begun(method=method)
        continued.load_state_dict(state)
        assert_same_bits(finished(continued), whole)


# Files.


OTHER_RUNS = {
    "another seed": ({"seed": 1}, r"its seed is 0, that of the run 1"),
    "another equation": ({"problem": Heat(kappa=0.7)}, r"its problem is problems\.burgers\.Burgers, that of the run "),
    "another rank": ({"rank": 2}, r"net\.linears\.1\.start_A is \(3, 12\), in the run \(2, 12\)"),
    "another method": (
        {"method": po.methods.lora_gd(po.LinearlyImplicit())},
        r"its method\.name is odelora, that of the run lora_gd",
    ),
    "other points": ({"points": po.Sampling(interior=7)}, r"its points\.interior is \d+, that of the run 7"),
}
DAMAGE = {
    "a weight": lambda s: next(iter(s["solution"].values())).mul_(1 + 1e-12),
    "a row": lambda s: s["history"].pop(),
    "a counter": lambda s: s["training"]["progress"].update(step=4),
}


def test_the_state_of_another_run_is_refused_by_what_differs():
    run = begun(3)
    list(run)
    state = run.state_dict()
    for name, (settings, said) in OTHER_RUNS.items():
        other = begun(3, **settings)
        before = {key: x.clone() for key, x in other.solution.state_dict().items()}
        with pytest.raises(po.InputError, match=rf"^The state to continue from is not that of this run: .*{said}"):
            other.load_state_dict(state)
        after = other.solution.state_dict()
        assert all(torch.equal(x, after[key]) for key, x in before.items() if key in after), name
    for missing in ("training", "optimizer", "history"):
        with pytest.raises(po.InputError, match=rf"not that of this run: it has no {missing}\.$"):
            begun(3).load_state_dict({key: x for key, x in state.items() if key != missing})
    for change in DAMAGE.values():
        changed = copy.deepcopy(state)
        change(changed)
        with pytest.raises(
            po.InputError, match=r"^The state to continue from has changed since it was written, or is da"
        ):
            begun(3).load_state_dict(changed)
    # One of before has neither settings nor digest.
    begun(3).load_state_dict({key: x for key, x in state.items() if key not in ("run", "sha256")})


@pytest.fixture
def saved(tmp_path):
    result = finished(begun())
    result.save(tmp_path / "saved")
    return result


def test_a_saved_result_leaves_what_train_py_leaves(saved, compose, run, tmp_path):
    done = run(compose("budget.steps=12", "log.every=3", "lora.rank=3", f"output_dir={tmp_path / 'typed'}"))
    done.run.conclude(done.result, done.facts)
    typed, ours = tmp_path / "typed", tmp_path / "saved"
    assert {path.name for path in ours.iterdir()} == {path.name for path in typed.iterdir()} - {"last.ckpt"}
    for name in ("adapter", "."):
        assert {path.name for path in (ours / name).iterdir()} <= {path.name for path in (typed / name).iterdir()}
    summary = [json.loads((folder / "summary.json").read_text()) for folder in (ours, typed)]
    assert [*summary[0]] == [*summary[1]]
    assert {name: summary[0][name] for name in ("problem", "method", "integrator")} == {
        name: summary[1][name] for name in ("problem", "method", "integrator")
    }
    assert History(ours / "history.csv").columns == History(typed / "history.csv").columns
    assert rows(History(ours / "history.csv").rows) == rows(saved.history)
    # Both stand in one table.
    assert sum(row["runs"] for row in compare(summaries([ours, typed]))) == 2


def test_a_saved_result_is_loaded_as_the_same_function(saved, tmp_path):
    x, t = np.linspace(-1, 1, 9)[:, None], np.linspace(0, 1, 5)
    assert po.load(tmp_path / "saved")(x, t) == pytest.approx(saved.solution(x, t), rel=1e-11, abs=1e-13)
    saved.adapter.save(tmp_path / "adapter")
    expected, found = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (tmp_path / "saved" / "adapter", tmp_path / "adapter")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_method_on_all_weights_is_saved_as_a_network(tmp_path):
    result = finished(begun(3, method=po.methods.full_adam()))
    result.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "adapter").exists()
    assert float(po.load(tmp_path / "saved")(0.3, 0.4)) == float(result.solution(0.3, 0.4))
    with pytest.raises(po.InputError, match=r"^there is no adapter to save, because all weights were trained"):
        result.adapter.save(tmp_path / "adapter")


def again(folder, to):
    """python train.py --config-path <folder> --config-name config output_dir=<to>"""
    commandline.register()
    with initialize_config_dir(str(folder), version_base="1.3"):
        cfg = hydra_compose("config", [f"output_dir={to}", "logger.kind=csv", "trainer.accelerator=cpu"])
        return commandline.begin(cfg)[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": po.methods.odelora(po.RungeKutta(tableau.BOGACKI_SHAMPINE), retract=False), "points": FIXED},
        {"lora": po.LoRA(rank="adaptive", targets=["linears.1", "linears.2"], also=["biases"], scale=2.0), "seed": 3},
        {"method": po.methods.lora_gd(po.RKC(order=2)), "precision": 32},
        {
            "method": po.methods.lora_adam(lr=1e-2),
            "derivatives": "autograd",
            "problem": Burgers(nu=0.03, conditions="soft"),
            "weighting": po.Weighting("ntk", every=2),
        },
    ],
    ids=["default", "runge_kutta", "adaptive", "rkc", "adam"],
)
def test_the_saved_configuration_repeats_the_run(settings, run, tmp_path):
    result = finished(begun(9, **settings))
    result.save(tmp_path / "saved")
    done = run(again(tmp_path / "saved", tmp_path / "again"))
    assert_same_bits(done.result, result)
    columns = dict.fromkeys(name for row in result.history for name in row)
    assert History(tmp_path / "again" / "history.csv").columns == [*columns]


def test_a_folder_that_holds_a_run_is_not_written_to_and_not_continued(saved, compose, tmp_path):
    with pytest.raises(po.InputError, match="already holds a run"):
        saved.save(tmp_path / "saved")
    with pytest.raises(po.InputError, match=r"is a finished run without last\.ckpt"):
        commandline.begin(compose(f"resume={tmp_path / 'saved'}"))


class Own(nn.Module):
    """A network whose shape cannot be told from plain values."""

    def __init__(self, first):
        super().__init__()
        self.layers = nn.Sequential(first, nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 1)).double()

    def forward(self, x):
        return self.layers(x)


def test_what_no_configuration_describes_is_given_to_load(tmp_path):
    box = po.Box(x=(0, 1), t=(0, 1))
    wave = po.problem(
        coords="xt", region=box, pde=lambda f: f.u_tt - f.u_xx, ic=(box.face(t=0.0), lambda f: f.u - torch.sin(f.x))
    )
    torch.manual_seed(0)
    net = Own(nn.Linear(2, 9))
    result = po.adapt(net, wave, **SHORT, budget=po.Budget(steps=3), device="cpu")
    assert math.isnan(result.rel_l2)
    result.save(tmp_path / "saved")
    with pytest.raises(po.InputError, match=r"cannot build the problem here \(.*\); give it: load\(run, problem="):
        po.load(tmp_path / "saved")
    with pytest.raises(po.InputError, match=r"cannot build the network here \(.*\); give it: load\(run, net=\.\.\.\)"):
        po.load(tmp_path / "saved", problem=wave)
    u = po.load(tmp_path / "saved", net, wave)
    assert float(u(0.3, 0.4)) == pytest.approx(float(result.solution(0.3, 0.4)), rel=1e-11)


# Measurements and unknown coefficients.


def measured(problem, n=30):
    """Values of the reference at random points, as arrays by name."""
    p = problem.region.sample(n, lambda n, d: torch.rand(n, d, generator=torch.Generator().manual_seed(2)).double())
    return {name: p[name][:, 0].numpy() for name in problem.coords} | {"u": problem.reference(p)[:, 0].numpy()}


def test_measurements_are_columns_by_name_or_a_file(tmp_path):
    data = measured(Heat())
    np.savez(tmp_path / "data.npz", **data)
    settings = {"problem": Heat(), "data_weight": 10.0}
    arrays, file = (finished(begun(data=given, **settings)) for given in (data, tmp_path / "data.npz"))
    assert_same_bits(arrays, file)
    plain = finished(begun(problem=Heat()))
    assert "loss/data" in arrays.history[0]
    assert "loss/data" not in plain.history[0]


def test_an_unknown_coefficient_is_found_with_its_interval_and_loaded(run, tmp_path):
    true, guess = Heat(kappa=0.1), Heat(kappa=0.05)
    data = measured(true)
    # Of noisy data the last iterate is settled: a further step would change less than half a standard deviation.
    data["u"] = data["u"] + 1e-3 * np.random.default_rng(0).standard_normal(data["u"].shape)
    settings = {
        "unknown": ["kappa"],
        "data": data,
        "data_weight": 10.0,
        "points": po.Sampling(interior=200, boundary=40, initial_batch_size=125, best_iterate=False),
    }
    result = finished(begun(100, guess, **settings))
    found = result.coefficients["kappa"]
    assert found["estimate"] == pytest.approx(0.1, rel=0.02)
    assert found["low"] < found["estimate"] < found["high"]
    assert found["settled"]
    assert result.problem.kappa == found["estimate"]
    assert [result.history[i]["coefficient/kappa"] for i in (0, -1)] == [0.05, found["estimate"]]
    said = re.search(r"kappa = (\S+) \(95 % interval (\S+) to (\S+)\)", repr(result)).groups()
    width = found["high"] - found["low"]
    assert [float(x) for x in said] == pytest.approx([found[x] for x in ("estimate", "low", "high")], abs=width / 20)
    assert result.summary["coefficients"] == result.coefficients
    result.save(tmp_path / "saved")
    u = po.load(tmp_path / "saved")
    assert u.problem.kappa == found["estimate"]
    assert float(u(0.3, 0.4)) == pytest.approx(float(result.solution(0.3, 0.4)), rel=1e-10)
    # The measurements are in the folder, too.
    assert_same_bits(run(again(tmp_path / "saved", tmp_path / "again")).result, result)


# Failures.


def test_numbers_that_fail_end_the_run_at_the_last_good_solution(tmp_path):
    result = finished(begun(method=po.methods.lora_gd(po.RungeKutta(tableau.EULER, h=1e200))))
    assert "loss term 'pde'" in result.failure
    assert "linears.1" in result.failure
    assert result.diverged
    assert result.steps < 12
    x, t = np.linspace(-1, 1, 9)[:, None], np.linspace(0, 1, 5)
    assert np.isfinite(result.solution(x, t)).all()
    assert all(bool(x.isfinite().all()) for x in result.net.state_dict().values())
    result.save(tmp_path / "saved")
    assert np.isfinite(po.load(tmp_path / "saved")(x, t)).all()
    summary = json.loads((tmp_path / "saved" / "summary.json").read_text())
    assert (summary["diverged"], summary["failure"]) == (True, result.failure)


def test_a_network_that_is_not_finite_is_refused():
    net = network()
    with torch.no_grad():
        net.linears[2].weight[0, 0] = math.nan
    with pytest.raises(po.InputError, match=r"^linears\.2\.weight of the network holds values that are NaN or inf"):
        po.adapt(net, Burgers(), **SHORT, budget=po.Budget(steps=5))


def test_a_network_whose_loss_overflows_is_returned_as_it_was():
    net = network()
    with torch.no_grad():
        net.linears[2].weight[0, 0] = 1e300
    result = po.adapt(net, Burgers(), **SHORT, budget=po.Budget(steps=5))
    assert "NaN or infinite" in result.failure
    assert (result.steps, result.diverged) == (0, True)
    assert result.rel_l2 == pytest.approx(result.rel_l2_before, rel=1e-9)


# Refusals, in the terms of Python.


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 13}, r"^rank is 13, but it must be at most 12 for layer linears\.1 of shape \(12, 12\)\.$"),
        ({"rank": 0}, r"^rank is 0, but it must be a whole number of at least 1 or auto or adaptive\.$"),
        ({"rank": 4, "lora": po.LoRA(rank=4)}, r"^rank and lora are both given, .*: give one\.$"),
        ({"lora": po.LoRA(targets="layers.*")}, r"^Unknown layer pattern in targets: 'layers\.\*'.*linears\.1"),
        ({"unknown": ["nu"]}, r"^nu is unknown, but there are no measurements to find it from: give data, or a "),
        ({"unknown": ["mu"]}, r"^Unknown coefficient of Burgers in unknown: 'mu'; allowed: amplitude, nu\.$"),
        (
            {"unknown": "nu", "method": po.methods.lora_adam(), "data": {"x": [0.1], "t": [0.2], "u": [0.3]}},
            r"^nu is unknown, but only an implicit scheme can find it: choose odelora, lora_gd or full_implicit with",
        ),
        (
            {"method": "lora_adam"},
            r"^method is 'lora_adam', but it must be a Method, such as methods\.lora_adam\(\) or",
        ),
        ({"method": po.methods.lora_adam}, r"^method is <function lora_adam .*, but it must be a Method, such as"),
        ({"budget": 5}, r"^budget is 5, but it must be a Budget, such as Budget\(seconds=10\) or None\.$"),
        ({"points": 500}, r"^points is 500, but it must be a Sampling, such as Sampling\(interior=500\) or None\.$"),
        ({"lora": {"rank": 2}}, r"^lora is \{'rank': 2\}, but it must be a LoRA, such as LoRA\(rank=8\) or None\.$"),
        ({"log": 10}, r"^log is 10, but it must be a Log, such as"),
        ({"seed": -1}, r"^seed is -1, but it must be a whole number of at least 0"),
        ({"precision": 16}, r"^precision is 16, but it must be 32 or 64\.$"),
        ({"derivatives": "jet"}, r"^Unknown derivatives engine 'jet' .*; allowed: auto, autograd, jets\.$"),
        ({"data_weight": 0.0, "data": {"x": [0.1], "t": [0.2], "u": [0.3]}}, r"^data_weight is 0\.0, but"),
        ({"data": {"x": [0.1], "u": [0.3]}}, r"has no column 't'"),
        (
            {"lora": po.LoRA(rank="adaptive"), "method": po.methods.lora_adam()},
            r"^rank is 'adaptive', .* with lora_adam, .*; odelora, lora_gd, scaled_gd and lora_pro adapt the rank\.$",
        ),
        (
            {"lora": po.LoRA(start="zero"), "method": po.methods.odelora(po.RungeKutta(tableau.EULER))},
            r"^start is zero, .*: give h, or start from factors of full rank, orthonormal or pissa\.$",
        ),
        ({"lora": po.LoRA(rank="adaptive", adaptive=po.AdaptiveRank(start=13))}, r"^adaptive\.start is 13, but"),
    ],
)
def test_refusals_name_the_arguments(settings, sentence):
    net = network()
    before = [x.clone() for x in net.state_dict().values()]
    with pytest.raises(po.InputError, match=sentence) as refused:
        po.adapt(net, Burgers(), **settings)
    said = str(refused.value)
    assert said.endswith(".")
    assert not any(word in said for word in ("lora.rank", "data.file", "budget.", "problem."))
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("net", "problem", "sentence"),
    [
        (network(), Kovasznay(), r"\(3, 1\), but it must give \(3, 3\), one column for each of u, v, p\.$"),
        (po.MLP(3, 1), Burgers(), r"^[Tt]he network cannot be called with inputs of shape \(3, 2\)"),
        (network(), Burgers, r"^problem is <class .*, but it must be a Problem, such as Burgers\(nu=0\.02\)\.$"),
        (Burgers(), network(), r"^problem is of type MLP, but it must be a Problem, such as"),
        (lambda x: x, Burgers(), r"^[Tt]he network is a function, not a torch module\.$"),
        (po.MLP(2, 1, depth=1), Burgers(), r"set targets to the layers to adapt, or take a deeper network\.$"),
    ],
)
def test_networks_that_do_not_fit_are_refused(net, problem, sentence):
    with pytest.raises(po.InputError, match=sentence):
        po.adapt(net, problem)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="rang"):
        po.adapt(network(), Burgers(), rang=4)


# Somebody's own Trainer.


def trainer(folder, *callbacks, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": -1}
    return L.Trainer(logger=CSVLogger(folder), callbacks=[*callbacks], **quiet | settings)


def test_a_plain_trainer_fits_an_adaptation_to_the_end(tmp_path):
    module = po.ODELoRAModule(begun(), block=5)
    trainer(tmp_path, enable_checkpointing=False).fit(module)
    assert_same_bits(module.adaptation.result(), finished(begun()))
    logged = History(next(tmp_path.rglob("metrics.csv"))).rows
    assert rows(logged) == rows(module.adaptation.history)


def test_early_stopping_ends_a_run_between_two_blocks(tmp_path):
    run = begun(1000)
    stopping = EarlyStopping("loss", stopping_threshold=1e6)
    trainer(tmp_path, stopping, limit_train_batches=2, enable_checkpointing=False).fit(po.ODELoRAModule(run, block=4))
    assert stopping.stopped_epoch == 0
    result = run.result()
    assert result.steps == 8
    assert [row["step"] for row in result.history] == [0, 3, 6, 8]


def test_a_checkpoint_of_the_lowest_loss_continues_with_the_same_bits(tmp_path):
    best = ModelCheckpoint(tmp_path / "kept", monitor="loss", save_top_k=1)
    whole = begun(24)
    trainer(tmp_path, best, limit_train_batches=2).fit(po.ODELoRAModule(whole, block=3))
    assert Path(best.best_model_path).is_file()
    lowest = min(row["loss"] for row in whole.history[:-1] if (row["step"] + 3) % 6 == 0)
    assert float(best.best_model_score) == pytest.approx(lowest)
    continued = begun(24)
    trainer(tmp_path, enable_checkpointing=False).fit(
        po.ODELoRAModule(continued, block=3), ckpt_path=best.best_model_path
    )
    first = continued.history[0]["step"]
    assert first > 0
    kept = [row for row in whole.history if row["step"] >= first]
    assert rows(continued.history) == rows(kept)


def test_a_limit_of_the_trainer_counts_steps(tmp_path):
    run = begun(1000)
    fitted = trainer(tmp_path, enable_checkpointing=False, max_steps=10)
    fitted.fit(po.ODELoRAModule(run, block=5))
    assert fitted.global_step == run.result().steps == 10


class Splines(nn.Module):
    """A Kolmogorov–Arnold network in small: every edge has a cubic of its own, and there is no linear layer."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(0.4 * torch.randn(2, 5, 3, generator=draw, dtype=torch.float64))
        self.second = nn.Parameter(0.4 * torch.randn(5, 1, 3, generator=draw, dtype=torch.float64))

    def forward(self, x):
        for weight in (self.first, self.second):
            x = torch.einsum("nik,iok->no", torch.tanh(x)[..., None] ** torch.arange(1, 4), weight)
        return x


@pytest.mark.parametrize("method", ["full_adam", "full_lbfgs", "full_implicit"])
def test_a_network_without_linear_layers_is_trained_in_full(method, tmp_path):
    made = getattr(po.methods, method)(*([po.LinearlyImplicit()] if method == "full_implicit" else []))
    settings = SHORT | {"method": made, "points": FIXED, "budget": po.Budget(steps=6), "device": "cpu"}
    result = po.adapt(net := Splines(), Burgers(nu=0.03), **settings)
    losses = [row["loss"] for row in result.history]
    assert losses[-1] < 0.99 * losses[0]
    assert all(
        not torch.equal(p, q) for p, q in zip(net.parameters(), result.solution.solution.net.parameters(), strict=True)
    )
    assert "lora/effective_rank" not in result.history[-1]
    result.save(tmp_path / "run")
    x = np.linspace(-1, 1, 5)
    assert np.array_equal(
        po.load(tmp_path / "run", net=Splines(), problem=Burgers(nu=0.03))(x, 0.5), result.solution(x, 0.5)
    )


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (
            nn.Dropout(0.2),
            r"other values when it is asked again \(in 'pde'\): layer 2 \(Dropout\) draws at random; call net",
        ),
        (nn.BatchNorm1d(5), r"at others \(in 'pde'\): layer 2 \(BatchNorm1d\) mixes rows, .*; call net\.eval\(\)"),
    ],
)
def test_a_layer_that_only_works_once_trained_is_named(layer, sentence):
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), layer, nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1))
    with pytest.raises(po.InputError, match=sentence):
        po.steps(net, Burgers(nu=0.03), rank=2, device="cpu")
    po.steps(net.eval(), Burgers(nu=0.03), rank=2, device="cpu")

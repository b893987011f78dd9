"""The stability study: measures of runs with known answers, a run against the public call, the whole command."""

import json
import math
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

import pinn_odelora as po
from pinn_odelora.__main__ import main
from pinn_odelora.checkpoints import save_network
from pinn_odelora.integrators import LinearlyImplicit
from pinn_odelora.nets import MLP
from pinn_odelora.optim.methods import odelora
from pinn_odelora.rivals.adam import lora_adam
from pinn_odelora.stability import command, report, storage
from pinn_odelora.stability.measures import (
    Interval,
    Study,
    Width,
    bootstrap,
    counted_error,
    diverged,
    end_error,
    rises,
    width,
    works,
    worst_over_best,
)
from pinn_odelora.stability.methods import METHODS, OURS
from pinn_odelora.stability.plan import (
    FULL,
    PROBLEMS,
    QUICK,
    RANK,
    RESIDUALS,
    SLICED_METHODS,
    SLICES,
    Case,
    Form,
    cases,
)
from pinn_odelora.stability.predictions import DIVERGED, WIDTHS
from pinn_odelora.stability.running import MARKS, Mark, costs, followed, hopeless, perform, points
from pinn_odelora.stability.studying import finished
from pinn_odelora.stability.verdicts import (
    CLAIMS,
    EXPLICIT,
    IMPLICIT,
    default_error,
    judge,
    outcome,
    shared,
    targets,
    verdicts,
)
from problems.burgers import Burgers

RESULTS = Path(__file__).parents[1] / "docs/results/stability"
TINY = Form((0,), 6, (-1.0, 0.0, 1.0), (0.0,), (), 0.5)


def net(seed=3):
    return MLP(2, 1, width=8, depth=3, generator=torch.Generator().manual_seed(seed)).double()


# The plan.


def test_a_part_of_the_study_is_a_study_seed_by_seed():
    for form in (FULL, QUICK):
        planned = [*cases(form), *cases(form, timed=True)]
        assert len({case.name for case in planned}) == len(planned)
        seeds = [case.seed for case in cases(form)]
        assert seeds == sorted(seeds)
        assert set(seeds) == set(form.seeds)
    first = [case for case in cases(FULL) if case.seed == FULL.seeds[0] and case.part == "main"]
    assert {case.problem for case in first} == set(PROBLEMS)
    assert {case.method for case in first} == {name for name, entry in METHODS.items() if entry.present}


def test_the_full_form_has_eleven_step_sizes_over_five_decades_and_three_seeds():
    found = [c for c in cases(FULL, ["burgers"], ["lora_adam"]) if c.part == "main" and c.seed == 1]
    assert len(found) == 11
    assert math.log10(found[-1].step / found[0].step) == pytest.approx(5)
    assert found[5].step == pytest.approx(lora_adam().settings["lr"])
    assert len(FULL.seeds) == 3
    sliced = [case for case in cases(FULL, ["burgers"], ["lora_adam"]) if case.part == "slice" and case.seed == 1]
    assert len(sliced) == len(SLICES) * len(FULL.sliced)


def test_integrators_are_run_with_the_step_size_that_they_find_too_and_the_defaults_with_that_alone():
    steps = lambda name: [c.step for c in cases(FULL, ["burgers"], [name]) if c.part == "main" and c.seed == 1]
    assert steps(OURS) == [None]
    for name in (IMPLICIT, *EXPLICIT, "odelora_rkc2", "lora_gd"):
        assert steps(name).count(None) == 1
        assert len(steps(name)) == 12 + len(FULL.beyond.get(name, ()))


def test_predictions_are_of_methods_that_take_part():
    assert set(WIDTHS) == set(METHODS) - {OURS}
    assert set(DIVERGED) == set(METHODS)
    assert set(SLICED_METHODS) < set(METHODS)


# A run.


def case(method="lora_adam", step=3e-3, **settings):
    return replace(Case("burgers", method, step, 4, rank=2, evaluations=12, residuals=60), **settings)


@pytest.mark.parametrize(
    ("name", "step", "method"),
    [("lora_adam", 7e-3, lora_adam(7e-3)), (IMPLICIT, 0.3, odelora(LinearlyImplicit(0.3)))],
)
def test_a_mark_is_what_a_run_with_that_budget_reaches(name, step, method):
    made = perform(case(name, step), net())
    for mark in made["marks"][:: MARKS // 6]:
        same = {"points": points(case()), "seed": 4, "log": po.Log(heldout=512, test=1024)}
        run = po.steps(net(), Burgers(), rank=2, method=method, budget=po.Budget(gradient_evals=20), **same)
        there = run.training.objective.snapshot()
        for record in run:
            if record.gradient_evals > mark[0]:
                break
            there = run.training.objective.snapshot()
        run.training.objective.restore(there)
        assert mark[1] == pytest.approx(run.diagnostics.reference.loss(), rel=1e-9)
        assert mark[2] == pytest.approx(run.diagnostics.reference.errors()["error/rel_l2"], rel=1e-9)
    assert [mark[0] for mark in made["marks"]] == [0, *costs(case())]
    assert made["marks"][-1][1] != made["marks"][0][1]


def test_the_iterate_and_what_is_returned_differ_where_a_run_returns_its_best():
    made = perform(case(OURS, None, points="default", evaluations=60), net())
    iterate, returned = ([mark[k] for mark in made["marks"]] for k in (1, 3))
    assert iterate != returned
    assert min(returned) < returned[0]


def test_balance_and_condition_are_those_of_the_factors():
    even = po.Sampling.even(60, 12)
    run = po.steps(net(), Burgers(), rank=2, method=lora_adam(0.05), points=even, budget=po.Budget(steps=5))
    last = followed(run, [5.0]).marks[-1]
    layers = [(x.A.detach(), x.B.detach()) for x in run.training.objective.layers.values()]
    assert last.balance == pytest.approx(max(float((B.T @ B - A @ A.T).norm()) for A, B in layers))
    assert last.condition_a == pytest.approx(max(float(torch.linalg.cond(A @ A.T)) for A, _ in layers))
    assert last.condition_b == pytest.approx(max(float(torch.linalg.cond(B.T @ B)) for _, B in layers))


def test_a_run_by_seconds_has_marks_at_seconds_of_its_clock():
    ticks = count()
    made = perform(case(seconds=30.0, evaluations=None), net(), clock=lambda: float(next(ticks)))
    assert [mark[0] for mark in made["marks"]] == [0, *map(float, range(1, 31))]
    assert made["steps"] == made["evaluations_spent"] <= 31


def test_hopeless_runs_are_broken_off_and_diverge():
    made = perform(case(step=1e4, evaluations=90), net())
    assert made["broken_off"]
    assert made["evaluations_spent"] < 90
    assert diverged(storage.flat(made))
    assert end_error(storage.flat(made)) == math.inf
    mark = lambda x: (0.0, x, *[0.0] * 6)
    late = [Mark(*mark(1.0)), *[Mark(*mark(20_000.0))] * 16]
    assert hopeless(late, 30)
    assert not hopeless(late[:9], 30)
    assert not hopeless([*late, Mark(*mark(9999.0))], 30)


def test_what_a_method_refuses_is_a_failed_run():
    made = storage.flat(perform(case(rank=50), net()))
    assert "rank" in made["failure"]
    assert diverged(made)
    assert not works(made)


# Measures.


def row(problem="burgers", method="lora_adam", step=1.0, seed=0, part="main", errors=(1.0, 0.05), **other):
    heldout = other.pop("heldout", tuple(x and x * x for x in errors))
    plain = {"failure": "", "broken_off": False, "peak_condition_a": 2.0, "peak_condition_b": 3.0, "peak_balance": 0.1}
    plain["seconds_spent"] = 2.5
    own = {"problem": problem, "method": method, "step": step, "seed": seed, "part": part}
    alone = {"rank": str(RANK), "start": "pissa", "precision": 64, "points": "fresh", "residuals": RESIDUALS}
    curves = {"error": [*errors], "heldout": [*heldout], "error_returned": None, "heldout_returned": None}
    return plain | own | alone | curves | other


def test_the_width_is_that_of_the_longest_row_of_neighbours():
    steps = [10.0**k for k in range(6)]
    yes, no = True, False
    assert width(steps, [no, yes, yes, no, yes, no]) == Width(1.0, False, False)
    assert width(steps, [yes, no, yes, yes, yes, yes]) == Width(3.0, False, True)
    assert width(steps, [yes, yes, no, no, no, no]) == Width(1.0, True, False)
    assert width(steps, [no, no, yes, no, no, no]).decades == 0
    assert width(steps, [no] * 6) == Width(0.0, False, False)


def test_a_run_diverges_by_what_it_returns():
    assert not diverged(row())
    assert diverged(row(errors=(1.0, 1.1)))
    assert diverged(row(errors=(1.0, None), heldout=(1.0, None)))
    assert diverged(row(failure="NaN"))
    assert diverged(row(broken_off=True))
    assert not diverged(row(errors=(1.0, 1.1), heldout_returned=[1.0, 0.2]))


def test_a_step_size_works_at_a_tenth_of_the_error():
    assert works(row(errors=(0.5, 0.3, 0.05)))
    assert not works(row(errors=(0.5, 0.01, 0.051)))
    assert not works(row(errors=(0.5, None)))
    assert works(row(errors=(0.5, 0.2)), 0.5)
    study = Study(row(step=10.0**k, errors=(1.0, x)) for k, x in enumerate((0.4, 0.05, 0.3, 0.6)))
    assert (study.width("burgers", "lora_adam", 0).decades, study.width("burgers", "lora_adam", 0, 0.5).decades) == (
        0,
        2,
    )
    assert end_error(row(errors=(0.5, None))) == math.inf
    assert counted_error(row(errors=(0.5, 3.0))) == counted_error(row(errors=(0.5, None))) == 0.5
    assert counted_error(row(errors=(1.5, 1.2))) == 1.2
    assert worst_over_best([0.5, 0.1]) == 5
    assert worst_over_best([0.5, math.inf]) == worst_over_best([math.inf]) == math.inf


def test_rises_count_intervals_and_keep_the_largest():
    found = rises([4.0, 2.0, 3.0, 3.0, 1.0, 1.2])
    assert found.share == pytest.approx(2 / 5)
    assert found.largest == pytest.approx(0.5)
    assert rises([1.0, math.inf, math.inf]) == (0.5, math.inf)
    assert rises([3.0, 2.0]) == (0.0, 0.0)


def test_the_bootstrap_contains_its_estimate_and_knows_a_constant():
    assert bootstrap({"a": [2.0, 2.0], "b": [2.0]}) == (2.0, 2.0, 2.0)
    found = bootstrap({"a": [1.0, 2.0, 3.0], "b": [5.0, 7.0, 6.0]})
    assert found.value == pytest.approx(4.0)
    assert 1.0 <= found.low < 3.0
    assert 5.0 < found.high <= 7.0
    assert bootstrap({"a": []}) is None


# Verdicts.


def two_methods(ours, theirs):
    """Errors at the step sizes 1, 10, 100 of the implicit scheme and of Adam, on four problems with two seeds."""
    return Study(
        row(problem, method, 10.0**k, seed, errors=(1.0, errors[k]))
        for problem in PROBLEMS
        for seed in (0, 1)
        for method, errors in ((IMPLICIT, ours), ("lora_adam", theirs))
        for k in range(3)
    )


def test_a_claim_holds_where_ours_is_better_and_not_where_it_is_worse():
    study = two_methods((0.01, 0.02, 0.05), (0.05, 0.5, 2.0))
    found = {v.claim.text: v for v in (judge(study, claim, [IMPLICIT]) for claim in CLAIMS)}
    assert found["more step sizes work"].difference == pytest.approx((2.0, 2.0, 2.0))
    assert found["more step sizes work"].outcome == "holds"
    assert found["fewer step sizes diverge"].difference.value == pytest.approx(-1 / 3)
    assert found["the error at the best step size is smaller"].difference.value == pytest.approx(
        math.log10(0.01 / 0.05)
    )
    assert found["the factors stay better conditioned"].outcome == "undecided"
    assert found["the error after equal seconds, without tuning, is smaller"].outcome == "not run"
    swapped = two_methods((0.05, 0.5, 2.0), (0.01, 0.02, 0.05))
    assert judge(swapped, CLAIMS[0], [IMPLICIT]).outcome == "does not hold"


def test_too_few_problems_decide_nothing():
    study = two_methods((0.01, 0.02, 0.05), (0.05, 0.5, 2.0))
    few = Study(run for run in study.rows if run["problem"] in PROBLEMS[:3])
    found = judge(few, CLAIMS[0], [IMPLICIT])
    assert (found.outcome, found.ahead, found.problems) == ("undecided", 3, 3)


def test_verdicts_are_by_the_step_sizes_that_all_methods_have():
    step = METHODS[IMPLICIT].middle * 10 ** FULL.places[-1]
    more = [row(step=step * 10 ** (0.5 * k), method=IMPLICIT) for k in range(-1, 8)] + [row(step=1e9)]
    kept = shared(Study([*more, row(method=IMPLICIT, step=None)]))
    assert sorted(x["step"] or 0 for x in kept.rows) == pytest.approx([0, step / 10**0.5, step, 1e9])
    planned = [c for c in cases(FULL, ["burgers"]) if c.part == "main" and c.seed == 1 and c.step is not None]
    left = shared(Study(row(method=c.method, step=c.step) for c in planned))
    assert {name: len(left.grid("burgers", name)) for name in left.methods} == dict.fromkeys(left.methods, 11)


def test_a_default_that_was_not_run_is_not_replaced_by_another_step_size():
    rate = METHODS["lora_rite"].default
    study = Study(row(method="lora_rite", step=rate * 10**k, errors=(1.0, 10.0**k)) for k in (-2, -1, 0))
    assert default_error(study, "burgers", "lora_rite", 0) == pytest.approx(0)
    part = Study(study.rows[:2])
    assert default_error(part, "burgers", "lora_rite", 0) is None


def test_an_interval_with_zero_inside_is_undecided():
    assert outcome(None, larger=False) == "not run"
    assert outcome(Interval(0.5, 0.1, 2), larger=False) == "does not hold"
    assert outcome(Interval(0.5, 0.1, 2), larger=True) == "holds"
    assert outcome(Interval(0.5, -0.1, 2), larger=True) == "undecided"


def defaults(errors, timed, seeds=(0, 1)):
    own = [row(p, OURS, None, seed, errors=(1.0, errors)) for p in PROBLEMS for seed in seeds]
    return own + [
        row(p, OURS, None, s, "timed", errors=(1.0, x)) for p in PROBLEMS for s, x in zip(seeds, timed, strict=False)
    ]


def test_the_targets_are_met_short_or_incomplete():
    states = lambda rows: [target.state for target in targets(Study(rows), PROBLEMS, (0, 1))]
    good = defaults(0.01, (0.001, 0.002))
    assert states(good) == ["met", "met", "incomplete", "met"]
    assert states(good[1:]) == ["incomplete", "incomplete", "incomplete", "met"]
    assert states(defaults(1.5, (0.001, 0.004))) == ["short", "short", "incomplete", "short"]
    wide = [
        row(p, IMPLICIT, 10.0**k, s, errors=(1.0, 0.05 if k < 5 else 0.5))
        for p in PROBLEMS
        for s in (0, 1)
        for k in range(6)
    ]
    assert states(good + wide)[2] == "met"
    assert states(good + [r for r in wide if r["step"] > 1])[2] == "short"
    assert states(good + [r for r in wide if r["step"] > 1 and r["seed"] == 0])[2] == "incomplete"
    assert command.code(targets(Study(good + wide), PROBLEMS, (0, 1))) == 0
    assert command.code(targets(Study(good), PROBLEMS, (0, 1))) == 2
    assert command.code(targets(Study(defaults(1.5, (1, 1))), PROBLEMS, (0, 1))) == 1


# The command and the page.


@pytest.fixture
def studied(tmp_path, monkeypatch, capsys):
    """``studied(*arguments)``: exit code and output of the quick form, which is tiny here; networks are there."""
    monkeypatch.setattr(command, "QUICK", TINY)
    for problem in ("burgers", "convection"):
        fresh = MLP(2, 1, generator=torch.Generator().manual_seed(1)).double()
        save_network(fresh, tmp_path / "networks" / f"{problem}.safetensors", {})

    def call(*arguments):
        code = main(["study", "stability", "--quick", "--runs", str(tmp_path), "--workers", "1", *arguments])
        return code, *capsys.readouterr()

    return call


@pytest.mark.slow
def test_the_quick_form_runs_what_is_missing_and_reports(studied, tmp_path):
    chosen = ("--problems", "burgers", "--methods", "lora_adam")
    code, out, _ = studied(*chosen)
    assert code == 2  # no target is missed, but most runs are
    files = sorted((tmp_path / "runs").glob("*.json"))
    assert len(files) == 3
    page = (tmp_path / "report-quick" / "README.md").read_text()
    assert "| lora_adam | default |" in page
    assert (tmp_path / "report-quick" / "stability.png").stat().st_size > 5000
    assert out.splitlines()[-1] == str(tmp_path / "report-quick" / "README.md")
    written = {file: file.stat().st_mtime_ns for file in files[1:]}
    files[0].write_text(files[0].read_text()[:100])  # as a disk may leave it
    code, out, _ = studied(*chosen)
    assert out.count("#") == 1
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == written
    assert json.loads(files[0].read_text())["marks"]
    again = tmp_path / "again"
    assert studied("--report", "--results", str(again))[0] == 2
    assert (again / "README.md").read_text() == page


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path):
    own = case()
    file = tmp_path / "runs" / f"{own.name}.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**own.as_dict(), "marks": []}))
    assert finished(tmp_path, own) is not None
    file.write_text(json.dumps({**own.as_dict(), "rank": 3, "marks": []}))
    assert finished(tmp_path, own) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--methods", "lora_adm"), "Unknown method 'lora_adm' (did you mean 'lora_adam'?)"),
        (("--problems", "heat"), "Unknown problem 'heat'; allowed: allen_cahn, burgers, convection, kovasznay."),
        (("--report", "--runs", "nothing"), "nothing holds no run of this study: leave --report out"),
        (("--workers", "0"), "workers is 0, but it must be a whole number of at least 1."),
    ],
)
def test_invalid_input_is_one_sentence(studied, arguments, sentence):
    code, _, said = studied(*arguments)
    assert code == 2
    assert said.startswith(sentence)


def test_without_pyarrow_nothing_is_run(studied, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, said = studied("--problems", "burgers", "--methods", "lora_adam")
    assert code == 2
    assert said == "The report of a study needs pyarrow: pip install 'pinn-odelora[study]'.\n"
    assert not (tmp_path / "runs").exists()


def test_a_row_survives_the_file(tmp_path):
    made = [storage.flat(perform(case(step=step), net())) for step in (3e-3, 1e4)]
    storage.write(made, tmp_path / "runs.parquet")
    back = storage.read(tmp_path / "runs.parquet")
    assert [r["step"] for r in back] == [3e-3, 1e4]
    for before, after in zip(made, back, strict=True):
        assert after["error"] == pytest.approx([math.nan if x is None else x for x in before["error"]], nan_ok=True)
        assert diverged(before) == diverged(after)
    with pytest.raises(po.InputError, match="does not exist: run the study first"):
        storage.read(tmp_path / "none.parquet")


def test_every_section_is_written_from_a_whole_study():
    rows = [
        row(p, name, step, seed, errors=(1.0, 0.3, 0.02 * (seed + 1) * (step or 0.1)))
        for p in PROBLEMS
        for name in METHODS
        for seed in (0, 1)
        for step in ((None,) if name == OURS else (0.1, METHODS[name].default or 1.0, 10.0))
    ]
    rows[0] |= {"error_returned": [1.0, 0.3, 0.01], "heldout_returned": [1.0, 0.3, 0.01], "heldout": [1.0, 0.3, 2.0]}
    rows += [row(p, name, None, s) for p in PROBLEMS for name in (IMPLICIT, *EXPLICIT) for s in (0, 1)]
    rows += [row(p, name, None, s, "timed", errors=(1.0, 0.01)) for p in PROBLEMS for name in METHODS for s in (0, 1)]
    rows += [
        row("burgers", name, 1.0, 0, "slice", **{**varied, "rank": str(varied.get("rank", RANK))})
        for name in SLICED_METHODS
        for varied in SLICES
    ]
    study = Study(rows)
    page = report.page(study, FULL, PROBLEMS)
    assert "Not run" not in page
    assert len(verdicts(study)) == 2 * len(CLAIMS) + 4
    assert "| lora_rite | default | 3.0e-05 [2.0e-05, 4.0e-05] (0.001) |" in page
    assert "| odelora | default, last iterate |" in page
    assert "| odelora | 0 of 2 | 0 of 2 | 0 of 2 | 0 of 2 | 0.00 [0.00, 0.00] | 1 of 8 |" in page


@pytest.mark.skipif(not (RESULTS / report.RUNS).is_file(), reason="the full study has not been run")
def test_the_committed_page_is_that_of_the_stored_runs():
    study = Study(storage.read(RESULTS / report.RUNS))
    assert report.page(study, FULL, PROBLEMS) == (RESULTS / report.PAGE).read_text(encoding="utf-8")

"""The race measures what it says: errors of iterates that existed, rivals that differ, and verdicts that follow."""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import race as command
from racing import plan, report, running
from racing.cases import CASES, Case
from racing.contenders import CONTENDERS, NATURAL, NATURAL_EVEN, OURS, RIVALS, SCHEMES, Contender
from racing.plan import SWEEP_SEED, Job, best_rate, finished, jobs
from racing.results import Results
from racing.verdict import best_rival, verdicts

from pinn_odelora.config import build
from pinn_odelora.methods import full_soap
from pinn_odelora.selection.best_iterate import BestIterate, Iterate

TINY = Case(
    "burgers",
    (
        *("problem=burgers", "net.width=12", "points.interior=400", "points.boundary=12"),
        *("pretrain.adam_steps=3", "pretrain.lbfgs_evals=0"),
    ),
    seeds=(0, 1),
)
ABLE = [
    pytest.param(c, marks=pytest.mark.skipif(bool(c.missing), reason=f"{c.missing} is missing"), id=c.name)
    for c in CONTENDERS.values()
]


def ticking(seconds=1.0):
    """A clock by which every step takes the same time."""
    return itertools.count(0.0, seconds).__next__


@pytest.fixture
def enter(tmp_path):
    return lambda contender, seed=0: running.enter(TINY, contender, seed, tmp_path / "cache")


# A run.


@pytest.mark.parametrize("contender", ABLE)
def test_every_contender_takes_steps(enter, contender):
    entry = enter(contender)
    before, _ = entry.training.objective.snapshot()
    # A second for every step, and for every validation loss where a run returns the best iterate.
    seconds = 5.0 if entry.training.returns_best else 2.0
    made = running.race(entry, seconds, rate=1e-3 if contender.rates else None, clock=ticking())
    assert made["failure"] is None
    assert made["marks"][-1]["steps"] == 2
    assert made["marks"][-1]["evaluations"] >= 2
    assert any(not torch.equal(x, p) for x, p in zip(before, entry.training.objective.parameters, strict=True))


def test_the_error_at_a_mark_is_that_of_the_iterate_that_was_there(enter):
    """A step of 1 s that begins at 2 s is not there at 2.5 s; and looking back does not change the run."""
    contender = Contender("adam", ("method=full_adam",), rates=(1e-2,))
    made = running.race(enter(contender), 2.5, 1e-2, ticking())
    errors = [running.race(enter(contender), 2.5, 1e-2, ticking(2.5 / n))["marks"][-1] for n in (0.9, 1.9, 2.9)]
    by_time = {mark["seconds"]: mark for mark in made["marks"]}
    assert [by_time[t]["steps"] for t in (0.0, 0.3, 1, 2, 2.5)] == [0, 0, 1, 2, 2]
    assert by_time[0.3]["rel_l2"] == by_time[0.0]["rel_l2"] == errors[0]["rel_l2"]
    assert by_time[1]["rel_l2"] != by_time[0.0]["rel_l2"]
    assert by_time[2.5]["rel_l2"] == by_time[2]["rel_l2"]


def test_looking_back_leaves_the_run_as_it_is(enter):
    adam = CONTENDERS["full_adam"]
    looked, unlooked = enter(adam), enter(adam)
    running.race(looked, 3.5, 1e-2, ticking())
    unlooked.training.clock = ticking()
    for _ in itertools.islice(running.records(unlooked, 3.5, 1e-2), 4):
        pass
    for p, q in zip(looked.training.objective.parameters, unlooked.training.objective.parameters, strict=True):
        assert torch.equal(p, q)


def test_a_mark_has_the_error_of_the_best_iterate_so_far(enter, monkeypatch):
    """The second iterate is the best, whatever follows."""
    entry, errors = enter(CONTENDERS[OURS]), []
    reference = entry.reference

    def consider(best, objective, small):
        errors.append(reference.errors()["error/rel_l2"])
        if len(errors) <= 3:
            best.candidate = Iterate(*objective.snapshot())

    def close(best, objective, V):
        best.best = best.candidate

    monkeypatch.setattr(BestIterate, "consider", consider)
    monkeypatch.setattr(BestIterate, "close", close)
    made = running.race(entry, 15.0, clock=ticking())
    by_time = {mark["seconds"]: mark["rel_l2"] for mark in made["marks"]}
    assert [by_time[t] for t in (2, 3, 5, 10, 15)] == [errors[0], errors[1], errors[2], errors[2], errors[2]]
    assert reference.errors()["error/rel_l2"] == errors[2]
    assert len(set(errors)) == len(errors) == 9


def test_the_clock_stands_while_things_are_measured(enter, monkeypatch):
    entry = enter(CONTENDERS["full_adam"])
    now = [0.0]
    reference, objective = entry.reference, type(entry.training.objective)
    errors, ask = reference.errors, objective.__call__
    monkeypatch.setattr(reference, "errors", lambda: now.__setitem__(0, now[0] + 100) or errors())
    monkeypatch.setattr(objective, "__call__", lambda self: now.__setitem__(0, now[0] + 1) or ask(self))
    made = running.race(entry, 2.5, 1e-3, clock=lambda: now[0])
    assert made["spent"] == 3.0


def test_failing_numbers_end_a_run_and_keep_the_last_error(enter, monkeypatch):
    entry = enter(CONTENDERS["full_adam"])
    objective, begin = entry.training.objective, entry.training.objective.begin

    def failing(batch):
        if entry.training.progress.step == 2:
            with torch.no_grad():
                objective.parameters[0].fill_(math.nan)
        begin(batch)

    monkeypatch.setattr(objective, "begin", failing)
    made = running.race(entry, 5.0, 1e-3, ticking())
    assert made["diverged"]
    assert "NaN" in made["failure"]
    errors = {mark["seconds"]: mark["rel_l2"] for mark in made["marks"]}
    # Put back to the last point with finite loss and gradient, where the second step began.
    assert errors[5.0] == errors[3] == errors[1]
    assert math.isfinite(errors[5.0])


def test_a_run_that_asks_for_nothing_new_holds_its_error(enter):
    entry = enter(CONTENDERS["full_lbfgs"])
    entry.training.optimizer = torch.optim.SGD(entry.training.objective.parameters, lr=0.0)
    made = running.race(entry, 30.0, None, ticking())
    assert made["stalled"]
    assert made["marks"][-1]["evaluations"] == 1
    assert {mark["rel_l2"] for mark in made["marks"]} == {made["marks"][0]["rel_l2"]}


def test_resampling_means_new_points_and_an_empty_memory(enter):
    entry = enter(CONTENDERS["full_lbfgs_resampled"]._replace(renewed=7))
    training = entry.training
    batches, optimizers, counts = [], [training.optimizer], []
    for _ in itertools.islice(running.records(entry, 1.0), 20):
        batches.append(training.objective.batch)
        optimizers.append(training.optimizer)
        counts.append(training.objective.count)
    del optimizers[-1]  # of a step that is not taken
    numbers = [batch.number for batch in batches]
    assert numbers[0] == 0
    assert numbers[-1] >= 2
    same_points = [a == b for a, b in itertools.pairwise(numbers)]
    assert same_points == [p is q for p, q in itertools.pairwise(optimizers)]
    last = dict(zip(numbers, counts, strict=True))
    assert all(b - a >= 7 for a, b in itertools.pairwise([0, *last.values()][:-1]))
    first, second = (next(b for b in batches if b.number == n).points["pde"] for n in (0, 1))
    assert not torch.equal(first["x"], second["x"])


def test_points_are_those_of_a_run_of_the_program(enter):
    entry = enter(CONTENDERS[OURS], seed=3)
    own = entry.training.sampler
    sampler = build.experiment(entry.cfg).adaptation.training.sampler
    assert entry.cfg.seed == sampler.seed == own.seed == 3
    assert torch.equal(own.draw(5).points["pde"]["x"], sampler.draw(5).points["pde"]["x"])


def test_cosine():
    assert running.cosine(0.3, 0, 10) == 0.3
    assert running.cosine(0.3, 5, 10) == pytest.approx(0.15)
    assert running.cosine(0.3, 10, 10) == running.cosine(0.3, 11, 10) == pytest.approx(0, abs=1e-16)
    assert running.cosine(0.3, 2, 10) == pytest.approx(0.3 * math.cos(0.1 * math.pi) ** 2)


def test_rises_count_once_the_run_has_settled():
    heldout = running.Heldout()
    for number, loss in ((0, 1.0), (3, 5.0), (10, 8.0), (20, 2.0), (30, 2.5), (40, 1.0)):
        heldout.look(number, loss)
    assert heldout.largest_rise == 0.25
    assert (heldout.first, heldout.last) == (1.0, 1.0)


# The contenders.


def test_rivals_train_what_their_names_say(enter):
    kinds = {"adam": "Adam", "soap": "SOAP", "lbfgs": "LBFGS", "ssbroyden": "SSBroyden"}
    for name in RIVALS:
        if not CONTENDERS[name].missing:
            entry = enter(CONTENDERS[name])
            solution, training = entry.adaptation.solution, entry.training
            trained = [n for n, p in solution.named_parameters() if p.requires_grad]
            in_factors = [n for n in trained if "lora_" in n]
            assert len(in_factors) == (0 if name.startswith("full") else 6)
            assert len(trained) == 10 or not name.startswith("full")
            assert len(training.objective.parameters) == sum(p.requires_grad for p in solution.parameters())
            kind = type(training.optimizer).__name__
            assert kind.endswith(kinds[name.split("_")[1]])


def test_fixed_points_are_for_quasi_newton_methods_alone(enter):
    fresh = {
        name: running.configuration(TINY, contender, 0).points.fresh
        for name, contender in CONTENDERS.items()
        if not contender.missing
    }
    assert {name for name, is_fresh in fresh.items() if not is_fresh} == {
        "lora_lbfgs",
        "full_lbfgs",
        "lora_ssbroyden",
        "full_ssbroyden",
    }


def test_soap_minimises_an_ill_conditioned_quadratic_in_float64(generator):
    """½⟨W - T, L (W - T) R⟩ with L and R of condition 100 in any basis, where Adam stops far off."""
    pytest.importorskip("pytorch_optimizer")

    def definite(n):
        Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
        return Q @ torch.diag(torch.logspace(0, -2, n, dtype=torch.float64)) @ Q.mT

    T = torch.randn(12, 8, dtype=torch.float64, generator=generator)
    L, R = definite(12), definite(8)
    W = torch.nn.Parameter(torch.zeros_like(T))
    optimizer = full_soap().optimizer([{"params": [W]}])
    defaults = optimizer.param_groups[0]
    assert (defaults["betas"], defaults["precondition_frequency"], defaults["eps"]) == ((0.95, 0.95), 10, 1e-8)
    for k in range(2000):
        defaults["lr"] = running.cosine(2e-2, k, 2000)
        W.grad = (L @ (W - T) @ R).detach()
        optimizer.step()
    assert (W - T).norm() < 1e-4 * T.norm()


def test_a_contender_without_its_configuration_does_not_race():
    assert Contender("x", ("method=no_such",)).missing == "configs/method/no_such.yaml"
    assert Contender("x", package="no_such_package").missing == "the package no_such_package"
    assert Contender("x", ("method=lora_adam",)).missing is None


def test_the_cases_are_the_jumps_that_they_say():
    wide = [name for name, case in CASES.items() if case.width == 128]
    assert wide == ["burgers_wide", "convection_wide", "kovasznay_wide"]
    for case in CASES.values():
        cfg = running.configuration(case, CONTENDERS[OURS], 0)
        assert cfg.net.get("width", 40) == case.width
        assert cfg.log.test == running.TEST_POINTS


# The plan.


def test_seed_by_seed_and_the_sweep_before_its_first_use():
    cases = [Case("a", (), (0, 1)), Case("b", (), (0,))]
    swept, plain = Contender("swept", rates=(0.1, 0.2)), Contender("plain")
    planned = [(j.case.name, j.contender.name, j.seed, j.seconds, j.rate) for j in jobs(cases, [swept, plain], 30.0)]
    race_of = lambda case, seed: [(case, "swept", seed, 10, None), (case, "swept", seed, 30, None)]
    sweep_of = lambda case: [(case, "swept", SWEEP_SEED, 10, 0.1), (case, "swept", SWEEP_SEED, 10, 0.2)]
    first = [x for c in "ab" for x in (*sweep_of(c), *race_of(c, 0), (c, "plain", 0, 30, None))]
    assert planned == [*first, *race_of("a", 1), ("a", "plain", 1, 30, None)]
    assert all(job.seed == 1 or job.rate for job in jobs(cases, [swept, plain], 30.0, seeds=[1]))


def test_no_seed_of_the_sweep_is_reported():
    assert all(SWEEP_SEED not in case.seeds for case in CASES.values())


def test_the_best_rate_did_not_diverge(tmp_path):
    case, contender = Case("a", ()), Contender("swept", rates=(0.1, 0.2, 0.3))
    for job, error, diverged in zip(plan.sweep(case, contender, 30.0), (3e-2, 2e-2, 1e-2), (0, 0, 1), strict=True):
        with pytest.raises(LookupError, match=r"sweep of swept on a"):
            best_rate(tmp_path, case, contender, 30.0)
        (tmp_path / job.file).write_text(json.dumps({"diverged": bool(diverged), "marks": [{"rel_l2": error}]}))
    assert best_rate(tmp_path, case, contender, 30.0) == 0.2
    assert best_rate(tmp_path, case, Contender("plain"), 30.0) is None


def test_a_finished_run_is_not_repeated_and_a_broken_one_is(tmp_path, monkeypatch):
    made = []

    def quick(entry, seconds, rate):
        made.append((seconds, rate))
        return {"marks": [{"seconds": seconds, "rel_l2": 0.1 * len(made), "evaluations": 1, "steps": 1}]} | {
            "diverged": False
        }

    monkeypatch.setattr(command, "enter", lambda *_: None)
    monkeypatch.setattr(command, "race", quick)
    case, adam = CASES["heat"], Contender("adam", ("method=full_adam",), rates=(1e-3, 3e-3, 1e-2))
    every = list(jobs([case], [adam], 30.0, seeds=[0]))
    for job in every:
        assert command.run(job, tmp_path, 30.0, None)
    assert made == [(10, 1e-3), (10, 3e-3), (10, 1e-2), (10, 1e-3), (30, 1e-3)]
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == sorted(job.file for job in every)
    assert all(command.run(job, tmp_path, 30.0, None) is None for job in every)
    broken = tmp_path / every[-1].file
    broken.write_text(broken.read_text()[:-20])
    assert finished(broken) is None
    assert [bool(command.run(job, tmp_path, 30.0, None)) for job in every] == [False] * 4 + [True]
    assert finished(broken)["seconds"] == 30
    assert finished(broken)["versions"].keys() == {"torch", "python", "commit"}


def test_a_run_is_repeated_when_a_wider_sweep_has_found_a_better_rate(tmp_path, monkeypatch):
    error = {None: 0.3, 1e-3: 0.1, 3e-3: 0.2, 1e-4: 0.05}
    found = lambda entry, seconds, rate: {"marks": [{"rel_l2": error[rate], "evaluations": 1}], "diverged": False}
    monkeypatch.setattr(command, "enter", lambda *_: None)
    monkeypatch.setattr(command, "race", found)
    narrow, wide = (Contender("adam", rates=rates) for rates in ((1e-3, 3e-3), (1e-4, 1e-3, 3e-3)))
    made = lambda contender: [
        command.run(job, tmp_path, 30.0, None) for job in jobs([CASES["heat"]], [contender], 30.0, seeds=[0])
    ]
    assert [run["rate"] for run in made(narrow)] == [1e-3, 3e-3, 1e-3, 1e-3]
    assert made(narrow) == [None] * 4
    assert [run and run["rate"] for run in made(wide)] == [1e-4, None, None, 1e-4, 1e-4]


def test_only_runs_with_the_best_rate_of_the_sweep_count():
    made = lambda seed, rate, error, **facts: made_up("a", "adam", seed, {10: error}, 10.0, rate=rate, **facts)
    swept = [made(101, rate, error, swept=True) for rate, error in ((1e-3, 0.2), (1e-2, 0.1))]
    found = Results([*swept, made(0, 1e-3, 0.3), made(1, 1e-2, 0.4)])
    assert found.errors("a", "adam", 10) == {1: 0.4}
    assert Results([made(0, 1e-3, 0.3)]).errors("a", "adam", 10) == {0: 0.3}


# What the runs say.

PAIR = {"burgers": Case("burgers", (), (0, 1)), "burgers_wide": Case("burgers_wide", (), (0, 1), width=128)}


def made_up(case, contender, seed, errors, seconds=30.0, **facts):
    """A run with an error at each mark."""
    marks = [{"seconds": t, "rel_l2": e, "evaluations": 7, "steps": 5} for t, e in ({0.0: 1.0} | errors).items()]
    own = {"case": case, "contender": contender, "seed": seed, "seconds": seconds, "rate": None, "swept": False}
    steady = {"diverged": False, "largest_rise": 0.1, "stalled": False, "cores": 1.0, "trained": 3, "spent": seconds}
    return own | {"marks": marks, "heldout_first": 1.0, "heldout_last": 0.1} | steady | facts


def a_race(ours=1e-6, theirs=1e-4, natural=1e-4, seeds=(0, 1)):
    """Everybody on both cases, the same error at all marks."""
    every = lambda e: dict.fromkeys((3, 10, 15, 30), e)
    found = []
    for case, seed in itertools.product(PAIR, seeds):
        found.append(made_up(case, OURS, seed, every(ours)))
        found += [made_up(case, name, seed, every(natural)) for name in (NATURAL, NATURAL_EVEN)]
        for name in RIVALS:
            found.append(made_up(case, name, seed, every(theirs)))
            if CONTENDERS[name].rates:
                found.append(made_up(case, name, seed, {3: theirs, 10: theirs}, 10.0))
    return found


def states(runs):
    return {verdict.target: verdict.state for verdict in verdicts(Results(runs), PAIR)}


def short(runs):
    return [target for target, state in states(runs).items() if state == "short"]


def test_all_targets_met():
    found = states(a_race())
    assert len(found) == 4 + 3 + 2 * 2 + 2
    assert set(found.values()) == {"met"}


def test_an_error_above_its_target_is_short():
    assert short(a_race(ours=2e-5, theirs=1e-2, natural=1e-2)) == [
        "burgers: at most 1e-05 after 10 s",
        "burgers: at most 5e-06 after 30 s",
    ]


def test_the_lead_is_measured_against_the_best_rival():
    runs = a_race()
    for run in runs:
        if (run["case"], run["contender"]) == ("burgers", "lora_lbfgs"):
            run["marks"] = made_up("", "", 0, dict.fromkeys((3, 10, 30), 9e-6))["marks"]
    assert short(runs) == ["burgers: at most 1/10 of the best rival after 10 s"]
    found = [v.found for v in verdicts(Results(runs), PAIR) if v.state == "short"]
    assert found == ["lora_lbfgs 9 times ours, 9.00e-06"]
    # Three times its own long run or less: nobody can be ten times better than a floor.
    at_floor = [*runs, made_up("burgers", "lora_lbfgs", 0, {300: 3.1e-6}, 300.0)]
    assert short(at_floor) == []
    assert "floor" in next(v.found for v in verdicts(Results(at_floor), PAIR) if "burgers: at most 1/10" in v.target)
    not_yet = [*runs, made_up("burgers", "lora_lbfgs", 0, {300: 2.9e-6}, 300.0)]
    assert short(not_yet) == short(runs)


def test_the_median_over_cases_has_a_target_of_its_own():
    assert short(a_race(theirs=1.5e-5)) == ["at most 1/20 of the best rival in the median over cases"]


def test_the_natural_gradient_may_be_as_good_only_where_it_is_cheap():
    few = [f"burgers_wide: {name} at least 10 times worse" for name in ("full_natural_even", "full_natural")]
    assert short(a_race(natural=5e-6)) == few
    assert len(short(a_race(natural=9e-7))) == 4


def test_one_unsteady_run_is_enough():
    runs = a_race()
    runs[0] |= {"largest_rise": 0.21}
    assert short(runs) == ["the held-out loss of the defaults rises by at most 20%"]
    runs[0] |= {"diverged": True, "largest_rise": 0.0}
    assert short(runs) == ["no run of the defaults diverges"]


def test_a_part_of_the_race_meets_nothing_but_can_be_short():
    found = states(a_race(seeds=(0,)))
    assert set(found.values()) == {"incomplete"}
    assert "short" in states(a_race(ours=1e-3, seeds=(0,))).values()
    assert set(states([]).values()) == {"incomplete"}


def test_the_headline_has_every_kind_of_rival_beside_ours():
    """The best of each kind: SSBroyden is a rival of the targets, too, but on wide networks only on the factors."""
    runs = a_race(ours=1e-6, theirs=1e-4, natural=1e-5)
    for run in runs:
        error = {"lora_ssbroyden": 4e-5, "full_ssbroyden": 2e-5, "full_natural": 3e-6}.get(run["contender"])
        if error is not None:
            run["marks"] = made_up("", "", 0, dict.fromkeys((3, 10, 30), error))["marks"]
    text = report.headline(Results(runs))
    assert text[2:6] == [
        "* the best of Adam, SOAP and L-BFGS: 100 to 100, 100 in the median of 2 of 2 cases;",
        "* self-scaled Broyden, on factors or all weights: 20 to 40, 30 in the median of 2 of 2 cases;",
        "* natural gradient on all weights, on even points: 10 to 10, 10 in the median of 2 of 2 cases;",
        "* natural gradient on all weights, with our points and best iterate: 3 to 3, 3 in the median of 2 of 2 cases.",
    ]
    wide = next(line for line in text if line.startswith("| burgers_wide"))
    assert "4.0e-05, 40 × (lora_ssbroyden)" in wide
    assert best_rival(Results(runs), "burgers") == ("full_ssbroyden", 2e-5)
    assert best_rival(Results(runs), "burgers_wide") == ("lora_ssbroyden", 4e-5)
    without = [run for run in runs if run["contender"] != "lora_ssbroyden"]
    assert any(
        "self-scaled Broyden, on factors or all weights: not run" in line for line in report.headline(Results(without))
    )


def test_self_scaled_broyden_on_all_weights_keeps_to_narrow_networks():
    raced = {case for case in CASES if CONTENDERS["full_ssbroyden"].races_on(case)}
    assert raced == {name for name, case in CASES.items() if case.width == 40}


def test_the_figure_at_ten_seconds_is_of_the_run_that_ends_there():
    runs = [
        made_up("heat", "full_adam", 0, {3: 0.3, 10: 0.1}, 10.0),
        made_up("heat", "full_adam", 0, {3: 0.6, 10: 0.5, 30: 0.01}, 30.0),
        made_up("heat", "full_adam", SWEEP_SEED, {3: 1e-9, 10: 1e-9}, 10.0, swept=True),
        made_up("heat", "full_adam", 0, {3: 1e-9, 10: 1e-9, 30: 1e-9, 300: 0.001}, 300.0),
    ]
    for some in (runs, runs[::-1]):
        results = Results(some)
        assert [results.errors("heat", "full_adam", t) for t in (3, 10, 30)] == [{0: 0.3}, {0: 0.1}, {0: 0.01}]
        assert results.floor("heat", "full_adam") == 0.001


def test_spread_over_seeds_and_errors_that_are_no_numbers():
    runs = [made_up("heat", OURS, seed, {10: e}) for seed, e in enumerate((0.2, math.nan, 0.1))]
    assert Results(runs).error("heat", OURS, 10) == (0.2, 0.1, math.inf)


def test_the_report_of_a_part_says_what_is_missing(tmp_path):
    runs = [*a_race(seeds=(0,)), made_up("heat", OURS, 0, {3: math.nan, 10: math.nan, 30: math.nan})]
    folder, written = tmp_path / "runs", tmp_path / "report"
    folder.mkdir()
    for i, run in enumerate(runs):
        (folder / f"{i}.json").write_text(json.dumps(run))
    (folder / "broken.json").write_text("{")
    assert command.main(["--report", "--runs", str(folder), "--results", str(written)]) == 2
    text = (written / "README.md").read_text()
    assert "heat (lora_adam" in text.partition("Not run: ")[2]
    assert "odelora on burgers, heat, burgers_wide;" in text
    assert "| odelora | 1.0e-06 [1.0e-06, 1.0e-06] |" in text
    assert (written / "race.png").stat().st_size > 10_000
    assert len((written / "race.csv").read_text().splitlines()) == len(runs) + 1
    assert set(report.COLOURS) == set(CONTENDERS) - set(SCHEMES)
    assert "Discretisations" not in text


def test_the_runs_of_a_report_can_be_taken_up(tmp_path):
    runs, report_folder, again = tmp_path / "runs", tmp_path / "report", tmp_path / "again"
    runs.mkdir()
    for i, run in enumerate(a_race(seeds=(0,))):
        (runs / f"{i}.json").write_text(json.dumps(run))
    (runs / "broken.json").write_text("{")
    again.mkdir()
    other = json.dumps(made_up("heat", OURS, 0, {3: 0.3, 10: 0.2, 30: 0.1}))
    (again / "0.json").write_text(other)
    for folder in (runs, again):
        command.main(["--report", "--resume", "--runs", str(folder), "--results", str(report_folder)])
    assert (again / "0.json").read_text() == other
    kept = {file.name: json.loads(file.read_text()) for file in runs.iterdir() if file.stem not in ("0", "broken")}
    assert {file.name: json.loads(file.read_text()) for file in again.iterdir() if file.stem != "0"} == kept


def test_the_discretisations_have_a_table_of_their_own(tmp_path):
    runs = [made_up("heat", name, 0, {3: 0.3, 10: 0.2, 15: 0.15, 30: 0.1}) for name in (OURS, "rkc2")]
    text = "\n".join(report.readme(Results(runs), []))
    runs, _, schemes = text.partition("## Discretisations of one flow")
    assert "| heat | rkc2 | 3.0e-01 [3.0e-01, 3.0e-01] |" in schemes
    assert "| heat | odelora |" in schemes
    assert "rkc2" not in runs
    columns = [line.count("|") for line in schemes.splitlines() if line.startswith("|")]
    assert len(columns) == 4
    assert len(set(columns)) == 1


def test_some_race_on_some_cases_only():
    planned = list(jobs(list(CASES.values()), [CONTENDERS["rkc2"]], 30.0, seeds=[0]))
    assert sorted(job.case.name for job in planned) == ["burgers", "heat", "kovasznay"]


def test_the_command_exits_with_1_when_a_target_is_short(tmp_path):
    for i, run in enumerate(a_race(theirs=5e-6)):
        (tmp_path / f"{i}.json").write_text(json.dumps(run))
    assert command.main(["--report", "--runs", str(tmp_path), "--results", str(tmp_path / "report")]) == 1


def test_long_runs_are_of_the_best_rivals():
    runs = a_race()
    for run in runs:
        if run["contender"] == "full_soap":
            run["marks"] = [mark | {"rel_l2": mark["rel_l2"] / 2} for mark in run["marks"]]
    found = command.long_runs(Results(runs), ["burgers", "heat"], 30.0)
    assert [(job.case.name, job.contender.name, job.seconds, job.rate) for job in found] == [
        ("burgers", "full_soap", 300.0, None)
    ]
    assert isinstance(found[0], Job)

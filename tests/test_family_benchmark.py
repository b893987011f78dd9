"""The benchmark of families: equations with known solutions, rivals that solve, and verdicts that follow from runs."""

import importlib.util
import itertools
import json
import math
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import family as command
from answering import plan, running, verdict
from answering.cases import CASES, QUICK, STRICT
from answering.plan import ADAPTER, FAMILY, TOLERANCE, Job, Plan, jobs, up_to_date
from answering.report import page
from answering.results import Results
from answering.rivals import scratch
from answering.rivals.combination import combination
from answering.rivals.conditional import conditional, varying, widened_problem
from answering.rivals.last_layer import joint_problem, last_layer, multi_head
from answering.rivals.span import Span, along
from answering.roster import ADAPTATION, NATURAL, PREPARERS, RIVALS, SOLVERS, Start
from answering.trace import Trace, error_at
from racing.results import packed

import pinn_odelora as po
from pinn_odelora.derivatives import AutogradField
from pinn_odelora.geometry import sobol
from pinn_odelora.points import Points
from pinn_odelora.system import Solution
from problems.reaction import Reaction

TINY = CASES["heat"]._replace(width=10)


def somewhere(region, n=40):
    return region.sample(n, lambda n, d: sobol(n, d, seed=3))


def residuals(problem, solution):
    """Largest residual of every term at generic points, where the solution is regular."""
    found = {}
    for name, term in problem.terms().items():
        p = somewhere(problem.regular if problem.regular and name == "pde" else term.where)
        field = AutogradField(solution, p, problem.fields, problem.coords)
        found[name] = float(term.rows(field).detach().abs().max())
    return found


# The cases.


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_the_solutions_of_a_family_are_exact_at_any_parameter(case):
    problem = case.at(case.value(0.37))
    size = residuals(problem, lambda p: 1.1 * problem.reference(p) + 0.1 * p[problem.coords[0]])
    assert max(residuals(problem, problem.reference).values()) < 1e-9 * max(size.values())


def test_counted_modes_are_among_the_parameters():
    x = Points(x=torch.rand(20, 1, dtype=torch.float64), t=torch.zeros(20, 1, dtype=torch.float64))
    state = lambda n: CASES["heat_modes"].at(n).reference(x)
    sine = lambda k: torch.sin(k * math.pi * x.x) / k**2
    assert torch.allclose(state(7.0), sum(sine(k) for k in range(1, 8)), atol=1e-14)
    assert torch.allclose(state(7.5), state(7.0) + sine(8) / 2, atol=1e-14)
    assert torch.allclose(CASES["wave"].at(6.0).reference(x), torch.sin(6 * math.pi * x.x), atol=1e-14)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_parameters_are_drawn_evenly_in_the_scale_and_are_the_same_for_everybody(case):
    values = case.values()
    assert case.values(5) == values[:5]
    assert len({*values}) == len(values) == 64
    assert case.range[0] <= min(values) <= max(values) <= case.range[1]
    units = sorted(map(case.unit, values))
    assert max(abs(u - (i + 0.5) / 64) for i, u in enumerate(units)) < 0.2
    assert case.value(case.unit(values[0])) == pytest.approx(values[0], rel=1e-12)


def test_the_targets_are_those_that_were_set():
    strict = [name for name, case in CASES.items() if (case.median, case.worst) == (1e-5, 2e-4)]
    assert strict == ["burgers", "heat", "reaction", "kovasznay"]
    assert all((case.median, case.worst) == (5e-5, 1e-3) for name, case in CASES.items() if name not in strict)
    assert {name: case.seconds for name, case in CASES.items() if case.seconds != 0.1} == {"kovasznay": 0.3}
    assert [name for name, case in CASES.items() if case.width == 128] == ["burgers_wide", "heat_wide"]
    assert len(CASES["heat_plane"].at(0.1).coords) == 3
    assert {*QUICK} <= {*CASES}
    assert STRICT == {"median": 1e-5, "worst": 2e-4}


# The span.


def test_forward_derivatives_of_all_columns_are_those_of_reverse_mode():
    case = CASES["burgers"]._replace(width=7)
    problem = case.at(0.02)
    net = case.net(0, outputs=3)
    function = lambda p: problem.ansatz(p)[1] * net(problem.embed(p))
    p = somewhere(problem.region, 12)
    field = AutogradField(function, p, ("a", "b", "c"), problem.coords)
    for word in ("", "t", "xx", "xt"):
        expected = torch.cat([field.derivative(name, word) for name in "abc"], dim=1)
        assert torch.allclose(along(function, p, word), expected, rtol=1e-10, atol=1e-12)


def test_gauss_newton_finds_the_member_of_a_span_that_solves_a_nonlinear_equation():
    case = CASES["burgers"]
    parts = [case.at(nu).reference for nu in (0.05, 0.02, 0.011)]
    span = Span(case.at(0.02), lambda p, field: torch.cat([u(p) for u in parts], dim=1), 3, conditions=False)
    c = span.solve(case.at(0.02), torch.tensor([0.6, 0.1, 0.4], dtype=torch.float64))
    assert torch.allclose(c, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), atol=1e-7)
    assert error_at(case.at(0.02))(span.solution(case.at(0.02), c)) < 1e-7


def test_a_last_layer_that_solves_is_found():
    """The equation has the right-hand side of the network's own solution; the first guess is zero."""
    case = CASES["reaction"]._replace(width=5)
    source, net = case.at(case.source), case.net(1)
    target = lambda p: source.ansatz(p)[0] + source.ansatz(p)[1] * net(source.embed(p))

    class Forced(Reaction):
        def terms(self):
            def pde(f):
                p = Points({c: f.points[c] for c in f.coords})
                own = along(target, p, "t") - self.rho * target(p) * (1 - target(p))
                return f.u_t - self.rho * f.u * (1 - f.u) - own.detach()

            terms = super().terms()
            return terms | {"pde": terms["pde"]._replace(residual=pde)}

    answer = last_layer(case._replace(problem=Forced), net)
    p = somewhere(source.region)
    assert torch.allclose(answer(4.0)(p), target(p), atol=1e-6)


# The rivals.


@pytest.fixture
def ticking(monkeypatch):
    """A clock on which the same work always takes the same time."""
    monkeypatch.setattr(time, "process_time", itertools.count(0.0, 0.01).__next__)


def pieces(solve, cap=1.0):
    return solve(TINY, 0.11, 0, 1e-9, cap, Start(lambda: TINY.net(0), lambda: None, 0.0)).record()


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "deepxde"])
def test_a_solver_comes_nearer_within_its_time(name, monkeypatch):
    monkeypatch.setattr(scratch, "FIRST", 20)
    found = pieces(SOLVERS[name].solve, cap=3.0)
    assert found["marks"][-1][1] == found["reached"] < 0.5 * found["marks"][0][1]
    assert found["spent"] < 4 * found["cap"]
    seconds, errors = zip(*found["marks"], strict=True)
    assert [*seconds] == sorted(seconds)
    assert [*errors] == sorted(errors, reverse=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepxde") is None, reason="DeepXDE is not installed")
def test_deepxde_comes_nearer_in_a_process_of_its_own():
    found = pieces(SOLVERS["deepxde"].solve)
    assert found["reached"] < 0.8 * found["marks"][0][1]
    assert torch.get_default_dtype() == torch.float32


def test_a_solver_ends_at_its_target():
    trace = SOLVERS[NATURAL].solve(TINY, 0.11, 0, 0.1, 30.0, None)
    found = trace.record()
    assert found["reached"] <= 0.1
    assert found["spent"] < 15
    assert [error <= 0.1 for _, error in found["marks"]] == [False] * (len(found["marks"]) - 1) + [True]


def test_the_clock_stands_while_the_error_is_measured(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.process_time", lambda: now[0])

    def error():
        now[0] += 100
        return 1 / now[0]

    trace = Trace(error, 0.0, 7.0)
    now[0] += 3
    assert not trace.look()
    now[0] += 4
    assert trace.look()
    assert [seconds for seconds, _ in trace.marks] == [3, 7]


def test_combinations_of_solutions_answer_between_them():
    case = CASES["heat"]
    values = [case.value(u) for u in (0.0, 0.25, 0.5, 0.75, 1.0)]
    answer = combination(case, values, [case.at(value).reference for value in values])
    assert error_at(case.at(0.11))(answer(0.11)) < 3e-3
    assert error_at(case.at(values[1]))(answer(values[1])) < 1e-9


@pytest.mark.slow
def test_a_trained_body_is_better_than_an_untrained_one(ticking):
    error = error_at(TINY.at(0.11))
    net = po.pretrain(TINY.at(TINY.source), TINY.net(0), settings=po.Pretraining(natural_gradient_steps=15))
    untrained = error(last_layer(TINY, TINY.net(0))(0.11))
    assert error(last_layer(TINY, net)(0.11)) < 0.3 * min(untrained, error(Solution(TINY.at(0.11), net)))
    assert error(multi_head(TINY, 0, 1.0)(0.11)) < untrained


@pytest.mark.slow
def test_a_conditional_network_answers_everywhere(ticking):
    answer = conditional(TINY, 0, 1.5)
    for value in (0.06, 0.11, 0.29):
        assert error_at(TINY.at(value))(answer(value)) < 0.2
    p = somewhere(TINY.at(0.1).region)
    assert not torch.equal(answer(0.06)(p), answer(0.29)(p))


@pytest.mark.parametrize("name", ["allen_cahn", "kovasznay", "poisson_scale", "wave", "heat_modes"])
def test_the_family_as_one_problem_has_its_solutions(name):
    case = CASES[name]
    problem = widened_problem(case)
    solution = lambda p: varying(case, case.value(p.q)).reference(p)
    if name == "allen_cahn":  # whose reference is of one number: what is enforced, and the equation with its own field
        solution = lambda p: problem.ansatz(p)[0]
        assert residuals(problem, solution)["ic"] < 1e-12
        p = somewhere(problem.region)
        at = case.at(case.value(0.6))
        p["q"] = torch.full_like(p.q, 0.6)
        seen = [AutogradField(solution, p, one.fields, one.coords) for one in (problem, at)]
        assert torch.allclose(problem.terms()["pde"].rows(seen[0]), at.terms()["pde"].rows(seen[1]), rtol=1e-9)
        return
    size = residuals(problem, lambda p: 1.1 * solution(p) + 0.1 * p[problem.coords[0]])
    assert max(residuals(problem, solution).values()) < 1e-9 * max(size.values())


@pytest.mark.parametrize("name", ["burgers", "kovasznay", "convection"])
def test_the_heads_of_the_joint_problem_are_the_members(name):
    case = CASES[name]
    problem = joint_problem(case, 3)
    members = [case.at(case.value(u)) for u in (0, 0.5, 1)]
    solution = lambda p: torch.cat([member.reference(p) for member in members], dim=1)
    wrong = lambda p: torch.cat([member.reference(p) for member in (members[0], members[2], members[1])], dim=1)
    assert max(residuals(problem, solution).values()) < 1e-9 * max(residuals(problem, wrong).values())
    assert len(problem.loss_terms()) == 3 * len(members[0].loss_terms())


def test_a_dense_matrix_is_not_for_wide_networks():
    assert SOLVERS["ssbroyden"].missing(CASES["burgers_wide"]) == "it cannot train more than 12000 numbers"
    assert SOLVERS["ssbroyden"].missing(CASES["kovasznay"]) is None
    assert all(SOLVERS[name].missing(CASES["heat_wide"]) is None for name in (NATURAL, ADAPTATION, "lbfgs"))


# Runs, their order, and what is there already.

ONE = Plan(cases=("heat",), rivals=(NATURAL, "conditional"), seeds=(0,), parameters=4, kept=4, targets=2, cap=10.0)


def made_up(what, seed=0, target=None, case="heat", **facts):
    return {"case": case, "what": what, "seed": seed, "target": target, **facts}


def answer(error, estimate=None, seconds=0.05, rank=8, **facts):
    made = {"error": error, "estimate": estimate or error, "seconds": seconds, "steps": 3, "rank": rank}
    return {**made, "form": "combination", **facts}


def family_run(seed=0, answers=(), case="heat", offline=40.0):
    made = {
        "pretraining_seconds": 2.0,
        "offline_seconds": offline,
        "asked": 60.0,
        "stations": [{"value": 0.1, "error": 1e-6}] * 9,
    }
    return made_up(FAMILY, seed, case=case, **made, answers=[*answers], together=0.002)


def test_families_come_first_and_rivals_have_their_own_seeds():
    wide = ONE._replace(cases=("heat", "heat_wide"), rivals=("ssbroyden", "one_head"), seeds=(0, 1), targets=2)
    planned = [(j.seed, j.case.name, j.what, j.target) for j in jobs(wide)]
    own = lambda seed, case: [(seed, case, what, None) for what in (FAMILY, TOLERANCE, ADAPTER)]
    first = [(0, "heat", "ssbroyden", 0), (0, "heat", "ssbroyden", 1), (0, "heat", "one_head", None)]
    second = [(0, "heat_wide", "one_head", None)]
    assert planned == [*own(0, "heat"), *first, *own(0, "heat_wide"), *second, *own(1, "heat"), *own(1, "heat_wide")]
    names = [job.file for job in jobs(wide)]
    assert len({*names}) == len(names)


def test_what_a_kill_left_is_run_again_and_nothing_else(tmp_path, monkeypatch):
    made = []

    def quick(job, folder, asked):
        made.append(job.file)
        if job.what in SOLVERS:
            return {"value": 0.1, "cap": asked.cap, "reached": 1e-3, "spent": 10.0, "marks": [(10.0, 1e-3)]}
        if job.what == FAMILY:
            return family_run(answers=[answer(1e-5)] * 4)
        return {"offline": 42.0, "tolerance": 1e-4, "prepared_seconds": 40.0, "answers": [answer(1e-5)] * 4}

    monkeypatch.setattr(command, "run", quick)
    every = [*jobs(ONE)]
    assert all(command.finish(job, tmp_path, ONE) for job in every)
    assert made == [job.file for job in every]
    assert not any(command.finish(job, tmp_path, ONE) for job in every)
    broken = tmp_path / every[3].file
    broken.write_text(broken.read_text()[:-20])
    assert [bool(command.finish(job, tmp_path, ONE)) for job in every] == [job is every[3] for job in every]
    # More time for solvers, more parameters, or another family: what depends on it is run again.
    again = lambda asked: [job.what for job in jobs(asked) if not up_to_date(job, tmp_path, asked)]
    assert again(ONE._replace(cap=20.0)) == [NATURAL] * 2
    assert again(ONE._replace(parameters=5)) == [FAMILY, ADAPTER, "conditional"]
    assert again(ONE._replace(kept=5)) == [TOLERANCE]
    assert again(ONE._replace(offline=30.0)) == [FAMILY]
    (tmp_path / every[0].file).write_text(json.dumps(family_run(answers=[answer(1e-2)] * 4, offline=41.0)))
    assert again(ONE._replace(cap=20.0)) == [TOLERANCE, ADAPTER, "conditional"]


class Fake:
    """A family whose members are the pretrained network, made in no time."""

    def __init__(self, net, problem, ends):
        self.net, self.problem, (self.name, ends) = net, problem, next(iter(ends.items()))
        self.stations = [types.SimpleNamespace(values={self.name: v}, weights={}) for v in ends]
        self.parametric = types.SimpleNamespace(net=net, place=lambda weights: None)

    def __call__(self, tolerance=None, form="auto", **values):
        u = types.SimpleNamespace(net=self.net, problem=replace(self.problem, **values), error=tolerance or 0.2)
        u.steps, u.corrections, u.form = 3, 0, "combination" if form == "auto" else form
        return u

    def prepare(self):
        pass

    def answers(self, **values):
        return [self(**{name: v}) for name, given in values.items() for v in given]

    def save(self, path):
        path.write_text(self.name)


def test_a_run_of_every_kind_has_what_the_report_reads(tmp_path, monkeypatch):
    made = []

    def family(net, problem, tolerance, seconds, scale, seed, **ends):
        made.append(ends)
        return Fake(net, problem, ends)

    monkeypatch.setitem(po.__dict__, "family", family)
    load = lambda path, net, problem: Fake(net, problem, {path.read_text(): TINY.range})
    monkeypatch.setitem(po.__dict__, "load_family", load)
    monkeypatch.setattr(running, "PRETRAINING", {"natural_gradient_steps": 3})
    monkeypatch.setattr(plan, "CASES", {"heat": TINY})
    asked = ONE._replace(rivals=(ADAPTATION, "combination", "one_head"), cap=0.3, targets=1)
    for job in jobs(asked):
        assert command.finish(job, tmp_path, asked)
    assert made == [{"kappa": (0.05, 0.3)}]  # once, and then from its file
    results = Results.read(tmp_path)
    found = results.figures("heat")
    net, _ = running.pretrained(TINY, 0, tmp_path)
    errors = [error_at(TINY.at(v))(Solution(TINY.at(v), net)) for v in TINY.values(4)]
    assert found.worst == pytest.approx(max(errors))
    assert (found.seeds, found.stations, found.steps) == (1, 2, 3)
    assert found.kept == 0
    assert found.combined == 1
    assert found.together > 0
    assert results.adapters("heat").worst == pytest.approx(max(errors))
    assert results.contest("heat", ADAPTATION).runs == 1
    assert results.answers("heat", "combination").median < 1
    assert results.answers("heat", "one_head").offline > 0
    written = page(results, verdict.verdicts(results, asked), asked)
    assert "| heat, kappa from 0.05 to 0.3 (log)" in written
    assert "| heat | combination |" in written
    assert "## As one adapter" in written
    if commit := command.commit():  # there is none outside of a repository
        assert f"Families by commit, seed 0: {commit[:7]}." in written


def test_budgets_are_cpu_seconds_while_families_are_measured():
    wall = time.perf_counter
    with running.cpu_clock():
        before = time.perf_counter()
        time.sleep(0.2)
        assert time.perf_counter() - before < 0.1
    assert time.perf_counter is wall


def test_a_rival_without_its_family_is_told_so(tmp_path):
    with pytest.raises(LookupError, match="needs the run of the family of heat with seed 1"):
        running.run(Job(TINY, NATURAL, 1, 0), tmp_path, ONE)


# What the runs say.


def judged(runs, asked=ONE):
    found = verdict.verdicts(Results(runs), asked)
    return {v.target.removeprefix("heat: "): (v.found, v.state) for v in found}


def good(seed=0):
    kept = made_up(TOLERANCE, seed, tolerance=1e-4, answers=[answer(9e-5)] * 19 + [answer(2e-4)])
    return [family_run(seed, [answer(1e-5)] * 19 + [answer(2e-4)]), kept]


def contest(seconds, target=0, error=1e-5, **facts):
    marks = [(0.4 * seconds, 0.3), (seconds, error)]
    return made_up(NATURAL, 0, target, marks=marks, reached=error, spent=2 * seconds, cap=10.0, **facts)


def test_a_family_at_its_targets_meets_them_all():
    found = judged([*good(), contest(2.5), contest(2.6, 1)])
    assert {state for _, state in found.values()} == {"met"}
    assert len(found) == 8
    assert found["50 times quicker than from scratch"][0] == "51 times"


@pytest.mark.parametrize(
    ("target", "answers"),
    [
        ("an answer in 0.1 s at most", [answer(1e-6, seconds=0.11)] * 20),
        ("median error 1e-05 at most", [answer(1e-6)] * 9 + [answer(1.1e-5)] * 11),
        ("worst error 2e-04 at most", [answer(1e-6)] * 19 + [answer(2.1e-4)]),
        ("worst error 2e-04 at most", [answer(1e-6)] * 19 + [answer(math.nan, 1e-6)]),
        ("rank 16 at most", [answer(1e-6)] * 19 + [answer(1e-6, rank=17)]),
        (
            "estimate within a factor of 3 in 90%",
            [answer(1e-6)] * 17 + [answer(1e-6, 3.1e-6), answer(1e-6, 3.2e-7)] * 2,
        ),
    ],
)
def test_what_is_short_is_said(target, answers):
    found = judged([family_run(0, answers), good()[1], contest(50), contest(50, 1)])
    states = {name: state for name, (_, state) in found.items()}
    assert states.pop(target) == "short"
    if "factor" not in target and math.isfinite(answers[-1]["error"]):
        assert {*states.values()} == {"met"}


def test_a_slow_offline_stage_and_a_broken_tolerance_are_short():
    family, kept = good()
    kept["answers"] = [answer(9e-5)] * 18 + [answer(2e-4)] * 2
    family["offline_seconds"] = 61.0
    found = judged([family, kept, contest(50), contest(50, 1)])
    assert found["stations in 60 s"] == ("61 s", "short")
    assert found["tolerance 1e-4 kept in 95%"] == ("90%", "short")


def test_times_are_to_the_error_of_the_answer_itself():
    """0.4 s suffice where the family's answer is no better than 0.3."""
    family = family_run(0, [answer(0.31), answer(1e-5), answer(1e-5), answer(1e-5)])
    runs = Results([family, contest(1.0), contest(1.0, 1)])
    found = runs.contest("heat", NATURAL)
    assert (found.runs, found.reached) == (2, 2)
    assert found.seconds == pytest.approx(0.7)
    assert found.times == pytest.approx(0.7 / 0.05)


def test_a_run_that_is_not_in_time_gives_a_lower_bound():
    found = judged([*good(), contest(2.0, error=2e-5), contest(4.0, 1)])
    assert found["50 times quicker than from scratch"] == ("at least, 1 of 2 not in time, 80 times", "met")


def test_missing_seeds_and_runs_are_incomplete_but_a_short_one_is_short():
    more = ONE._replace(seeds=(0, 1))
    found = judged([*good(), contest(3.0)], more)
    assert found["median error 1e-05 at most"] == ("1.0e-05", "incomplete")
    assert found["50 times quicker than from scratch"] == ("60 times", "incomplete")
    assert judged([], more)["rank 16 at most"] == ("not run", "incomplete")
    late = judged([family_run(0, [answer(1e-6, seconds=1.0)] * 4)], more)
    assert late["an answer in 0.1 s at most"] == ("1.000 s", "short")


def test_medians_are_over_parameters_and_then_over_seeds():
    seeds = [[1e-6, 2e-6, 9e-6], [3e-6, 4e-6, 5e-6], [1e-6, 1e-5, 2e-5]]
    found = Results(family_run(k, map(answer, errors)) for k, errors in enumerate(seeds)).figures("heat")
    assert (found.median, found.worst, found.seeds) == (4e-6, 2e-5, 3)


def test_the_command_ends_with_what_is_short(tmp_path, capsys):
    folder = tmp_path / "runs"
    folder.mkdir()
    write = lambda run: (folder / Job(CASES["heat"], run["what"], run["seed"], run["target"]).file).write_text(
        json.dumps(run)
    )
    where = ["--report", "--runs", str(folder), "--results", str(tmp_path / "family.md"), "--cases", "heat"]
    asked = [*where, "--seeds", "0", "--rivals", NATURAL, "--targets", "2"]
    for run in [*good(), contest(2.5)]:
        write(run)
    assert command.main(asked) == 2
    write(contest(2.5, 1))
    assert command.main(asked) == 0
    assert "| heat | natural_gradient | 2 of 2 | 2.5 | 50 | 1.0e-05 |" in (tmp_path / "family.md").read_text()
    write(family_run(0, [answer(1e-4)] * 4))
    assert command.main(asked) == 1
    assert "Short:\n  heat: median error 1e-05 at most: 1.0e-04" in capsys.readouterr().out
    assert len(packed(tmp_path / "family.jsonl.gz")) == 4


def test_a_family_that_fails_is_said_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def run(job, folder, asked):
        if job.case.name == "heat":
            raise po.NonFiniteError("the first station is not finite")
        return family_run(case=job.case.name, answers=[answer(1e-6)] * 4)

    monkeypatch.setattr(command, "run", run)
    asked = ["--cases", "heat", "reaction", "--rivals", "none", "--seeds", "0", "--parameters", "4"]
    assert command.main([*asked, "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "family.md")]) == 1
    kinds = ("adapter", "family", "tolerance")
    assert sorted(file.stem for file in (tmp_path / "runs").iterdir()) == [f"reaction-{kind}-0" for kind in kinds]
    assert "heat-family-0 failed: the first station is not finite" in capsys.readouterr().out.split("Short:")[1]


def test_the_rivals_are_those_that_were_asked_for():
    assert [*SOLVERS] == [NATURAL, ADAPTATION, "lbfgs", "ssbroyden", "deepxde"]
    assert [*PREPARERS] == ["combination", "one_head", "multi_head", "conditional"]
    assert Plan().rivals == tuple(RIVALS)
    assert command.QUICKLY.seeds == (0,)
    assert (len(command.QUICKLY.cases), command.QUICKLY.parameters) == (2, 8)

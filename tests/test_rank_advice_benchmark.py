"""The benchmark of the advice on the rank: what it compares, and what it concludes."""

import json
import math
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import suggest_rank as benchmark

RANKS = benchmark.RANKS


def made(case, rank, error, seed=0, diverged=False):
    marks = [{"rel_l2": 1.0}, {"rel_l2": error}]
    return {"case": case, "rank": rank, "seed": seed, "marks": marks, "diverged": diverged}


def runs_of(errors, seed=0):
    return [made(case, r, e, seed) for case, own in errors.items() for r, e in zip(RANKS, own, strict=True)]


ERRORS = {
    "burgers-0.02": (8e-3, 4e-4, 2e-4, 1e-4, 3e-4),
    "poisson-2": (9e-3, 1e-4, 2e-4, 4e-4, 5e-4),
    "matrix_sensing-3": (0.5, 0.2, 1e-15, 3e-16, 1e-15),
}
ADVICE = [
    {"case": "burgers-0.02", "rank": 8, "auto": 4, "spent": 2.0},
    {"case": "poisson-2", "rank": 4, "auto": 8, "spent": 3.0},
    {"case": "matrix_sensing-3", "rank": 16, "auto": 4, "spent": 1.0},
]


def test_ten_problems_have_two_jumps_each_that_can_be_composed():
    assert len(benchmark.CASES) == 20
    assert len({line.partition("-")[0] for line in benchmark.CASES}) == 10
    assert len(benchmark.CHOSEN_ON) == 5
    assert {case.partition("-")[0] for case in benchmark.OTHER_CASES} == {*benchmark.OTHERS}
    for case in benchmark.CASES.values():
        cfg = benchmark.configuration(case, benchmark.Contender("x", ("lora.rank=2",)), 0)
        problem, source, _ = benchmark.build.posed(cfg)
        name, value = next(
            (n, v)
            for n, *values in [benchmark.JUMPS[case.name.partition("-")[0]]]
            for v in values
            if case.name.endswith(f"-{v}")
        )
        assert getattr(problem, name) == float(value)
        assert (cfg.lora.rank, cfg.pretrain.second_stage) == (2, "auto")
        assert repr(problem) != repr(source)


def test_errors_are_the_geometric_mean_over_seeds_above_the_accuracy_of_references():
    first, second = runs_of(ERRORS), runs_of({c: [4 * e for e in own] for c, own in ERRORS.items()}, seed=1)
    found = benchmark.lines(first + second, ADVICE, 2)
    assert [line.case for line in found] == [*ERRORS]
    assert found[0].errors == pytest.approx({r: 2 * e for r, e in zip(RANKS, ERRORS["burgers-0.02"], strict=True)})
    assert found[2].errors == pytest.approx({1: 1.0, 2: 0.4, 4: 1e-12, 8: 1e-12, 16: 1e-12}, rel=1e-9, abs=0)
    assert found[0].over_best(16) == pytest.approx(3)
    assert benchmark.lines(first + second[1:], ADVICE, 2) == found[1:]  # a case with a run missing does not count
    diverged = [made("poisson-2", r, 1e-9, diverged=r == 1) for r in RANKS]
    assert benchmark.lines(diverged, ADVICE[1:2], 1)[0].errors[1] == math.inf


def test_scores_count_what_is_within_twice_the_best_and_average_the_ratios():
    found = benchmark.lines(runs_of(ERRORS), ADVICE, 1)
    of = benchmark.scores(found)
    assert of["advice"] == (3, 3, pytest.approx(2 ** (1 / 3)), pytest.approx(2))
    assert of["auto"] == (2, 3, pytest.approx(8 ** (1 / 3)), pytest.approx(4))
    assert of["rank 16"].within == 1
    assert of["rank 8"].mean == pytest.approx(4 ** (1 / 3))
    assert benchmark.scores([]) == {}


def test_the_verdict_compares_with_the_best_constant_rank_and_with_auto():
    held = benchmark.verdict(benchmark.lines(runs_of(ERRORS), ADVICE, 1))
    assert [*held.values()] == [True, True, True, True]
    worse = [{**own, "rank": 1} for own in ADVICE]
    assert [*benchmark.verdict(benchmark.lines(runs_of(ERRORS), worse, 1)).values()] == [False] * 4
    # As good as a constant rank is not better than it, and matrices do not count against auto.
    errors = {**ERRORS, "poisson-2": (9e-3, 1.1e-4, 2e-4, 4e-4, 5e-4), "burgers-0.02": (8e-3, 4e-4, 1.9e-4, 1e-4, 3e-4)}
    same = [{**own, "rank": 4, "auto": 4 if "matrix" not in own["case"] else 1} for own in ADVICE]
    assert [*benchmark.verdict(benchmark.lines(runs_of(errors), same, 1)).values()] == [True, False, True, False]


def write(folder, errors, advice, seeds=(0,)):
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        for run in runs_of(errors, seed):
            (folder / f"{run['case']}-{run['rank']}-{seed}.json").write_text(json.dumps(run))
    for own in advice:
        (folder / f"{own['case']}-advice.json").write_text(json.dumps(own))


def test_a_report_is_made_of_finished_runs_and_says_what_is_missing(tmp_path, capsys):
    arguments = ["--report", "--cases", *ERRORS, "--seeds", "0", "--runs", str(tmp_path), "--results", str(tmp_path)]
    assert benchmark.main(arguments) == 2
    assert "No case is complete." in capsys.readouterr().err
    write(tmp_path, ERRORS, ADVICE)
    assert benchmark.main(arguments) == 0
    text = (tmp_path / "suggest_rank.md").read_text()
    assert "| burgers-0.02 | 1.0e-04 | 80 | 4 | 2 | 1 | 3 | 8 | 1 | 4 |" in text
    assert "| not seen | advice | 2 of 2 | 1.41 | 2 |" in text
    assert text.count("**yes**") == 4
    kept = json.loads((tmp_path / "suggest_rank.json").read_text())
    expected = {str(r): e for r, e in zip(RANKS, ERRORS["poisson-2"], strict=True)}
    assert kept["cases"][1]["errors"] == pytest.approx(expected, rel=1e-9, abs=0)
    assert re.search("advice +│ 3 of 3", capsys.readouterr().out)
    write(tmp_path, ERRORS, [{**own, "rank": 1} for own in ADVICE])
    assert benchmark.main(arguments) == 1
    (tmp_path / "poisson-2-16-0.json").unlink()
    assert benchmark.main(arguments) == 2


def test_finished_runs_and_advice_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "enter", lambda *_: pytest.fail("a run is repeated"))
    monkeypatch.setattr(benchmark, "configuration", lambda *_: pytest.fail("an advice is repeated"))
    write(tmp_path, ERRORS, ADVICE)
    case = benchmark.CASES["burgers-0.02"]
    assert benchmark.adapted(case, 8, 0, 5.0, tmp_path, None)["marks"][-1]["rel_l2"] == 1e-4
    assert benchmark.advised(case, tmp_path, None) == ADVICE[0]


@pytest.mark.slow
def test_the_quick_form_advises_and_runs(tmp_path, capsys):
    quick = ["--quick", "--cases", "matrix_sensing-3", "--seconds", "0.5", "--runs", str(tmp_path / "runs")]
    code = benchmark.main([*quick, "--cache", str(tmp_path)])
    assert code in (0, 1)
    kept = json.loads((tmp_path / "runs/suggest_rank.json").read_text())
    (line,), (advice,) = kept["cases"], kept["advice"]
    assert line["errors"]["1"] > 0.1 > 1e-3 > line["errors"]["8"]  # the target has rank 3
    assert line["advised"] == advice["rank"] >= 4
    assert [x["rank"] for x in advice["predictions"]] == [*RANKS]

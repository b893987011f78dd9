"""What ``benchmarks/floor.py`` makes of runs."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import floor


@pytest.fixture
def table(tmp_path):
    """Two seeds of a case by two contenders, and what else is asked for."""

    def write(runs):
        for (case, who, seed), errors in runs.items():
            marks = [{"seconds": float(t), "rel_l2": e} for t, e in errors.items()]
            (tmp_path / f"{case}-{who}-{seed}.json").write_text(json.dumps({"until": max(errors), "marks": marks}))
        return floor.by_seed(floor.known(tmp_path, None))

    return write


def test_errors_are_medians_over_the_seeds_that_were_run_for_so_long(table):
    found = table({("heat", "now", 20): {10: 1e-5, 60: 1e-6}, ("heat", "now", 21): {10: 3e-5}})
    assert floor.median_error(found, "heat", "now", 10) == pytest.approx(2e-5)
    assert floor.median_error(found, "heat", "now", 60) == 1e-6
    assert math.isnan(floor.median_error(found, "heat", "now", 300))


def test_ratios_are_over_the_seeds_that_both_have(table):
    runs = {("heat", "now", 20): {10: 1e-5}, ("heat", "now", 21): {10: 9e-5}, ("heat", "former", 20): {10: 4e-5}}
    assert floor.ratios(table(runs), "now", "former", 10) == {"heat": pytest.approx(0.25)}
    assert floor.ratios(table(runs), "now", "former", 60) == {}


def test_a_record_is_continued_by_new_and_by_longer_runs(tmp_path, monkeypatch, capsys):
    record, taken = tmp_path / "floor.jsonl", []
    heat, poisson = ("heat", "now", 20), ("poisson", "now", 20)
    old = {heat: floor.Run(60, {10.0: 1e-5, 60.0: 1e-6}), poisson: floor.Run(300, {300.0: 1e-9})}
    floor.keep(record, old)
    assert floor.known(tmp_path, record) == old

    def measured(job, args):
        taken.append(job[0])
        marks = [{"seconds": 10.0, "rel_l2": 2e-5}, {"seconds": 300.0, "rel_l2": 1e-8}]
        (args.runs / f"{'-'.join(map(str, job))}.json").write_text(json.dumps({"until": 300, "marks": marks}))

    monkeypatch.setattr(floor, "measured", measured)
    argv = ["floor", "--contenders", "now", "--cases", "heat", "poisson", "--seeds", "20", "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*argv, "--record", str(record)])
    assert floor.main() == 0
    assert taken == ["heat"]
    new = {**old, heat: floor.Run(300, {10.0: 2e-5, 300.0: 1e-8})}
    assert floor.known(tmp_path / "nowhere", record) == new
    assert "| heat | now | 2.0e-05 |" in capsys.readouterr().out


def test_each_target_that_is_missed_has_a_sentence(table):
    slow, fast = {10: 1e-5, 60: 2e-6, 300: 1e-6}, {10: 2e-5, 60: 1.5e-6, 300: 2e-7}
    found = table({("heat", "former", 20): slow, ("heat", "now", 20): fast, ("heat", "weights", 20): fast})
    assert floor.short(found) == [
        "heat: 2.00 times the former error after 10 s",
        "0.75 times the former error after 60 s in the median, not 0.5",
        "0.20 times the former error after 300 s in the median, not 0.1",
        "heat: 2.0e-07 after 300 s, not 1e-07",
        "all weights have 1.00 times the error after 300 s in the median, not 2.0",
    ]
    good = {10: 1e-5, 60: 1e-7, 300: 1e-8}
    assert floor.short(table({("heat", "now", 20): good, ("heat", "weights", 20): slow})) == []


def test_a_stretch_without_a_better_point_is_seen(table):
    still = {10: 1e-6, 20: 2e-6, 60: 3e-6, 80: 1e-6, 100: 9e-7, 120: 1e-5}
    assert floor.stretch(still) == 70
    falling = {t: 1e-6 / t for t in still}
    runs = {("burgers", "now", 20): still, ("burgers", "now", 21): falling}
    assert "burgers: no better point for 70 s" in floor.short(table(runs))


def test_a_row_for_each_code_and_the_medians_of_the_ratios(table):
    found = table({("heat", "former", 20): {10: 4e-5, 30: 1e-5}, ("heat", "now", 20): {10: 1e-5, 30: 1e-6}})
    lines = floor.markdown(found).splitlines()
    assert lines[2].startswith("| heat | former | 4.0e-05 | 1.0e-05 |")
    assert lines[3] == "| heat | now | 1.0e-05 | 1.0e-06 |  |  |  | 0.25 |  |  | 1, 0 |"
    assert lines[-1] == "Now by former, medians over cases: 0.25 after 10 s (1 cases), 0.1 after 30 s (1 cases)."

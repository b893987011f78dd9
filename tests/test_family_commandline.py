"""Families on the command line: what a folder holds, going on after a kill, answers from it, and invalid input."""

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_commandline import compose, put

import pinn_odelora as po
from pinn_odelora import config as commandline
from pinn_odelora import wall
from pinn_odelora.__main__ import main
from pinn_odelora.config.checks import check
from pinn_odelora.config.load import family as family_of
from pinn_odelora.config.load import load
from pinn_odelora.config.sentences import of_run
from pinn_odelora.errors import InputError
from pinn_odelora.families import offline
from pinn_odelora.families.family import Family
from pinn_odelora.points import Points
from pinn_odelora.runs.compare import summaries
from pinn_odelora.runs.location import check_free
from problems.burgers import Burgers

ROOT = Path(__file__).parents[1]
SMALL = ["net.width=8", "net.depth=2", "pretrain.adam_steps=30", "pretrain.natural_gradient_steps=40"]
RANGE = "family.nu=[0.05,0.03]"
FILES = [
    *(
        "code",
        "config.yaml",
        "family.safetensors",
        "manifest.json",
        "pretrained.safetensors",
        "provenance.json",
        "start.json",
    ),
    "summary.json",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys, cache):
    """``typed(*arguments)``: the exit code of train.py, begun in an empty folder, and the lines that it says."""
    spec = importlib.util.spec_from_file_location("train", ROOT / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "train", train)
    monkeypatch.setenv("PINN_ODELORA_CACHE", str(cache))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            code = commandline.run(train.train, ROOT / "configs")
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().err.splitlines()

    yield call
    root.handlers[:], root.level = handlers, level


def process(cache, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PINN_ODELORA_CACHE": str(cache)}
    command = [sys.executable, "train.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """The folder of a family, and what was said."""
    folder = tmp_path_factory.mktemp("finished") / "family"
    ran = process(cache, *SMALL, RANGE, "budget.steps=60", f"output_dir={folder}")
    _, said = ran.communicate(timeout=120)
    assert ran.returncode == 0, said
    return folder, said


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


# What a folder holds.


def test_a_family_leaves_its_files_and_says_what_came_of_it(finished):
    folder, said = finished
    assert sorted(file.name for file in folder.iterdir()) == FILES
    summary, last = summary_of(folder), said.splitlines()[-1]
    number = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"
    line = (
        rf"burgers family nu 0\.03\.\.0\.05: {summary['count']} stations in {number} s; answers: estimated error "
        rf"median {number}, worst {number} \(true {number}, {number}\), {number} s each; files in {folder}"
    )
    assert re.fullmatch(line, last), last
    assert len(re.findall(r"^station \d+ at nu=", said, flags=re.MULTILINE)) >= summary["count"]
    page = (ROOT / "docs/reference/columns.md").read_text(encoding="utf-8")
    table = page.split("## Names in the `summary.json` of a family\n\n")[1].split("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines()]
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == summary.keys()
    assert summary["ranges"] == {"nu": [0.03, 0.05]}
    assert summary["count"] == len(summary["stations"]) > 2
    assert summary["steps"] == sum(s["steps"] for s in summary["stations"]) >= 60
    assert all(0.03 <= s["values"]["nu"] <= 0.05 and s["loss"] > 0 for s in summary["stations"])


def test_the_errors_in_the_summary_are_those_of_answers_spread_over_the_range(finished):
    folder, _ = finished
    summary, family = summary_of(folder), family_of(folder)
    values = sorted(x["values"]["nu"] for x in summary["answers"])
    assert len(values) == 9
    assert np.diff([0.03, *values, 0.05]).max() < 2.5 * 0.02 / 9
    generator = torch.Generator().manual_seed(3)
    box = torch.rand(4000, 2, dtype=torch.float64, generator=generator)
    p = Points({"x": 2 * box[:, :1] - 1, "t": box[:, 1:]})
    for row in summary["answers"]:
        u = family(nu=row["values"]["nu"])
        reference = Burgers(nu=row["values"]["nu"]).reference(p).ravel()
        error = float((u(p["x"], p["t"]).detach().ravel() - reference).norm() / reference.norm())
        assert u.error == pytest.approx(row["estimate"], rel=1e-6)
        assert 0.7 * error < row["rel_l2"] < 1.4 * error
    assert summary["estimate_worst"] == max(x["estimate"] for x in summary["answers"])
    assert summary["rel_l2_median"] == sorted(x["rel_l2"] for x in summary["answers"])[4]


def test_the_file_is_that_of_the_network_before(finished):
    """What the folder keeps is all that the library needs."""
    folder, _ = finished
    net = po.MLP(2, 1, width=8, depth=2, generator=torch.Generator().manual_seed(1))
    net.double().load_state_dict(load_file(folder / "pretrained.safetensors"))
    mine = po.load_family(folder / "family.safetensors", net, Burgers())(nu=0.037)
    x = np.linspace(-1, 1, 9)
    assert np.allclose(mine(x, 0.4), family_of(folder)(nu=0.037)(x, 0.4), rtol=0, atol=1e-12)


def test_a_repeated_family_has_the_same_bytes(finished, typed, tmp_path):
    folder, _ = finished
    code, said = typed("--config-path", str(folder), "--config-name", "config", "output_dir=again")
    assert code == 0, said
    assert (tmp_path / "again/family.safetensors").read_bytes() == (folder / "family.safetensors").read_bytes()
    assert (tmp_path / "again/config.yaml").read_text() == (folder / "config.yaml").read_text()


# Going on.


@pytest.mark.slow
def test_a_killed_family_goes_on_to_the_same_end(finished, tmp_path, cache):
    whole, _ = finished
    parts = tmp_path / "parts"
    ran = process(cache, *SMALL, RANGE, "budget.steps=60", f"output_dir={parts}")
    kill_at(ran, parts / "family.safetensors", 3)
    assert not (parts / "summary.json").exists()
    ran = process(cache, f"resume={parts}")
    assert "station 1 at" not in ran.communicate(timeout=120)[1]
    assert ran.returncode == 0
    assert (parts / "family.safetensors").read_bytes() == (whole / "family.safetensors").read_bytes()


def kill_at(ran, file, stations):
    """End a process as soon as its file holds so many stations."""
    while not file.exists() or len({name.partition("/")[0] for name in load_file(file)}) < stations:
        assert ran.poll() is None, ran.stderr.read()
        time.sleep(0.01)
    ran.kill()
    ran.communicate()


def test_ctrl_c_ends_with_the_line_that_continues(typed, tmp_path, monkeypatch):
    solve = offline.solve

    def interrupted(parametric, start, values, tolerance, seed, steps):
        if seed >= 2000:
            raise KeyboardInterrupt
        return solve(parametric, start, values, tolerance, seed, steps)

    with monkeypatch.context() as patch:
        patch.setattr(offline, "solve", interrupted)
        code, said = typed(*SMALL, RANGE, "budget.steps=30", "output_dir=here")
    assert code == 130
    assert said[-1] == "Interrupted while stations were solved; continue with: python train.py resume=here"
    code, said = typed("resume=here")
    assert code == 0
    assert not any(line.startswith(("station 1 ", "station 2 ")) for line in said)
    assert summary_of(tmp_path / "here")["count"] > 2


@pytest.mark.slow
def test_out_of_time_a_family_ends_with_the_code_and_the_line_that_continue_it(typed, tmp_path, monkeypatch):
    limit = 1e9
    with monkeypatch.context() as patch:
        now = iter(range(int(limit) - 9, int(limit) + 10**6))
        patch.setattr(wall, "elapsed", lambda: float(next(now)))
        code, said = typed(*SMALL, RANGE, "budget.steps=30", f"budget.wall={limit:.0f}", "output_dir=here")
    assert code == 75
    assert re.fullmatch(
        r"Out of time \(budget\.wall\) after \d+ stations?; continue with: python train\.py resume=here", said[-1]
    )
    assert not (tmp_path / "here" / "summary.json").exists()
    assert typed("resume=here")[0] == 0
    assert typed(*SMALL, RANGE, "budget.steps=30", "output_dir=whole")[0] == 0
    parts, whole = ((tmp_path / name / "family.safetensors").read_bytes() for name in ("here", "whole"))
    assert parts == whole


def test_a_finished_family_goes_on_with_a_larger_budget_or_a_smaller_tolerance(typed, tmp_path):
    assert typed(*SMALL, RANGE, "budget.steps=12", "stations.tolerance=0.5", "output_dir=here")[0] == 0
    before = load_file(tmp_path / "here/family.safetensors")
    code, said = typed("resume=here", "budget.steps=24", "stations.tolerance=1e-4")
    assert code == 0, said
    after = load_file(tmp_path / "here/family.safetensors")
    assert len(after) > len(before)
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert summary_of(tmp_path / "here")["tolerance"] == 1e-4


def test_a_folder_that_holds_a_family_is_not_begun_again(finished):
    with pytest.raises(InputError, match="already holds a run; continue it with resume="):
        check_free(finished[0])


# Its settings.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (None, 60, None)),
        (["budget.steps=20"], (None, None, 20)),
        (["budget.seconds=5"], (None, 5, None)),
        (["budget.gradient_evals=700"], (700, None, None)),
        (["budget.wall=3500"], (None, 60, None)),
        (["budget.gradient_evals=700", "budget.seconds=5"], (700, 5, None)),
    ],
)
def test_the_budget_is_what_is_given_or_a_minute(monkeypatch, tmp_path, arguments, expected):
    held = begun(monkeypatch, tmp_path, RANGE, *arguments).budget
    assert (held.gradient_evals, held.seconds, held.steps) == expected


def begun(monkeypatch, folder, *arguments):
    """The configuration of a run that is checked and not started."""
    kept = []

    def train(cfg):
        kept.append(commandline.begin(cfg)[0])

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert commandline.run(train, ROOT / "configs") == 0
    return kept[0]


def test_what_is_set_reaches_the_family(typed, tmp_path):
    code, said = typed(
        *SMALL,
        "family.nu=[0.03,0.05]",
        *("lora.rank=2", "seed=3", "stations.scale=log", "stations.most=3", "budget.steps=200", "output_dir=here"),
        *("method=odelora", "integrator=linearly_implicit", "logger=csv", "derivatives=autograd"),
    )
    assert code == 0, said
    made = family_of(tmp_path / "here")
    assert (made.parametric.rank, made.seed, len(made.stations)) == (2, 3, 3)
    assert made.space.intervals[0].scale == "log"


def test_a_sweep_solves_a_family_in_each_folder(typed, tmp_path):
    code, said = typed(
        "-m", *SMALL, "family.nu=[0.05,0.04],[0.045,0.05]", "seed=0,1", "budget.steps=6", "output_dir=sweep"
    )
    assert code == 0, said
    ranges = [summary_of(tmp_path / "sweep" / str(k))["ranges"]["nu"] for k in range(4)]
    assert ranges == [[0.04, 0.05], [0.04, 0.05], [0.045, 0.05], [0.045, 0.05]]


def test_a_folder_of_its_own_name_and_two_parameters(typed, tmp_path):
    code, said = typed(*SMALL, RANGE, "family.amplitude=[0.9,1.0]", "budget.steps=12")
    assert code == 0, said
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("burgers-family-2")
    assert said[-1].startswith("burgers family nu 0.03..0.05, amplitude 0.9..1: ")
    assert family_of(folder)(nu=0.04, amplitude=0.97).problem.amplitude == 0.97


# What cannot be solved.

REFUSED = [
    ("family.mu=[1,2]", "Unknown parameter of Burgers for a family: 'mu'; allowed: amplitude, nu."),
    ("family.nu=0.05", "family.nu is 0.05, but it must be the two ends of its range"),
    ("family.nu=[0.05]", "family.nu is [0.05], but it must be the two ends of its range"),
    ("family.nu=[0.05,0.03,0.01]", "family.nu is [0.05, 0.03, 0.01], but it must be the two ends"),
    ("family.nu=null", "family.nu is null, but it must be the two ends of its range"),
    ("family.nu=[0.05,thin]", "family.nu is thin, but it must be a finite number."),
    ("family.nu=[0.05,-0.01]", "family.nu is -0.01, but it must be a finite number above 0."),
    ("problem=helmholtz family.k=[1,3]", "Unknown parameter of Helmholtz for a family: 'k'"),
    ("{} data.file=points.csv", "data.file is points.csv, but it must be null for a family."),
    ("family.amplitude=[1,2] problem.nu=unknown", "problem.nu is unknown, but it must be a number for a family."),
    ("{} method=lora_adam", "method is lora_adam, but it must be odelora for a family."),
    ("{} integrator=rk4", "integrator is rk4, but it must be linearly_implicit for a family."),
    ("{} precision=32", "precision is 32, but it must be 64 for a family."),
    ("{} lora.rank=adaptive", "lora.rank is adaptive, but it must be a whole number or auto for a family."),
    ("{} points=fixed", "points is given, but it has no effect on a family: leave it out."),
    ("{} weighting=ntk", "weighting is given, but it has no effect on a family: leave it out."),
    ("{} log.kernel=true", "log.kernel is given, but it has no effect on a family"),
    ("{} integrator.h=1", "integrator.h is given, but it has no effect on a family"),
    ("{} checkpoint.every=3", "checkpoint.every is given, but it has no effect on a family"),
    ("{} logger.name=mine", "logger.name is given, but it has no effect on a family"),
    ("{} stations.tolerance=0", "stations.tolerance is 0, but it must be a finite number above 0."),
    ("{} stations.most=1", "stations.most is 1, but it must be a whole number of at least 2."),
    ("{} stations.scale=lin", "stations.scale is lin, but it must be auto, log or linear."),
    ("{} stations.number=3", "Unknown key of stations: 'number'; allowed: most, scale, tolerance."),
    ("stations.tolerance=1e-3", "stations.tolerance is given, but there is no family: give a range, as family.nu="),
    ("{} budget.steps=0", "budget.steps is 0"),
    ("{} budget.gradient_evals=null", "budget.steps is null, but it must be a whole number where neither"),
]


@pytest.fixture(scope="module")
def default():
    return compose()


@pytest.mark.parametrize(("line", "sentence"), REFUSED, ids=[line for line, _ in REFUSED])
def test_what_is_wrong_is_a_sentence(default, tmp_path, monkeypatch, line, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.csv").write_text("x,t,u\n0.5,0.5,0.1\n")
    with pytest.raises(InputError) as refused:
        check(*put(default, line.format(RANGE)))
    said = of_run(refused.value)
    assert sentence.replace("points.csv", str(tmp_path / "points.csv")) in said
    assert said.endswith(".")


TYPED = [
    (
        "family.nu=0.05,0.01",
        "family.nu=0.05,0.01 holds several values: add -m to run one after the other, or write a list",
    ),
    ("family.nu=[0.05,0.05]", "family.nu is [0.05, 0.05], but it must be a range with two different ends."),
    ("family=0.05", "family is 0.05, but it is not a key with a value: set family.<name>."),
    ("{} problem.nu=0.03", "problem.nu is given, but family.nu gives its range: leave one out."),
    ("{} lora.rank=50", "lora.rank is 50, but"),
]


@pytest.mark.parametrize(("line", "sentence"), TYPED, ids=[line for line, _ in TYPED])
def test_what_is_wrong_is_one_line_before_anything_is_trained(typed, tmp_path, line, sentence):
    code, said = typed(*SMALL, *line.format(RANGE).split())
    assert code == 2
    assert len(said) == 1, said
    assert sentence in said[0]
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


def test_a_family_of_three_parameters_is_not_begun(default, tmp_path, monkeypatch):
    (tmp_path / "waves.py").write_text(
        "from dataclasses import dataclass\n"
        "from pinn_odelora.formulation import parameter\n"
        "from problems.burgers import Burgers\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Waves(Burgers):\n"
        "    c: float = parameter(1.0, 2.0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    line = f"problem._target_=waves.Waves {RANGE} family.amplitude=[1,2] family.c=[1,2]"
    with pytest.raises(InputError, match="A family has one or two parameters, not 3: nu, amplitude, c"):
        check(*put(default, line))
    sys.modules.pop("waves")


def test_resume_changes_no_range(typed):
    assert typed(*SMALL, RANGE, "budget.steps=6", "output_dir=here")[0] == 0
    code, said = typed("resume=here", "family.nu=[0.05,0.02]")
    assert code == 2
    assert said[0].startswith("family.nu cannot change when a run is resumed; allowed: budget, stations.tolerance, ")


# Answers.


def asked(capsys, *arguments):
    """The exit code of ``python -m pinn_odelora family``, its lines, and what it refuses."""
    code = main(["family", *map(str, arguments)])
    out, said = capsys.readouterr()
    return code, out.splitlines(), said


def test_answers_with_their_estimates(finished, capsys):
    folder, _ = finished
    code, lines, _ = asked(capsys, folder, "nu=0.037", "nu=0.045")
    assert code == 0
    for line, nu in zip(lines, (0.037, 0.045), strict=True):
        error = family_of(folder)(nu=nu).error
        assert re.fullmatch(rf"nu={nu}: relative L2 error about {error:.1e}, \d+\.\d\d s", line)
    code, lines, _ = asked(capsys, folder)
    assert lines == [f"family of Burgers for nu from 0.03 to 0.05: {summary_of(folder)['count']} stations"]


def test_an_answer_at_points_and_as_an_adapter(finished, capsys, tmp_path):
    folder, _ = finished
    x, t = np.linspace(-1, 1, 11), np.full(11, 0.6)
    np.savez(tmp_path / "points.npz", x=x, t=t)
    code, lines, _ = asked(capsys, folder, "nu=0.037", "--points", tmp_path / "points.npz", "-o", tmp_path / "out.npz")
    assert (code, lines[1]) == (0, str(tmp_path / "out.npz"))
    with np.load(tmp_path / "out.npz") as found:
        assert np.allclose(found["u"], family_of(folder)(nu=0.037)(x, t), rtol=0, atol=1e-12)
    asked(capsys, folder, "nu=0.037", "--points", tmp_path / "points.npz")
    assert (tmp_path / "points-predicted.npz").read_bytes() == (tmp_path / "out.npz").read_bytes()
    code, lines, _ = asked(capsys, folder, "nu=0.037", "--adapter", tmp_path / "adapter")
    assert f"about {family_of(folder)(nu=0.037, form='adapter').error:.1e}," in lines[0]
    assert (code, lines[1]) == (0, str(tmp_path / "adapter"))
    assert sorted(f.name for f in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder / "pretrained.safetensors")


def test_a_tolerance_takes_steps_and_another_value_may_be_allowed(finished, capsys, monkeypatch):
    answers, answer = [], Family.__call__

    def recorded(family, **values):
        answers.append(answer(family, **values))
        return answers[-1]

    monkeypatch.setattr(Family, "__call__", recorded)
    for options in (["nu=0.034"], ["nu=0.034", "--tolerance", "1e-6"], ["nu=0.028", "--extrapolate"]):
        assert asked(capsys, finished[0], *options)[0] == 0
    assert [u.corrections > 0 for u in answers] == [False, True, False]
    assert answers[2].values == {"nu": 0.028}


def test_a_page(finished, capsys, tmp_path):
    code, lines, _ = asked(capsys, finished[0], "--page", tmp_path / "page.html")
    assert (code, lines) == (0, [str(tmp_path / "page.html")])
    assert "<html" in (tmp_path / "page.html").read_text()


UNASKED = [
    ("nu=0.1", "nu is 0.1, but it must be from 0.03 to 0.05 in this family, unless --extrapolate is given."),
    ("mu=1", "Unknown parameter of the family: 'mu'; allowed: nu."),
    ("nu", "Cannot read the argument 'nu'; values read parameter=number."),
    ("nu=thin", "Cannot read the argument 'nu=thin'; values read parameter=number."),
    ("nu=0.03 nu=0.04 --points p.npz", "--points is for one answer, but values for 2 are given."),
    ("--adapter here", "--adapter is for one answer, but values for 0 are given."),
    (
        "nu=0.04 --adapter here --form combination",
        "--adapter writes one adapter, which a combination is not; --form must be adapter or auto.",
    ),
    ("nu=0.04 -o out.npz", "An output file is given, but no --points at which to evaluate the answer."),
    ("nu=0.03 nu=0.04 nu=0.05 mu=1 mu=2", "There are 3 of nu, 2 of mu; give each parameter once, or as often as the"),
    ("nu=0.04 --tolerance 0", "tolerance is 0.0, but it must be a finite number above 0 or None."),
    ("nu=0.04 --points nowhere.npz", "nowhere.npz cannot be read as an .npz file of named arrays"),
]


@pytest.mark.parametrize(("line", "sentence"), UNASKED, ids=[line for line, _ in UNASKED])
def test_what_cannot_be_answered_is_a_sentence(finished, capsys, line, sentence):
    code, _, said = asked(capsys, finished[0], *line.split())
    assert code == 2
    assert said.startswith(sentence)
    assert said.count("\n") == 1


def test_a_folder_without_a_family_and_one_of_another_network(finished, typed, tmp_path, capsys):
    code, _, said = asked(capsys, tmp_path, "nu=0.04")
    assert (code, said) == (2, f"{tmp_path} holds no family: there is no family.safetensors in it.\n")
    assert typed(*SMALL, RANGE, "pretrain.seed=1", "budget.steps=6", "output_dir=other")[0] == 0
    (tmp_path / "other/family.safetensors").write_bytes((finished[0] / "family.safetensors").read_bytes())
    code, _, said = asked(capsys, tmp_path / "other", "nu=0.04")
    assert code == 2
    assert "belongs to another pretrained network" in said


def test_a_family_is_not_taken_for_a_run(finished):
    folder, _ = finished
    with pytest.raises(InputError, match=r"holds a family of solutions; ask for one: python -m pinn_odelora family"):
        load(folder)
    with pytest.raises(InputError, match="holds no finished run"):
        summaries([folder])

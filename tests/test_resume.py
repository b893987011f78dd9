"""An interrupted run continues with the same bits: factors, optimiser, points, counters, history."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pinn_odelora import config as commandline
from pinn_odelora import load
from pinn_odelora.adaptation import Adaptation
from pinn_odelora.errors import InputError
from pinn_odelora.lightning.callbacks import Saver
from pinn_odelora.runs.history import History

ROOT = Path(__file__).parent.parent
CASES = [
    ["method=odelora"],
    [
        "method=odelora",
        "integrator=linearly_implicit",
        "points=residual",
        "points.interior=40",
        "points.initial_batch_size=5",
    ],
    ["method=odelora", "integrator=heun", "integrator.renew=7", "points=fresh"],
    ["method=odelora", "integrator=bogacki_shampine", "method.retract=false", "points=fixed"],
    ["method=lora_adam", "points=fresh"],
    ["method=factor_muon"],
    ["method=full_adam"],
    ["method=full_lbfgs"],
    ["method=lora_ssbroyden"],
    ["method=full_muon"],
    ["method=odelora", "problem.conditions=soft", "weighting=ntk", "points.initial_batch_size=20"],
    ["method=lora_adam", "problem.conditions=soft", "weighting=gradnorm", "weighting.every=5"],
]
TIMED = ("cost/seconds",)


def stop_at(step, patch):
    """Ctrl-C while a run takes the step before this one."""
    records = Adaptation.__iter__

    def interrupted(adaptation):
        for record in records(adaptation):
            if record.step == step - 1:
                signal.raise_signal(signal.SIGINT)
            yield record

    patch.setattr(Adaptation, "__iter__", interrupted)


def parameters(done):
    return done.adaptation.solution.parameters()


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


@pytest.mark.parametrize("overrides", CASES, ids=" ".join)
def test_an_interrupted_run_ends_with_the_bits_of_an_uninterrupted_one(overrides, compose, run, tmp_path, monkeypatch):
    common = [*overrides, "budget.steps=23", "checkpoint.every=4"]
    whole = run(compose(*common, f"output_dir={tmp_path / 'whole'}"))
    with monkeypatch.context() as patch:
        stop_at(13, patch)
        part = run(compose(*common, f"output_dir={tmp_path / 'parts'}"))
    assert (part.progress.step, part.result) == (13, None)
    resumed = run(commandline.begin(compose(f"resume={tmp_path / 'parts'}"))[0])

    assert all(torch.equal(a, b) for a, b in zip(*map(parameters, (whole, resumed)), strict=True))
    for name, value in whole.progress.as_dict().items():
        if name != "seconds":
            assert resumed.progress.as_dict()[name] == value, name
    rows = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in History(tmp_path / part / "history.csv").rows]
        for part in ("whole", "parts")
    ]
    assert [list(map(str, row.values())) for row in rows[0]] == [list(map(str, row.values())) for row in rows[1]]


def test_a_state_is_saved_at_every_multiple_of_the_key(compose, run, tmp_path, monkeypatch):
    save, steps = Saver.save, []
    monkeypatch.setattr(Saver, "save", lambda *given: (save(*given), steps.append(given[0].saved)))
    with monkeypatch.context() as patch:
        stop_at(31, patch)
        run(compose("method=lora_adam", "points=fresh", "budget.steps=71", "checkpoint.every=9"))
    run(commandline.begin(compose(f"resume={tmp_path / 'run'}"))[0])
    assert steps == [9, 18, 27, 31, 36, 45, 54, 63, 71]


def kill_and_resume(kills, tmp_path, seed):
    """A run killed at random rows of its history, then left to finish."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PINN_ODELORA_CACHE": str(tmp_path / "cache")}
    short = [
        *(
            "logger=csv",
            "points.interior=100",
            "net.width=16",
            "pretrain.adam_steps=5",
            "pretrain.natural_gradient_steps=0",
        ),
        *("log.every=10", "checkpoint.every=10", "points=fresh", "budget.gradient_evals=null", "budget.steps=200"),
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def start(folder):
        begun = (folder / "config.yaml").exists()
        arguments = [f"resume={folder}"] if begun else [*short, f"output_dir={folder}"]
        command = [sys.executable, "train.py", *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)

    assert start(whole).wait() == 0
    for rows in sorted(random.Random(seed).choices(range(1, 19), k=kills)):
        kill_at(start(parts), parts / "history.csv", rows)
    assert start(parts).wait() == 0
    compare(whole, parts)


def kill_at(process, history, rows):
    """End a process as soon as its history has so many rows; a continued one may have them when it starts."""
    while not history.exists() or history.read_text().count("\n") <= rows:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()


def compare(whole, parts):
    expected, found = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow  # the campaign of tests/robustness kills runs by default, too
def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    kill_and_resume(2, tmp_path, seed=0)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
    kill_and_resume(20, tmp_path, seed=1)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_run_with_the_line_that_continues_it(number, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PINN_ODELORA_CACHE": str(tmp_path / "cache")}
    arguments = [
        "logger=csv",
        "net.width=16",
        "pretrain.adam_steps=5",
        "pretrain.natural_gradient_steps=0",
        "points.interior=100",
    ]
    command = [
        sys.executable,
        "train.py",
        *arguments,
        "budget.gradient_evals=1000000",
        f"output_dir={tmp_path / 'run'}",
    ]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    history = tmp_path / "run" / "history.csv"
    for _ in range(600):
        if history.exists() and len(history.read_text().splitlines()) > 2:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"python train.py resume={tmp_path / 'run'}" in said
    assert "Traceback" not in said
    assert (tmp_path / "run" / "last.ckpt").exists()
    # What is saved of the solution is that of a finished run.
    assert not (tmp_path / "run" / "adapter").exists()
    with pytest.raises(InputError, match="no finished run; continue it"):
        load(tmp_path / "run")

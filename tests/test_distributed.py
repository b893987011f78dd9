"""One problem in two processes has the numbers that one process has: on a CPU, by torch's backend gloo."""

import json
import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_plan import Sector
from torch import distributed, multiprocessing

import pinn_odelora as po
from pinn_odelora import config
from pinn_odelora.derivatives import SAMPLE
from pinn_odelora.distributed import ALONE, processes
from pinn_odelora.errors import RefusedValueError
from pinn_odelora.integrators.tableau import EULER, RK4
from pinn_odelora.lightning.settings import check_trainer
from pinn_odelora.linearisation.sweep import Sweep
from pinn_odelora.runs.leader import FOLDER, RANK
from pinn_odelora.threads import set_threads
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

TWO = 2
TOLERANCE = 1e-10
IMPLICIT = po.LinearlyImplicit()


def measured():
    x, t = np.random.default_rng(0).uniform(size=(2, 11))
    return {"x": x, "t": t, "u": np.sin(x) * np.exp(-t)}


CASES = {
    "implicit": dict,
    "euler": lambda: {"method": po.methods.odelora(po.RungeKutta(EULER, h=0.02))},
    "rk4": lambda: {"method": po.methods.odelora(po.RungeKutta(RK4, h=0.02))},
    "ros2": lambda: {"method": po.methods.odelora(po.ROS2())},
    "adam": lambda: {"method": po.methods.lora_adam()},
    "all weights": lambda: {"method": po.methods.full_implicit(IMPLICIT)},
    "conjugate gradients": lambda: {"method": po.methods.odelora(po.LinearlyImplicit(memory=2e5))},
    "reverse mode": lambda: {
        "derivatives": "autograd",
        "points": po.Sampling(interior=40, boundary=7, best_iterate=False),
    },
    "adaptive rank": lambda: {"rank": "adaptive"},
    "three components": lambda: {"problem": Kovasznay(re=30.0)},
    "soft conditions": lambda: {"problem": Burgers(nu=0.02, conditions="soft")},
    "kernel weights": lambda: {"problem": Burgers(nu=0.02, conditions="soft"), "weighting": "ntk"},
    "gradient weights of Adam": lambda: {
        "problem": Burgers(nu=0.02, conditions="soft"),
        "method": po.methods.lora_adam(),
        "weighting": po.Weighting("gradnorm", every=3),
    },
    "a coupled term": lambda: {"problem": Sector(), "points": po.Sampling(interior=60, boundary=1)},
    # Here and below more points than coordinates: steps that interpolate them amplify rounding errors a thousand times,
    # and here first layers do.
    "measurements": lambda: {
        "data": measured(),
        "unknown": ["nu"],
        "lora": po.LoRA(rank=3, also=["last"]),
        "points": po.Sampling(interior=301, best_iterate=False),
    },
    # On the same points 1/h falls at every step, and the amplification grows with h: it is fixed.
    "fixed points": lambda: {
        "points": po.Sampling.fixed(interior=301, boundary=9),
        "method": po.methods.odelora(po.LinearlyImplicit(h=10.0)),
    },
}


def adaptation(problem=None, points=None, budget=None, **settings):
    problem = problem or Burgers(nu=0.02)
    few = po.Sampling(interior=301, boundary=20, batch_size=300, initial_batch_size=75)
    net = po.MLP(problem.inputs, len(problem.fields), width=12)
    rank = {} if {"rank", "lora"} & settings.keys() else {"rank": 3}
    own = {"points": points or few, "log": po.Log(every=2, heldout=32, test=32), "budget": budget or po.Budget(steps=6)}
    return po.steps(net, problem, **rank, **own, **settings)


def result(run):
    for _ in run:
        pass
    run.conclude()
    return {name: x.clone() for name, x in run.solution.state_dict().items()}


def worker(rank, folder):
    """Every case in this process of two, and how many points it swept."""
    set_threads(1)
    place = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": TWO}
    # Processes that disagree wait for each other.
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60), **place)
    together, found, swept = processes(), {}, []
    groups = Sweep._groups
    Sweep._groups = lambda self, name, p, *rest: swept.append(p.number) or groups(self, name, p, *rest)
    for name, settings in CASES.items():
        run = adaptation(**settings())
        run.share(together)
        swept.clear()
        found[name] = (result(run), run.training.progress.gradient_evals, sum(swept))
    run = adaptation(budget=po.Budget(seconds=0.2))
    run.share(together)
    found["seconds"] = (result(run), run.training.progress.step, run.training.progress.seconds)
    found["exchange"] = exchange(together)
    torch.save(found, f"{folder}/{rank}")
    distributed.destroy_process_group()


def exchange(together):
    """Sums and gathered rows of tensors that differ between the processes."""
    rows = {n: torch.arange(3.0 * n).view(n, 3).float() for n in (1, 2, 5)}
    gathered = {n: together.gathered(x[together.part(n)], n) for n, x in rows.items()}
    own = torch.tensor([1.5, -2.0]) * (together.rank + 1)
    flags = [together.any(flag) for flag in (False, together.rank == 1)]
    return gathered, together.summed([own, own.double()[0]]), flags, together.clock()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes has found."""
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(worker, (str(folder),), TWO)
    return [torch.load(folder / str(rank)) for rank in range(TWO)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(two, name):
    alone = adaptation(**CASES[name]())
    expected, evals = result(alone), alone.training.progress.gradient_evals
    (first, first_evals, _), (second, second_evals, _) = (found[name] for found in two)
    assert first_evals == second_evals == evals
    assert first.keys() == expected.keys()
    for key, x in expected.items():
        assert torch.equal(first[key], second[key]), key
        assert float((first[key] - x).abs().max()) <= TOLERANCE * max(1, float(x.abs().max())), key
    before = adaptation(**CASES[name]()).solution.net.state_dict()
    assert any(not torch.equal(x, expected[f"net.{key}"]) for key, x in before.items() if f"net.{key}" in expected)


def test_each_process_sweeps_its_part(two):
    swept, sweep = [], Sweep._groups
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sweep, "_groups", lambda self, _, p, *rest: swept.append(p.number) or sweep(self, _, p, *rest))
        result(adaptation())
    first, second = (found["implicit"][2] for found in two)
    # A few points, by which every process finds out how to sweep a term, are not shared: by pairs and row by row.
    assert first + second == sum(swept) + 2 * SAMPLE
    assert abs(first - second) <= 6  # one a step


def test_a_budget_of_seconds_ends_at_one_step_for_all(two):
    (one, steps, seconds), (other, *rest) = (found["seconds"] for found in two)
    assert [steps, seconds] == rest
    assert steps > 0
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def test_rows_and_sums_are_exchanged(two):
    for gathered, (summed, single), flags, clock in (found["exchange"] for found in two):
        for n, x in gathered.items():
            assert torch.equal(x, torch.arange(3.0 * n).view(n, 3))
        assert torch.equal(summed, torch.tensor([4.5, -6.0]))
        assert (single.dtype, float(single)) == (torch.float64, 4.5)
        assert flags == [False, True]
        assert clock == two[0]["exchange"][3]


def test_a_process_alone_exchanges_nothing():
    x = torch.ones(3)
    assert processes() is ALONE
    assert ALONE.summed([x])[0] is x
    assert ALONE.gathered(x, 3) is x
    assert ALONE.part(5) == slice(0, 5)


# The command line.


@pytest.mark.parametrize(
    ("settings", "sweep", "allowed"),
    [
        ({"devices": 2}, False, "or several with strategy=ddp"),
        ({"devices": 0, "strategy": "ddp"}, False, "or several with strategy=ddp"),
        ({"devices": 2, "strategy": "fsdp"}, False, "or several with strategy=ddp"),
        ({"devices": 2, "strategy": "ddp"}, True, "since the jobs of a sweep have one each"),
    ],
)
def test_devices_that_a_run_cannot_have(settings, sweep, allowed):
    with pytest.raises(RefusedValueError, match=allowed):
        check_trainer(settings, sweep)
    check_trainer({"devices": 2, "strategy": "ddp"})


def test_a_process_that_does_not_lead_reads_the_configuration_and_writes_nothing(compose, tmp_path, monkeypatch):
    cfg = compose("seed=3")
    folder = Path(cfg.output_dir)
    config.save_config(cfg, folder)
    before = (folder / "config.yaml").stat().st_mtime_ns
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv(RANK, "1")
    read, place = config.program.begin(cfg)
    config.save_config(read, place)
    assert (place, read.seed, read.choices) == (folder, 3, cfg.choices)
    assert (folder / "config.yaml").stat().st_mtime_ns == before
    assert [file.name for file in tmp_path.rglob("*")] == ["run", "config.yaml"]


SHORT = (
    *("problem=heat", "logger=csv", "points.interior=200", "points.boundary=12", "net.width=12", "log.test=64"),
    *("pretrain.adam_steps=3", "pretrain.natural_gradient_steps=0", "trainer.accelerator=cpu"),
)
DDP = ("trainer.devices=2", "trainer.strategy=ddp")


@pytest.mark.slow
def test_train_py_in_two_processes_leaves_what_one_leaves(tmp_path):
    environment = os.environ | {"PINN_ODELORA_CACHE": str(tmp_path / "cache")}

    def train(*arguments):
        command = [sys.executable, str(Path(__file__).parents[1] / "train.py"), *arguments]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return [line for line in ran.stderr.splitlines() if "files in" in line]

    train(*SHORT, "budget.steps=4", "output_dir=one")
    assert len(train(*SHORT, *DDP, "budget.steps=2", "output_dir=two")) == 1
    train("resume=two", "budget.steps=4")
    names = lambda run: sorted(str(file.relative_to(tmp_path / run)) for file in (tmp_path / run).rglob("*"))
    assert names("one") == names("two")
    one, two = (load_file(tmp_path / run / "adapter/adapter_model.safetensors") for run in ("one", "two"))
    assert all(float((x - two[key]).abs().max()) <= TOLERANCE for key, x in one.items())
    facts = [json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two")]
    assert math.isclose(facts[0]["rel_l2"], facts[1]["rel_l2"], rel_tol=TOLERANCE)
    assert [f["steps"] for f in facts] == [4, 4]

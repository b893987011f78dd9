"""The same run on a CUDA device: the same numbers to rounding, and files that load without one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pinn_odelora
from pinn_odelora import config as commandline
from pinn_odelora.adaptation import Adaptation
from pinn_odelora.linearisation import Linearisation, Sweep
from pinn_odelora.lowrank.start import orthonormal
from pinn_odelora.lowrank.targets import linear_targets, put_factors
from pinn_odelora.manifolds.fixed_rank import frame
from pinn_odelora.nets import MLP
from pinn_odelora.runs.history import History
from pinn_odelora.system import Solution, System, draw_points
from problems.allen_cahn import AllenCahn
from problems.burgers import Burgers
from problems.kovasznay import Kovasznay

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning"),
]


@pytest.mark.parametrize("problem", ["burgers", "kovasznay", "poisson"])
@pytest.mark.parametrize(
    "method",
    [
        *("odelora", "odelora integrator=bogacki_shampine", "odelora lora.rank=adaptive lora.adaptive.residuals=0.1"),
        *("lora_adam", "factor_muon", "scaled_gd", "full_lbfgs"),
    ],
)
def test_a_run_on_the_gpu_follows_the_run_on_the_cpu(problem, method, compose, run, tmp_path):
    losses = {}
    for device in ("cpu", "gpu"):
        folder = tmp_path / device
        cfg = compose(
            *(f"problem={problem}", *f"method={method}".split(), "budget.steps=6", "log.every=1"),
            *(f"trainer.accelerator={device}", f"output_dir={folder}"),
        )
        done = run(cfg)
        done.run.conclude(done.result, done.facts)
        losses[device] = [row["loss"] for row in History(folder / "history.csv").rows]
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=1e-8)
    a, b = (pinn_odelora.load(Path(tmp_path) / device)(0.2, 0.3) for device in ("cpu", "gpu"))
    assert b == pytest.approx(a, rel=1e-7)


@pytest.mark.parametrize("problem", ["matrix_sensing", "matrix_regression"])
def test_a_matrix_problem_on_the_gpu_follows_that_on_the_cpu(problem, compose, run, tmp_path):
    errors = {}
    for device in ("cpu", "gpu"):
        folder = tmp_path / device
        # Without h the first step takes it from the diagonal of JᵀJ in a basis of the tangent space, which three equal
        # singular values at the start leave open.
        scheme = ["integrator.gram_dtype=float64", "integrator.h=0.05"]
        common = [f"problem={problem}", *scheme, "budget.steps=6", "log.every=1"]
        run(compose(*common, f"trainer.accelerator={device}", f"output_dir={folder}"))
        errors[device] = [row["error/rel_l2"] for row in History(folder / "history.csv").rows]
    assert errors["gpu"] == pytest.approx(errors["cpu"], rel=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        "method=odelora points.initial_batch_size=5",
        "method=odelora lora.rank=adaptive lora.adaptive.residuals=0.1 lora.adaptive.outside=0.1",
        "method=odelora integrator=bogacki_shampine points=fixed",
        "method=factor_muon",
        "method=full_lbfgs",
    ],
)
def test_an_interrupted_run_on_the_gpu_continues(method, compose, run, tmp_path, monkeypatch):
    common = [*method.split(), "budget.steps=12", "checkpoint.every=4", "log.every=1", "trainer.accelerator=gpu"]
    run(compose(*common, f"output_dir={tmp_path / 'whole'}"))
    records = Adaptation.__iter__

    def interrupted(adaptation):
        for record in records(adaptation):
            if record.step == 6:
                signal.raise_signal(signal.SIGINT)
            yield record

    with monkeypatch.context() as patch:
        patch.setattr(Adaptation, "__iter__", interrupted)
        run(compose(*common, f"output_dir={tmp_path / 'parts'}"))
    run(commandline.begin(compose(f"resume={tmp_path / 'parts'}"))[0])
    whole, parts = (History(tmp_path / part / "history.csv").rows for part in ("whole", "parts"))
    assert [row["cost/gradient_evals"] for row in parts] == [row["cost/gradient_evals"] for row in whole]
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], rel=1e-6)


MEASURED = "x,t,u\n" + "".join(f"{i / 8 - 1},{(i % 5) / 5},{0.1 * i}\n" for i in range(17))


@pytest.mark.parametrize(
    "arguments",
    ["problem=burgers", "problem=burgers problem.nu=unknown data.file={data}", "problem=matrix_sensing"],
)
def test_a_whole_run_on_the_gpu_leaves_everything(arguments, tmp_path):
    """``train.py`` itself, with W&B's files."""
    (tmp_path / "measured.csv").write_text(MEASURED)
    trained = ["net.width=12", "pretrain.adam_steps=3", "pretrain.natural_gradient_steps=2"]
    short = [] if "matrix" in arguments else trained
    ends = ["budget.steps=3", "trainer.accelerator=gpu", f"output_dir={tmp_path / 'run'}"]
    run = subprocess.run(
        [sys.executable, "train.py", *arguments.format(data=tmp_path / "measured.csv").split(), *short, *ends],
        cwd=ROOT,
        env={**os.environ, "PINN_ODELORA_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"summary.json", "history.csv", "solution.png", "history.png", "adapter", "wandb"} <= left


def test_pretraining_and_the_adaptive_batch_size_on_the_gpu_follow_those_on_the_cpu(compose, run, tmp_path):
    rows = {}
    for device in ("cpu", "gpu"):
        cfg = compose(
            *("pretrain.natural_gradient_steps=6", f"pretrain.cache={tmp_path / 'kept' / device}"),
            "points.initial_batch_size=5",
            *("budget.steps=6", "log.every=1", f"trainer.accelerator={device}", f"output_dir={tmp_path / device}"),
        )
        run(cfg)
        rows[device] = History(tmp_path / device / "history.csv").rows
    for cpu, gpu in zip(rows["cpu"], rows["gpu"], strict=True):
        assert gpu["cost/batch_size"] == cpu["cost/batch_size"]
        assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-6)


def test_adapt_computes_on_the_gpu_unless_told_otherwise_and_returns_a_solution_on_the_cpu():
    net = MLP(2, 1, width=12, generator=torch.Generator().manual_seed(1))
    settings = {"rank": 4, "points": pinn_odelora.Sampling(interior=100, boundary=20)}
    settings |= {"budget": pinn_odelora.Budget(steps=6), "log": pinn_odelora.Log(every=1)}
    results = {device: pinn_odelora.adapt(net, Burgers(), device=device, **settings) for device in ("cpu", "auto")}
    losses = {device: [row["loss"] for row in result.history] for device, result in results.items()}
    assert losses["auto"] == pytest.approx(losses["cpu"], rel=1e-7)
    assert losses["auto"] != losses["cpu"], "another device rounds otherwise"
    assert all(p.device.type == "cpu" for p in results["auto"].net.parameters())
    assert results["auto"].solution(0.2, 0.3) == pytest.approx(results["cpu"].solution(0.2, 0.3), rel=1e-6)


@pytest.mark.parametrize(
    "problem", [Burgers(conditions="soft"), Kovasznay(), AllenCahn()], ids=lambda p: type(p).__name__
)
def test_jets_and_linearisation_on_the_gpu_are_those_of_the_cpu(problem):
    found = {}
    for device in ("cpu", "cuda"):
        net = MLP(problem.inputs, len(problem.fields), width=20)
        generator = torch.Generator().manual_seed(1)
        layers = put_factors(net, linear_targets(net), 3, 0.7, orthonormal, generator)
        system = System(problem, Solution(problem, net.to(device)), derivatives="jets")
        points = {name: p.to(device) for name, p in draw_points(system.terms, 200, 50, seed=0).items()}
        around = Linearisation(Sweep(system, layers), points)
        frames = {name: frame(layer.factors) for name, layer in layers.items()}
        direction = {name: torch.ones_like(layer.weight) for name, layer in layers.items()}
        found[device] = [
            *(around.r, around.kernel(), around.diagonal(), around.matvec(direction)),
            # Singular vectors are free up to signs, and so are single coordinates, but not the kernel of the columns.
            *((J := around.columns(frames)) @ J.mT, torch.linalg.eigvalsh(around.gram(frames))),
            *around.gradient().values(),
        ]
    for cpu, gpu in zip(found["cpu"], found["cuda"], strict=True):
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-9, atol=1e-9 * float(cpu.abs().max()))

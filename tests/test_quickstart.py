"""The first lines of a new user: the README's Python section in a fresh process, and ``adapt`` beside ``train.py``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

import pinn_odelora as po
from pinn_odelora import config
from pinn_odelora.checkpoints import save_network
from pinn_odelora.registry import problem_classes

ROOT = Path(__file__).parents[1]
EQUATIONS = [name for name in problem_classes() if not name.startswith("matrix_")]
TIMED = "cost/seconds"
STEPS = 12

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning")


def test_the_readme_adapts_in_a_fresh_process_without_hydra_lightning_and_wandb(tmp_path):
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## In Python\n")[2]
    code = re.search(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)[1]
    assert "po.adapt(" in code
    ends = (
        "import json, sys\n"
        "heavy = {'hydra', 'omegaconf', 'lightning', 'wandb'} & sys.modules.keys()\n"
        "print(json.dumps([sorted(heavy), result.rel_l2, result.rel_l2_before, result.seconds]))\n"
    )
    (tmp_path / "quickstart.py").write_text(code + ends)
    run = subprocess.run(
        [sys.executable, "-W", "error", "quickstart.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    heavy, error, before, seconds = json.loads(run.stdout.splitlines()[-1])
    assert heavy == []
    assert error < 1e-3 < 0.1 < before
    assert seconds >= 10
    assert json.loads((tmp_path / "my_run" / "summary.json").read_text())["rel_l2"] == error
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("name", EQUATIONS)
def test_adapt_gives_bit_for_bit_what_train_py_gives(name, run, tmp_path):
    """By the defaults of both, which stand in different places: only network, start and budget are given."""
    problem = problem_classes()[name]()
    generator = torch.Generator().manual_seed(3)
    net = po.MLP(problem.inputs, len(problem.fields), width=12, generator=generator)
    short = po.Pretraining(adam_steps=10, natural_gradient_steps=3, interior=100, boundary=20)
    net = po.pretrain(problem.at_source(), net, settings=short)
    save_network(net, tmp_path / "net.safetensors")
    given = [f"problem={name}", "net.width=12", f"pretrain.checkpoint={tmp_path / 'net.safetensors'}"]
    ends = ["budget.gradient_evals=null", f"budget.steps={STEPS}", f"output_dir={tmp_path / 'run'}", "logger=csv"]
    config.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg, _ = config.begin(compose("train", [*given, *ends, "trainer.accelerator=cpu"]))
    typed = run(cfg).result
    result = po.adapt(net, problem, budget=po.Budget(steps=STEPS), device="cpu")

    assert result.steps == STEPS
    assert result.rel_l2 == typed.rel_l2
    known = {key for key, value in typed.summary.items() if key != "seconds" and value == value}
    assert {key: result.summary[key] for key in known} == {key: typed.summary[key] for key in known}
    assert [row.keys() for row in result.history] == [row.keys() for row in typed.history]
    for rows in zip(result.history, typed.history, strict=True):
        # By their text, in which a NaN is equal to itself.
        mine, theirs = ({key: repr(x) for key, x in row.items() if key != TIMED} for row in rows)
        assert mine == theirs
    adapters = []
    for each in (result, typed):
        each.adapter.save(tmp_path / "adapter")
        adapters.append(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(x, adapters[1][key]) for key, x in adapters[0].items())
    assert len(result.history) >= 3


def test_there_are_eight_equations():
    assert len(EQUATIONS) == 8

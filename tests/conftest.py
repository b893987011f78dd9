"""Tests run on one thread: two are many times slower for networks of this size."""

from pathlib import Path

import pytest
import torch

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def compose(tmp_path, monkeypatch):
    """Compose a configuration as the command line does, for a run that is short, on the CPU, and makes no W&B files."""
    from hydra import compose, initialize_config_dir

    from pinn_odelora import config as commandline

    monkeypatch.setenv("PINN_ODELORA_CACHE", str(tmp_path / "cache"))
    short = [
        "logger=csv",
        "trainer.accelerator=cpu",
        "points.interior=40",
        "points.boundary=12",
        "pretrain.adam_steps=3",
        "pretrain.implicit_steps=0",
        "log.test=64",
        "log.heldout=32",
        "log.every=5",
    ]

    def composed(*overrides):
        commandline.register()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            folder = overrides and next((o for o in overrides if o.startswith("output_dir=")), None)
            where = [] if folder else [f"output_dir={tmp_path / 'run'}"]
            # The network of a matrix has the size of the matrix.
            width = [] if any(o.startswith("problem=matrix_") for o in overrides) else ["net.width=12"]
            cfg, _ = commandline.begin(compose("train", [*short, *width, *where, *overrides]))
        return cfg

    return composed


@pytest.fixture
def adapt():
    """Build, pretrain and fit as train.py does, without pictures."""
    from pinn_odelora import config as commandline
    from pinn_odelora.config import build, run

    def adapted(cfg):
        folder = Path(cfg.output_dir)
        built = build.experiment(cfg)
        commandline.save_config(cfg, folder)
        facts = run.pretrained_network(cfg, built, folder)
        return run.fit(cfg, built, [], folder), facts

    return adapted

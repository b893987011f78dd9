"""Tests run on one thread: two are many times slower for networks of this size."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pinn_odelora.threads import set_threads

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    set_threads(1)
    torch.set_num_interop_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def compose(tmp_path, monkeypatch):
    """Compose a configuration as the command line does, for a run that is short, on the CPU, and makes no W&B files."""
    from hydra import compose, initialize_config_dir

    from pinn_odelora import config

    monkeypatch.setenv("PINN_ODELORA_CACHE", str(tmp_path / "cache"))
    short = [
        "logger=csv",
        "trainer.accelerator=cpu",
        "points.interior=40",
        "points.boundary=12",
        "pretrain.adam_steps=3",
        "pretrain.natural_gradient_steps=0",
        "log.test=64",
        "log.heldout=32",
        "log.every=5",
    ]

    def composed(*overrides):
        config.register()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            folder = overrides and next((o for o in overrides if o.startswith("output_dir=")), None)
            where = [] if folder else [f"output_dir={tmp_path / 'run'}"]
            # The network of a matrix has the size of the matrix.
            width = [] if any(o.startswith("problem=matrix_") for o in overrides) else ["net.width=12"]
            cfg, _ = config.begin(compose("train", [*short, *width, *where, *overrides]))
        return cfg

    return composed


@pytest.fixture
def pretrained_folder(compose, tmp_path):
    """The folder of a run of Burgers' equation with configuration and pretrained network, and that network."""
    from omegaconf import OmegaConf

    from pinn_odelora.checkpoints import save_network
    from pinn_odelora.config.build import network, posed

    cfg, path = compose("problem.nu=0.03"), tmp_path / "run"
    path.mkdir()
    OmegaConf.save(cfg, path / "config.yaml")
    problem, source, _ = posed(cfg)
    net = network(cfg, problem, source)
    save_network(net, path / "pretrained.safetensors")
    return path, net


@pytest.fixture
def run():
    """Build, pretrain and fit as train.py does: ``run(cfg).training``, ``.result``, ``.adaptation``, ``.facts``."""
    from pinn_odelora import config
    from pinn_odelora.config.build import experiment
    from pinn_odelora.config.running import Run

    def done(cfg):
        folder = Path(cfg.output_dir)
        made = Run(cfg, folder, experiment(cfg))
        config.save_config(cfg, folder)
        facts = made.pretrain()
        module = made.fit(facts)
        adaptation = module.adaptation
        return SimpleNamespace(
            run=made,
            facts=facts,
            module=module,
            adaptation=adaptation,
            training=adaptation.training,
            progress=adaptation.training.progress,
            layers=adaptation.training.objective.layers,
            result=None if module.interrupted else adaptation.result(),
        )

    return done

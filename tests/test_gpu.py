"""The same run on a CUDA device: the same numbers to rounding, and files that load without one."""

from pathlib import Path

import pytest
import torch

import pinn_odelora
from pinn_odelora.training import conclude
from pinn_odelora.training.history import History

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::DeprecationWarning:lightning"),
]


@pytest.mark.parametrize("problem", ["burgers", "kovasznay", "poisson"])
@pytest.mark.parametrize("method", ["odelora", "lora_adam", "full_lbfgs"])
def test_a_run_on_the_gpu_follows_the_run_on_the_cpu(problem, method, compose, adapt, tmp_path):
    losses = {}
    for device in ("cpu", "gpu"):
        folder = tmp_path / device
        cfg = compose(
            *(f"problem={problem}", f"method={method}", "budget.steps=6", "log.every=1"),
            *(f"trainer.accelerator={device}", f"output_dir={folder}"),
        )
        module, _ = adapt(cfg)
        losses[device] = [row["loss"] for row in History(folder / "history.csv").rows]
        conclude.save_weights(module, folder)
    assert losses["gpu"] == pytest.approx(losses["cpu"], rel=1e-8)
    a, b = (pinn_odelora.load(Path(tmp_path) / device)(0.2, 0.3) for device in ("cpu", "gpu"))
    assert b == pytest.approx(a, rel=1e-7)

"""A family that is killed at random moments loses no finished station, and ends in the same bytes."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pinn_odelora as po
from pinn_odelora.checkpoints import save_network
from pinn_odelora.families.files import load_family
from problems.heat import Heat

ROOT = Path(__file__).parents[1]
KILLS = 20
CHILD = """
import sys
import pinn_odelora as po
from pinn_odelora.checkpoints import load_network
from problems.heat import Heat
net = po.MLP(2, 1, width=16, depth=3)
load_network(net, "net.safetensors")
print("ready", flush=True)
po.family(net, Heat(), kappa=(0.05, 0.2), budget=po.Budget(steps=260), tolerance=1e-7, file=sys.argv[1])
"""


@pytest.mark.slow
def test_twenty_kills_lose_no_station_and_change_no_byte(tmp_path):
    settings = po.Pretraining(natural_gradient_steps=60, interior=400)
    net = po.pretrain(Heat(kappa=0.05), po.MLP(2, 1, width=16, depth=3), settings=settings)
    save_network(net, tmp_path / "net.safetensors")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = lambda name: subprocess.Popen(
        [sys.executable, "-c", CHILD, name], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    began = time.monotonic()
    with start("whole") as child:
        assert child.wait() == 0
    length = time.monotonic() - began
    rng, kept = random.Random(0), 0
    for _ in range(KILLS):
        with start("parts") as child:
            assert child.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.05, length / 10))
            assert child.poll() is None, "it ended before it was killed"
            child.kill()
        if (tmp_path / "parts").exists():
            found = len(load_family(tmp_path / "parts", net, Heat()).stations)
            assert found >= kept
            kept = found
    with start("parts") as child:
        assert child.wait() == 0
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()

"""Run folders and files, undamaged, each made when it is asked for: what other kinds of trials change or continue."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from pinn_odelora.checkpoints import load_network
from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.adapter_files import load_adapter
from pinn_odelora.measurements import read_measurements
from pinn_odelora.nets import MLP

from . import child
from .runs import FAMILY, MEASURED, asked, at_step, die, measurements, program

RUNS = {
    "finished": (),
    "interrupted": (),
    "all weights": ("method=full_adam", "~lora"),
    "coefficient": ("problem.kappa=unknown", f"data.file={MEASURED}"),
    "family": FAMILY,
}
STOP = 5
"""The step at which the interrupted run is killed; it has the state after three."""


class Materials:
    """Folders by name and seed, each with a run, the cache that it has filled, points and measurements."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, {}
        self.undisturbed: dict = {}  # by case, of kills

    def copy(self, name: str, to: Path, seed: int = 0) -> Path:
        """A copy of a folder in another one."""
        shutil.copytree(self.of(name, seed), to, dirs_exist_ok=True, symlinks=True)
        return to

    def of(self, name: str, seed: int = 0) -> Path:
        """The folder itself, not to be changed.

        Raises:
            RuntimeError: if the run fails.
        """
        if (name, seed) not in self.made:
            self.made[name, seed] = folder = self.folder / f"{name.replace(' ', '-')}{seed}"
            folder.mkdir(parents=True)
            (_files if name == "files" else _ran)(folder, name, seed)
        return self.made[name, seed]


def _ran(folder: Path, name: str, seed: int) -> None:
    measurements(folder)
    np.savez(folder / "points.npz", x=np.linspace(0.1, 0.9, 5), t=np.linspace(0.2, 0.8, 5))
    words = asked((*RUNS[name], f"seed={seed}", f"pretrain.seed={seed}"), folder / "run")
    before: Callable[[], None] = lambda: None
    if name == "interrupted":
        before = lambda: at_step(STOP, die)
    ended = child.run(program(*words, before=before), folder, {"PINN_ODELORA_CACHE": str(folder / "cache")})
    if ended.code != (-9 if name == "interrupted" else 0):
        raise RuntimeError(f"{name} ended with {ended.code}: {ended.said}")


def network(seed: int = 0) -> torch.nn.Module:
    return MLP(2, 1, width=4, depth=2, generator=torch.Generator().manual_seed(seed))


def _files(folder: Path, name: str, seed: int) -> None:
    weights = network(seed).state_dict()
    torch.save(weights, folder / "zip.pt")
    torch.save(weights, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": {f"net.{k}": x for k, x in weights.items()}, "epoch": 3}, folder / "lightning.ckpt")
    safetensors.torch.save_file(weights, folder / "weights.safetensors")
    rng = np.random.default_rng(seed)
    columns = {key: rng.uniform(size=12).round(6) for key in ("x", "t", "u")}
    np.savez(folder / "data.npz", **columns)
    rows = np.stack([*columns.values()], axis=1)
    (folder / "data.csv").write_text("x,t,u\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))


# What reads one file, and says what it found as the program would.


def weights(file: Path) -> child.Call:
    return _given(lambda net: load_network(net, file))


def adapter(folder: Path) -> child.Call:
    return _given(lambda net: load_adapter(net, folder))


def _given(load: Callable[[torch.nn.Module], object]) -> child.Call:
    """What a network has after it was given something."""

    def read() -> str:
        net = network(7)
        load(net)
        return " ".join(x.numpy().tobytes().hex() for x in net.state_dict().values())

    return lambda: _said(read)


def data(file: Path) -> child.Call:
    def read() -> str:
        points = read_measurements(file, ("x", "t"), ("u",)).where.points
        return " ".join(f"{name} {x.numpy().tobytes().hex()}" for name, x in sorted(points.items()))

    return lambda: _said(read)


def _said(read: Callable[[], str]) -> None:
    try:
        print(read())
    except InputError as refused:
        print(refused, file=sys.stderr)
        sys.exit(2)

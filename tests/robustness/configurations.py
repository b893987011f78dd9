"""Run folders of somebody else, whose configuration or facts name something to call: nothing is called.

The names are those of functions and classes that do harm, found in Python, in torch and in this package, at each place
in a configuration that could be built. The manifest is left out, since whoever made the folder could write it.
"""

from __future__ import annotations

import inspect
import json
import random
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from pinn_odelora.manifest import MANIFEST

from . import child
from .archives import CANARY, SENTINEL, TOUCH, judged
from .materials import Materials
from .records import Verdict
from .runs import program

MUST = "nothing is called"
COUNT = 300
QUICK = (0, 1, 2, 3, 4)
MODULES = (
    *("os", "shutil", "subprocess", "builtins", "importlib", "runpy", "pathlib.Path", "tempfile", "sys", "signal"),
    *("socket", "webbrowser", "ctypes", "pty", "pickle", "marshal", "multiprocessing", "threading", "logging.config"),
    *("code", "pdb", "timeit", "cProfile", "sqlite3", "ftplib", "smtplib", "urllib.request", "zipfile", "tarfile"),
    *("torch", "torch.hub", "torch.jit", "torch.utils.cpp_extension", "torch.multiprocessing", "numpy", "yaml"),
    *("hydra.utils", "omegaconf.OmegaConf", "matplotlib.pyplot", "wandb", "lightning.pytorch"),
    *("pinn_odelora.files", "pinn_odelora.manifest", "pinn_odelora.runs.save", "pinn_odelora.pretraining.pretrain"),
    *("pinn_odelora.checkpoints", "pinn_odelora.families.files", "pinn_odelora.config.load", "pinn_odelora.sweeps"),
)
PLACES = (
    *("problem", "problem", "net", "net", "method", "integrator", "problem.region", "net.activation", "net.parts"),
    *("method.schedule", "integrator.tableau", "problem.weights.pde", "lora.targets", "trainer.callbacks", "points"),
    *("weighting", "log.every", "budget.steps", "data.file", "logger.kind", "derivatives.engine", "hydra.callbacks.x"),
)
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"_args_": [TOUCH]},
    {"_args_": [SENTINEL, "w"]},
    {"_args_": [CANARY]},
    {"_args_": [["touch", SENTINEL]]},
    {"path": SENTINEL, "content": ""},
    {"command": TOUCH},
    {"file": SENTINEL, "mode": "w"},
    {"args": ["touch", SENTINEL], "_partial_": True},
    {},
)
TEXTS = (
    f"!!python/object/apply:os.system ['{TOUCH}']",
    f"!!python/object/new:os.system ['{TOUCH}']",
    "!!python/module:evil_of_theirs",
    "!!python/name:evil_of_theirs.x",
    "&a [*a]",
    "[" * 30_000,
    "'${oc.env:HOME}'",
    "'${oc.create:{a: 1}}'",
    "'${touching:x}'",
    "'${hydra:runtime.cwd}'",
)
FACTS = (
    {"tracking_id": {"_target_": "os.system", "command": TOUCH}},
    {"tracking_id": "../../etc"},
    {"tracking_id": TOUCH},
    {"rel_l2_before": {"_target_": "os.system", "_args_": [TOUCH]}},
    {"rel_l2_before": [1]},
    {"pretrain_origin": f"!!python/object/apply:os.system ['{TOUCH}']"},
)


def names() -> list[str]:
    """Of all that can be called in ``MODULES``."""
    found = []
    for path in MODULES:
        owner, _, last = path.rpartition(".")
        try:
            module = sys.modules.get(path) or import_module(path)
        except ImportError:
            module = getattr(import_module(owner), last)
        public = sorted(name for name in dir(module) if not name.startswith("_") or name in ("_exit", "__import__"))
        found += [f"{path}.{name}" for name in public if callable(inspect.getattr_static(module, name, None))]
    return found


class Setting:
    """Materials, and the names."""

    def __init__(self, materials: Materials) -> None:
        self.materials = materials
        self.names = [*names(), *(["evil_of_theirs.Wave", "evil_of_theirs", "pinn_odelora.files.os.system"] * 8)]


prepare = Setting


def trial(setting: Setting, folder: Path, rng: random.Random, number: int) -> Verdict:
    kind = rng.choice(["finished", "finished", "interrupted"])
    run = setting.materials.copy(kind, folder) / "run"
    (run / MANIFEST).unlink()
    how = rng.random()
    if how < 0.1:
        kind, run = "interrupted", setting.materials.copy("interrupted", folder / "other") / "run"
        (run / MANIFEST).unlink()
        chosen: Any = rng.choice(FACTS)
        file = run / "start.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | chosen))
        what = f"start.json: {chosen}"
    elif how < 0.2:
        text, place = rng.choice(TEXTS), rng.choice(["problem", "net", "extra", "trust"])
        file = run / "config.yaml"
        file.write_text(file.read_text() + f"\n{place}: {text}\n")
        what = f"{place}: {text[:60]}"
    else:
        place, name, given = rng.choice(PLACES), rng.choice(setting.names), rng.choice(ARGUMENTS)
        put(run / "config.yaml", place, {"_target_": name, **given}, rng)
        what = f"{place}: {name} {json.dumps(given)}"
    (folder / CANARY).touch()
    (folder / "evil_of_theirs.py").write_text(f"open({SENTINEL!r}, 'w')\nWave = x = open\n")
    readers = {
        "predict": child.command("predict", str(run), str(folder / "points.npz")),
        "export": child.command("export", str(run)),
        "compare": child.command("compare", str(run)),
        "dashboard": child.command("dashboard", str(run), "-o", str(folder / "page.html")),
        "resume": program(f"resume={run}"),
    }
    reader = "resume" if kind == "interrupted" else [*readers][number % len(readers)]
    left = child.run(readers[reader], folder, {"PINN_ODELORA_CACHE": str(folder / "cache")})
    return judged(left, folder, f"{reader}, {what}")


def put(file: Path, place: str, call: Any, rng: random.Random) -> None:
    """Write a call into a place of a configuration, in a list now and then."""
    config = yaml.safe_load(file.read_text())
    at, *names = place.split(".")
    inside = config
    for name in (at, *names)[:-1]:
        if not isinstance(inside.get(name), dict):
            inside[name] = {}
        inside = inside[name]
    last = (at, *names)[-1]
    kept = inside.get(last) if isinstance(inside.get(last), dict) else {}
    inside[last] = [call] if last in ("parts", "callbacks", "targets") else {**kept, **call}
    if rng.random() < 0.1:
        config["trust"] = ["evil_of_theirs", "os", "subprocess"]
    file.write_text(yaml.safe_dump(config))

"""Small runs of many methods, and what of them must be the same when something happened to one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pinn_odelora.adaptation import Adaptation
from pinn_odelora.files import UNFINISHED, write_bytes
from pinn_odelora.runs import figures, history_figure
from pinn_odelora.runs.alone import LOCK
from pinn_odelora.runs.history import History

from . import child

TINY = (
    *("problem=heat", "net.width=4", "net.depth=2", "lora.rank=2", "logger=csv", "trainer.accelerator=cpu"),
    *("points=fresh", "points.interior=8", "points.boundary=4", "budget.gradient_evals=null", "budget.steps=7"),
    *("pretrain.adam_steps=1", "pretrain.natural_gradient_steps=0", "pretrain.interior=20", "pretrain.boundary=5"),
    *("log.test=8", "log.heldout=8", "log.every=2", "checkpoint.every=3"),
)
MEASURED = "measured.csv"
FAMILY = (
    *("family.kappa=[0.05,0.08]", "net.width=6", "budget.steps=45", "stations.most=2", "stations.tolerance=1e-9"),
    *("pretrain.adam_steps=20", "pretrain.natural_gradient_steps=30", "pretrain.interior=100", "pretrain.boundary=20"),
    *("~points", "~checkpoint", "~log.every", "~log.heldout"),
)
CASES = (
    (),
    ("points=residual", "points.interior=30", "points.initial_batch_size=5"),
    ("integrator=heun", "integrator.renew=3"),
    ("integrator=bogacki_shampine", "method.retract=false", "points=fixed", "points.interior=10"),
    ("integrator=rkc2",),
    ("integrator=ros2",),
    ("lora.rank=adaptive", "net.width=8"),
    ("problem.kappa=unknown", f"data.file={MEASURED}"),
    ("problem=burgers", "problem.conditions=soft", "weighting=ntk", "weighting.every=3"),
    ("method=lora_adam", "problem.conditions=soft", "weighting=gradnorm", "weighting.every=3"),
    ("method=lora_rite",),
    ("method=factor_muon", "precision=32"),
    ("method=full_adam", "~lora"),
    ("method=full_lbfgs", "~lora"),
    ("method=lora_ssbroyden",),
    ("problem=burgers", "method=dora", "net=resnet", "net.width=4", "net.depth=2"),
    FAMILY,
)
"""What is asked for besides ``TINY``, and with ``~`` what is left out of it: schemes, an adaptive rank, an unknown
coefficient, methods, a family."""
Put = Callable[[Any, str, Any], object]
"""``put(thing, name, value)`` exchanges an attribute, as ``setattr`` and pytest's ``monkeypatch.setattr`` do."""
TIMED = ("seconds", "answer_seconds", "pretrain_seconds", "pretrain_origin")


def measurements(folder: Path) -> None:
    """Values of the heat equation at κ = 0.1."""
    rows = ((0.3, 0.2, 0.9), (0.5, 0.5, 0.2), (0.7, 0.1, 0.5), (0.2, 0.7, 0.3), (0.6, 0.9, 0.4))
    (folder / MEASURED).write_text("x,t,u\n" + "".join(f"{x},{t},{u}\n" for x, t, u in rows))


def without_pictures(put: Put = setattr) -> None:
    """Draw none, which takes most of the time of a run that is so short."""
    put(figures, "solution_figure", lambda problem, solution, path, **_: write_bytes(path, b"picture"))
    put(history_figure, "history_figure", lambda rows, path: write_bytes(path, b"picture"))


def program(*words: str, before: child.Call = lambda: None) -> child.Call:
    """``python train.py`` without pictures, after something else."""

    def begun() -> None:
        without_pictures()
        before()
        child.train(*words)()

    return begun


def asked(case: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The command line of a run; a later word on a key replaces an earlier one."""
    out = tuple(word[1:] for word in case if word.startswith("~"))
    words = (*(word for word in TINY if not (out and word.startswith(out))), *(w for w in case if w[0] != "~"))
    return (*{word.partition("=")[0]: word for word in words}.values(), f"output_dir={folder}")


def again(case: Sequence[str], folder: Path) -> tuple[str, ...]:
    """The command line that goes on with a run, or begins it where nothing has been written yet."""
    return (f"resume={folder}",) if (folder / "config.yaml").exists() else asked(case, folder)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, but the lock and temporary ones."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != LOCK)
    return {str(file): file.read_bytes() for file in files if file.suffix != UNFINISHED}


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves and that does not tell times."""
    found: dict[str, Any] = {}
    for name in ("adapter/adapter_model.safetensors", "network.safetensors", "unknown_fields.safetensors"):
        if (folder / name).exists():
            found |= load_file(folder / name)
    for name in ("family.safetensors", "coefficients.json"):
        if (folder / name).exists():
            found[name] = (folder / name).read_bytes()
    if (folder / "history.csv").exists():
        rows = History(folder / "history.csv").rows
        found["rows"] = [{k: str(v) for k, v in row.items() if k != "cost/seconds"} for row in rows]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found["summary"] = untimed(summary)
    return found


def untimed(value: Any) -> Any:
    """What is left of a summary without its times, and whether its network came from the cache."""
    if isinstance(value, dict):
        own = {name: x for name, x in value.items() if name not in TIMED}
        return {name: untimed(x) for name, x in own.items()}
    return [untimed(x) for x in value] if isinstance(value, list) else value


def difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    """What differs in two outcomes, tensors by their bits; empty where nothing does."""
    for name in (*a, *b):
        if name not in a or name not in b:
            return f"only one has {name}"
        x, y = a[name], b[name]
        same = x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        if not same:
            return f"{name} differs"
    return ""


def at_step(number: int, act: child.Call, put: Put = setattr) -> None:
    """Have something happen in this process while a run takes a step."""
    records = Adaptation.__iter__

    def acted(adaptation: Adaptation) -> Any:
        for record in records(adaptation):
            if record.step == number:
                act()
            yield record

    put(Adaptation, "__iter__", acted)


def die() -> None:
    """As by SIGKILL."""
    os.kill(os.getpid(), 9)

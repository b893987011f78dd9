"""Ten of DeepXDE's forward examples with one parameter changed: the seconds of adapting, and of training from scratch.

    python benchmarks/deepxde_adaptations.py --examples FOLDER [--names Burgers Euler_beam] [--cap 300] [--source 30]
                         [--runs adaptations] [--page docs/results/deepxde-adaptations.md] [--report]

``FOLDER`` is ``examples`` of a checkout of DeepXDE, which is not part of this project. For each script, in a process of
its own, on one thread, all seconds of CPU time:

* ``theirs``: the changed script with DeepXDE's own training, all its iterations from random weights, at most ``--cap``
  seconds, of which Adam has two thirds if L-BFGS follows. Its relative L2 error at 10,000 points is the target.
* ``source``: the script as it is, trained by ``po.deepxde.train`` for ``--source`` seconds.
* ``adapt``: the changed script's model with the weights of ``source``, adapted by ``po.deepxde.adapt`` as it is.
* ``train``: the changed script's model, trained from random weights by ``po.deepxde.train``; no part of the target, but
  the strongest rival.

The last two are called with 1/4, 3/8, 9/16, … s (2, 4, 8, … s for ``train``), each time from the start, until the error
of ``model.predict`` is that of ``theirs``. What counts is the CPU time of the whole call that reaches it, in which the
problem is posed and the network written back, too; it is at most 1.5 (2) times what had been needed.

A parameter is changed as by ``--set`` where the script sets it at its top level, else in its text, see
``deepxde_changes``.

Each measurement is written to ``--runs`` at once, and is not repeated.

Target: seconds of ``theirs`` / seconds of ``adapt`` ≥ 20 in the median. Exits with 1 where it is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from deepxde_changes import CHANGES, Change
from deepxde_examples import source
from networks import put
from numpy.typing import NDArray

KIND, PARTS = "pinn_forward", ("theirs", "source", "adapt", "train")
WANTED, POINTS, POINT_SEED = 20.0, 10_000, 7
FIRST = {"adapt": (0.25, 1.5), "train": (2.0, 2.0)}
"""Seconds of the first attempt, and the factor from one to the next."""
ADAM_PART, CHUNK = 2 / 3, 50
"""Of the cap, for Adam where L-BFGS follows; iterations of L-BFGS between two looks at the clock."""


# A script, run until it trains its model, or through all of its trainings.


def tree(file: Path, change: Change | None) -> Any:
    """The script as it is, or with its parameter changed, for torch.

    Raises:
        ValueError: if it has no such piece of text.
    """
    import ast

    from pinn_odelora.commands.deepxde import with_numbers

    text = source(file)
    pieces = CHANGES[file.stem].mended | (change.text if change else {})
    for old, new in pieces.items():
        if old not in text:
            raise ValueError(f"{file} has no {old!r}")
        text = text.replace(old, new)
    parsed = ast.parse(text, filename=str(file))
    return with_numbers(parsed, change.numbers) if change else parsed


class _Built(Exception):  # noqa: N818  (it is no error)
    """The script has come to its first training."""


def run(file: Path, change: Change | None, train: Callable) -> None:
    """Run a script with ``train`` in place of ``model.train``, in a folder of its own, beside DeepXDE's data."""
    import deepxde as dde

    own, dde.Model.train = dde.Model.train, lambda model, *args, **settings: train(own, model, args, settings)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dataset").symlink_to(file.parents[1] / "dataset")
        (Path(folder) / "here").mkdir()
        os.chdir(Path(folder) / "here")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                exec(compile(tree(file, change), str(file), "exec"), {"__name__": "__main__", "__file__": str(file)})
        finally:
            dde.Model.train = own
            os.chdir("/")


def built(file: Path, change: Change | None) -> Any:
    """The model of a script before its first training, the same for each call."""
    import deepxde as dde

    models: list[Any] = []

    def stop(own: Callable, model: Any, *_: Any) -> None:
        models.append(model)
        raise _Built

    dde.config.set_random_seed(0)
    with contextlib.suppress(_Built):
        run(file, change, stop)
    return models[0]


def error(model: Any, reference: Callable[[NDArray], NDArray]) -> float:
    """Relative L2 error over all fields at points of the geometry, of what ``model.predict`` returns."""
    import deepxde as dde

    np.random.seed(POINT_SEED)
    X = model.data.geom.random_points(POINTS).astype(float)
    wanted = reference(X)
    values = model.predict(X.astype(dde.config.real(np)))
    return float(np.linalg.norm(values - wanted) / np.linalg.norm(wanted))


# The four measurements of a script.


def theirs(file: Path, change: Change, cap: float) -> dict[str, Any]:
    """DeepXDE's own training of the changed script."""
    import deepxde as dde

    class Until(dde.callbacks.Callback):
        """Stops when the time is over; L-BFGS goes on in pieces, which leaves its iterates as they are."""

        def __init__(self, end: float) -> None:
            super().__init__()
            self.end = end
            self.stopped = False

        def on_train_begin(self) -> None:
            if self.model.opt_name == "L-BFGS":
                self.model.opt.param_groups[0] |= {"max_iter": CHUNK, "max_eval": CHUNK * 5 // 4}

        def on_epoch_end(self) -> None:
            if time.process_time() > self.end:
                self.stopped = self.model.stop_training = True

    found: dict[str, Any] = {"seconds": 0.0, "iterations": 0, "capped": False}
    models: list[Any] = []
    followed = "L-BFGS" in file.read_text()

    def train(own: Callable, model: Any, args: tuple, settings: dict) -> Any:
        models.append(model)
        part = ADAM_PART if followed and model.opt_name != "L-BFGS" else 1.0
        begun = time.process_time()
        until = Until(begun + cap * part - found["seconds"])
        callbacks = [*(settings.pop("callbacks", None) or []), until]
        done = own(model, *args, callbacks=callbacks, **settings)
        found["seconds"] += time.process_time() - begun
        found["iterations"] = model.train_state.iteration
        found["capped"] |= until.stopped
        return done

    dde.config.set_random_seed(0)
    try:
        run(file, change, train)
    except Exception as failure:  # What a script does after its training is its own.
        if not found["iterations"]:
            raise
        found["after"] = f"{type(failure).__name__}: {failure}"[:200]
    return found | {"error": error(models[-1], change.reference)}


def settings() -> dict[str, Any]:
    import pinn_odelora as po

    return {"log": po.Log(every=10**6, estimate=False)}


def trained_source(file: Path, seconds: float, weights: Path) -> dict[str, Any]:
    """The network of the script as it is, trained and kept."""
    import torch

    import pinn_odelora as po

    model = built(file, None)
    begun = time.process_time()
    result = po.deepxde.train(model, seconds, **settings())
    torch.save(model.net.state_dict(), weights)
    return {"seconds": time.process_time() - begun, "loss": result.heldout_loss}


def until(wanted: float, part: str, cap: float, attempt: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """Attempts of more and more seconds, until one has the error that is wanted or has spent the cap."""
    seconds, factor = FIRST[part]
    tried: list[dict[str, Any]] = []
    while not tried or (tried[-1]["error"] > wanted and seconds <= cap):
        tried.append(attempt(seconds))
        print(part, tried[-1], file=sys.stderr, flush=True)
        seconds *= factor
    return {**tried[-1], "reached": tried[-1]["error"] <= wanted, "tried": [[x["seconds"], x["error"]] for x in tried]}


def attempts(part: str, file: Path, change: Change, weights: Path, wanted: float, cap: float) -> dict[str, Any]:
    """Seconds to the error that is wanted."""
    import torch

    import pinn_odelora as po

    def attempt(seconds: float) -> dict[str, Any]:
        model = built(file, change)
        if part == "adapt":
            model.net.load_state_dict(torch.load(weights))
        before = error(model, change.reference)
        begun = time.process_time()
        result = (po.deepxde.adapt if part == "adapt" else po.deepxde.train)(model, seconds, **settings())
        spent = time.process_time() - begun
        return {"seconds": spent, "error": error(model, change.reference), "before": before, "steps": result.steps}

    return until(wanted, part, cap, attempt)


def measured(file: Path, runs: Path, given: argparse.Namespace) -> None:
    """What is missing of the four, each written to the script's file at once."""
    time.perf_counter = time.process_time  # before the loop is imported: budgets are CPU time
    from pinn_odelora.threads import set_threads

    set_threads(1)
    change, kept, weights = CHANGES[file.stem], runs / f"{file.stem}.json", runs / f"{file.stem}.pt"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for part in (part for part in PARTS if part in given.parts and part not in found):
        if part == "theirs":
            found[part] = theirs(file, change, given.cap)
        elif part == "source":
            found[part] = trained_source(file, given.source, weights)
        else:
            limit = min(given.cap, found["theirs"]["seconds"])
            found[part] = attempts(part, file, change, weights, found["theirs"]["error"], limit)
        kept.write_text(json.dumps(found, indent=1))
        print(f"{file.stem} {part} {json.dumps(found[part])}", file=sys.stderr, flush=True)


# The table.


def ratio(run: Mapping[str, Any], part: str) -> float:
    """How many times fewer seconds; 0 where the error was not reached."""
    reached = run.get(part, {}).get("reached")
    return run["theirs"]["seconds"] / run[part]["seconds"] if reached else 0.0


HEAD = [
    "script",
    "change",
    "DeepXDE: error",
    "s",
    "before",
    "adapted: error",
    "s",
    "fewer by",
    "`train`: s",
    "fewer by",
]


def row(name: str, run: Mapping[str, Any]) -> list[str]:
    theirs, adapt = run["theirs"], run["adapt"]
    mark = "*" if theirs["capped"] else ""
    cells = [name, CHANGES[name].what, f"{theirs['error']:.1e}", f"{theirs['seconds']:.0f}{mark}"]
    cells += [f"{adapt['before']:.1e}", f"{adapt['error']:.1e}"]
    for part in ("adapt", "train"):
        spent = run.get(part)
        known = ["", ""] if spent is None else [f"{spent['seconds']:.2g}", f"{ratio(run, part):.0f}"]
        cells += known if spent is None or spent["reached"] else [f"> {spent['seconds']:.0f}", "not reached"]
    return cells


def whole(runs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: run for name, run in sorted(runs.items()) if "theirs" in run and "adapt" in run}


def medians(runs: Mapping[str, Any]) -> dict[str, float]:
    """The median ratio of each part, over the scripts that have it."""
    ratios = {part: [ratio(run, part) for run in whole(runs).values() if part in run] for part in FIRST}
    return {part: statistics.median(x) for part, x in ratios.items() if x}


def markdown(runs: Mapping[str, Any]) -> str:
    table = [HEAD, ["---"] * len(HEAD), *(row(name, run) for name, run in whole(runs).items())]
    found = medians(runs)
    said = ", ".join(f"{found[part]:.0f} times fewer seconds by `{part}`" for part in FIRST if part in found)
    return "\n".join(f"| {' | '.join(line)} |" for line in table) + f"\n\nMedians: {said}."


def short(runs: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that is missing."""
    missing = [f"{name}: no adaptation" for name in CHANGES if name not in whole(runs)]
    median = medians(runs).get("adapt", 0.0)
    return missing + ([f"{median:.1f} times fewer seconds in the median, not {WANTED:.0f}"] if median < WANTED else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=Path, help="the folder examples of a checkout of DeepXDE")
    parser.add_argument("--names", nargs="+", choices=CHANGES, default=[*CHANGES])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cap", type=float, default=300.0, help="seconds of a measurement")
    parser.add_argument("--source", type=float, default=30.0, help="seconds of training the network that is adapted")
    parser.add_argument("--runs", type=Path, default=Path("adaptations"), help="folder of what is measured")
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.report and given.examples is None:
        parser.error("--examples is needed")
    given.runs.mkdir(parents=True, exist_ok=True)
    if given.one:
        measured((given.examples / KIND / f"{given.names[0]}.py").resolve(), given.runs.resolve(), given)
        return 0
    os.environ |= {"DDE_BACKEND": "pytorch", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    for name in () if given.report else given.names:
        command = [sys.executable, *sys.argv, "--one", "--names", name]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            print(f"{name} failed, see above", file=sys.stderr, flush=True)
    runs = {file.stem: json.loads(file.read_text()) for file in given.runs.glob("*.json")}
    print(markdown(runs))
    missing = short(runs)
    print("\n".join(missing))
    if given.page:
        put(given.page, markdown(runs))
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())

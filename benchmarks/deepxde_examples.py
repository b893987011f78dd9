"""DeepXDE's own examples: which of them run here, and how accurate they are beside DeepXDE's training.

    python benchmarks/deepxde_examples.py --examples FOLDER [--names Burgers Euler_beam] [--seconds 60]
                                          [--json examples.json] [--page docs/results/deepxde.md] [--report]

``FOLDER`` is ``examples`` of a checkout of DeepXDE, which is not part of this project. Every forward and inverse script
runs in a process of its own, on one thread, twice: with ``po.deepxde.train`` in place of its first call of
``model.train`` and nothing in place of later ones, and with DeepXDE's Adam and L-BFGS, each for as many seconds of CPU
time. Lines for TensorFlow's functions are replaced by those of torch where that is all that is missing. The error is
the relative L2 error at 10,000 points of the geometry where the model has a reference, else what the script prints.

Not counted are scripts with fractional derivatives, integrals, a search of hyper-parameters, networks that DeepXDE does
not have for torch, and those whose own lines fail under torch, by whoever they are trained.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from networks import put

OMITTED = re.compile("fractional|HPO|_IDE$|^ide$")
KINDS = ("pinn_forward", "pinn_inverse")
REPLACED = {
    "from deepxde.backend import tf\n": "import torch as tf\n",
    "tf.math.": "tf.",
    "tf.concat(": "tf.cat(",
}
"""Lines for TensorFlow by lines for torch."""
PRINTED = re.compile(r"L2 relative error:?\s*\[?([0-9.eE+-]+)", re.IGNORECASE)
"""What many scripts print in the end."""


def source(file):
    text = file.read_text()
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    # Some scripts choose their functions by commented lines, those of torch among them.
    return re.sub(r"^# (import torch)$", r"\1", text, flags=re.MULTILINE)


def executed(file, train):
    """Run a script with ``train(model)`` in place of the first ``model.train`` of each model and nothing in place of
    later ones: its first model, and what it prints; why it failed, if it did after that.
    """
    import deepxde as dde

    models, said, failure = [], io.StringIO(), ""

    def first(model, *_, **__):
        if model not in models:
            models.append(model)
            with contextlib.redirect_stdout(sys.stderr):
                train(model)
        return model.losshistory, model.train_state

    own, dde.Model.train = dde.Model.train, first
    sys.path.insert(0, str(file.parent))
    os.chdir(file.parent)
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(source(file), str(file), "exec"), {"__name__": "__main__", "__file__": str(file)})
    except Exception as error:
        if not models:
            raise
        failure = f"{type(error).__name__}: {error}"[:200]
    finally:
        dde.Model.train = own
    return models[0], said.getvalue(), failure


def error_in(model, said):
    """The error at points of the geometry where the model has a reference, else what the script prints, if it does."""
    if model.data.soln is not None:
        return error_of(model)
    found = PRINTED.findall(said)
    return float(found[-1]) if found else None


def error_of(model):
    """Relative L2 error at points of the geometry."""
    import deepxde as dde
    import numpy as np

    np.random.seed(7)
    X = model.data.geom.random_points(10_000).astype(dde.config.real(np))
    values = model.predict(X)
    wanted = np.asarray(model.data.soln(X)).reshape(values.shape)
    return float(np.linalg.norm(values - wanted) / np.linalg.norm(wanted))


def adam_and_lbfgs(model, seconds):
    """DeepXDE's Adam as compiled for half of so many seconds of CPU time, and L-BFGS for the other half."""
    import deepxde as dde

    class Until(dde.callbacks.Callback):
        def __init__(self, end):
            super().__init__()
            self.end = end

        def on_epoch_end(self):
            self.model.stop_training = time.process_time() > self.end

    train, begun = type(model).train_own, time.process_time()
    train(model, iterations=10**7, display_every=10**6, callbacks=[Until(begun + seconds / 2)], verbose=0)
    settings = {"loss_weights": model.loss_weights, "external_trainable_variables": model.external_trainable_variables}
    dde.optimizers.set_LBFGS_options(maxiter=200)
    while time.process_time() < begun + seconds:
        before = model.train_state.step
        model.compile("L-BFGS", verbose=0, **settings)
        train(model, display_every=10**6, verbose=0)
        if model.train_state.step == before:
            break


def one(file, seconds):
    """What becomes of a script: a dictionary."""
    import deepxde as dde
    import torch

    import pinn_odelora as po
    from pinn_odelora.errors import InputError

    torch.set_num_threads(1)
    dde.Model.train_own = dde.Model.train
    found, problems = {}, []

    def ours(model):
        clock, time.perf_counter = time.perf_counter, time.process_time
        try:
            result = po.deepxde.train(model, seconds, log=po.Log(every=10**6, estimate=False))
        except Exception as failure:  # What is measured here.
            problems.append(failure)
            raise
        finally:
            time.perf_counter = clock
        found.update({"steps": result.steps, "loss": result.heldout_loss, "in double": result.rel_l2})
        found["variables"] = {name: x["estimate"] for name, x in result.coefficients.items()}

    try:
        model, said, failure = executed(file, ours)
    except Exception as error:  # Whatever a script does wrong before it trains is its own.
        return {"outcome": "fails by itself", "said": f"{type(error).__name__}: {error}"[:200]}
    if problems:
        refused = isinstance(problems[0], InputError)
        said = str(problems[0]) if refused else f"{type(problems[0]).__name__}: {problems[0]}"[:200]
        return {"outcome": "refused" if refused else "failed", "said": said}
    found |= {"outcome": "runs", "error": error_in(model, said)} | ({"after": failure} if failure else {})
    try:
        rival, said, _ = executed(file, lambda model: adam_and_lbfgs(model, seconds))
        found["theirs"] = error_in(rival, said)
        found["their variables"] = [v.item() for v in rival.external_trainable_variables]
    except Exception as failure:  # A rival that fails is no reason to stop.
        found["theirs said"] = f"{type(failure).__name__}: {failure}"[:200]
    return found


def scripts(folder, names):
    every = [file for kind in KINDS for file in sorted((folder / kind).glob("*.py"))]
    return [f for f in every if not OMITTED.search(f.stem) and (not names or f.stem in names)]


def lines(runs):
    rows = ["| script | outcome | error | DeepXDE | steps |", "|---|---|---|---|---|"]
    shown = lambda x: "–" if x is None else f"{x:.1e}"
    for name, run in sorted(runs.items()):
        outcome = run["outcome"] + (f": {run['said']}" if "said" in run else "")
        rows.append(
            f"| {name} | {outcome} | {shown(run.get('error'))} | {shown(run.get('theirs'))} | {run.get('steps', '')} |"
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=Path, required=True, help="the folder examples of a checkout of DeepXDE")
    parser.add_argument("--names", nargs="+", help="some of the scripts")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path, default=Path("examples.json"))
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ |= {"DDE_BACKEND": "pytorch", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    if args.one:
        print("FOUND " + json.dumps(one(args.one.resolve(), args.seconds)))
        return 0
    runs = json.loads(args.json.read_text()) if args.json.exists() else {}
    for file in [] if args.report else scripts(args.examples, args.names):
        name = f"{file.parent.name}/{file.stem}"
        if name in runs:
            continue
        command = [sys.executable, __file__, "--examples", str(args.examples), "--seconds", str(args.seconds)]
        done = subprocess.run([*command, "--one", str(file)], capture_output=True, text=True)
        said = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
        failed = {"outcome": "failed", "said": (done.stderr.strip().splitlines() or [""])[-1][:200]}
        runs[name] = json.loads(said[0][6:]) if said else failed
        args.json.write_text(json.dumps(runs, indent=1))
        print(lines({name: runs[name]})[-1], flush=True)
    print("\n".join(lines(runs)))
    if args.page:
        put(args.page, "\n".join(lines(runs)))
    outcomes = [run["outcome"] for run in runs.values()]
    return int("failed" in outcomes)


if __name__ == "__main__":
    sys.exit(main())

"""DeepXDE's own examples: which of them run here, and how accurate they are beside DeepXDE's training.

    python benchmarks/deepxde_examples.py --examples FOLDER [--names Burgers Euler_beam] [--seconds 60]
                                          [--json examples.json] [--page docs/results/deepxde.md] [--report]

``FOLDER`` is ``examples`` of a checkout of DeepXDE, which is not part of this project. Every forward and inverse script
runs in a process of its own, on one thread, up to its first call of ``model.train``: as it is, with lines for
TensorFlow's functions replaced by those of torch where that is all that is missing. Its model is then trained by
``po.deepxde.train`` and, from the same weights, by Adam and L-BFGS of DeepXDE as the script has them, each for as many
seconds of CPU time. The error is the relative L2 error at 10,000 points of the geometry where the script has a
reference, else that in the script's variables.

Not counted are scripts with fractional derivatives, integrals, a search of hyper-parameters, networks that DeepXDE does
not have for torch, and those whose own lines fail under torch, by whoever they are trained.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

OMITTED = ("fractional", "HPO", "Volterra", "ide")
KINDS = ("pinn_forward", "pinn_inverse")
REPLACED = {
    "from deepxde.backend import tf\n": "import torch as tf\n",
    "tf.math.": "tf.",
    "tf.concat(": "tf.cat(",
}
"""Lines for TensorFlow by lines for torch."""


class Reached(Exception):  # noqa: N818
    """The first call of ``model.train``."""


def source(file):
    text = file.read_text()
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    # Some scripts choose their functions by commented lines, those of torch among them.
    return re.sub(r"^# (import torch)$", r"\1", text, flags=re.MULTILINE)


def model_of(file):
    """The model of a script at its first call of ``train``, with the arguments of the call."""
    import deepxde as dde

    found = {}

    def train(self, *args, **settings):
        found.update(model=self, settings=settings | ({"iterations": args[0]} if args else {}))
        raise Reached

    own, dde.Model.train = dde.Model.train, train
    sys.path.insert(0, str(file.parent))
    os.chdir(file.parent)
    try:
        exec(compile(source(file), str(file), "exec"), {"__name__": "__main__", "__file__": str(file)})
    except Reached:
        pass
    finally:
        dde.Model.train = own
    return found["model"], found["settings"]


def error_of(model):
    """Relative L2 error at points of the geometry; None without a reference."""
    import deepxde as dde
    import numpy as np

    if model.data.soln is None:
        return None
    np.random.seed(7)
    X = model.data.geom.random_points(10_000).astype(dde.config.real(np))
    values = model.predict(X)
    wanted = np.asarray(model.data.soln(X)).reshape(values.shape)
    return float(np.linalg.norm(values - wanted) / np.linalg.norm(wanted))


def theirs(model, seconds):
    """DeepXDE's Adam as the script has it, for so many seconds of CPU time, the last half by L-BFGS."""
    import deepxde as dde

    class Until(dde.callbacks.Callback):
        def __init__(self, end):
            super().__init__()
            self.end = end

        def on_epoch_end(self):
            self.model.stop_training = time.process_time() > self.end

    begun = time.process_time()
    model.train(iterations=10**7, display_every=10**6, callbacks=[Until(begun + seconds / 2)], verbose=0)
    after_adam = error_of(model)
    settings = {"loss_weights": model.loss_weights, "external_trainable_variables": model.external_trainable_variables}
    dde.optimizers.set_LBFGS_options(maxiter=200)
    while time.process_time() < begun + seconds:
        model.compile("L-BFGS", verbose=0, **settings)
        before = model.train_state.step
        model.train(display_every=10**6, verbose=0)
        if model.train_state.step == before:
            break
    return min(filter(None, (after_adam, error_of(model))), default=None)


def one(file, seconds):
    """What becomes of a script: a dictionary."""
    import torch

    import pinn_odelora as po
    from pinn_odelora.errors import InputError

    torch.set_num_threads(1)
    try:
        model, _ = model_of(file)
    except BaseException as failure:  # Whatever a script does wrong is its own.
        return {"outcome": "fails by itself", "said": f"{type(failure).__name__}: {failure}"[:200]}
    start = {name: x.clone() for name, x in model.net.state_dict().items()}
    values = [v.item() for v in model.external_trainable_variables]
    clock, time.perf_counter = time.perf_counter, time.process_time
    try:
        result = po.deepxde.train(model, seconds, log=po.Log(every=10**6, estimate=False))
    except InputError as refused:
        return {"outcome": "refused", "said": str(refused)}
    except Exception as failure:  # What is measured here.
        return {"outcome": "failed", "said": f"{type(failure).__name__}: {failure}"[:200]}
    finally:
        time.perf_counter = clock
    found = {"outcome": "runs", "error": error_of(model), "in double": result.rel_l2, "steps": result.steps}
    found |= {"loss": result.heldout_loss, "variables": {k: x["estimate"] for k, x in result.coefficients.items()}}
    model.net.load_state_dict(start)
    with torch.no_grad():
        for variable, value in zip(model.external_trainable_variables, values, strict=True):
            variable.fill_(value)
    model.train_state.disregard_best()
    try:
        found["theirs"] = theirs(model, seconds)
    except Exception as failure:  # A rival that fails is no reason to stop.
        found["theirs said"] = f"{type(failure).__name__}: {failure}"[:200]
    found["their variables"] = [v.item() for v in model.external_trainable_variables]
    return found


def scripts(folder, names):
    every = [file for kind in KINDS for file in sorted((folder / kind).glob("*.py"))]
    return [
        f
        for f in every
        if not any(f.stem.startswith(o) or o in f.stem for o in OMITTED) and (not names or f.stem in names)
    ]


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
    outcomes = [run["outcome"] for run in runs.values()]
    return int("failed" in outcomes)


if __name__ == "__main__":
    sys.exit(main())

"""DeepXDE's own examples: which of them run here, and how accurate they are beside DeepXDE's training.

    python benchmarks/deepxde_examples.py --examples FOLDER [--names Burgers Euler_beam] [--seconds 60]
                                          [--trainings ours theirs full] [--cap 600] [--json examples.json]
                                          [--page docs/results/deepxde.md] [--report]

``FOLDER`` is ``examples`` of a checkout of DeepXDE, which is not part of this project. Every forward and inverse script
runs in a process of its own, on one thread, for each training:

* ``ours``: ``po.deepxde.train`` in place of its first call of ``model.train`` and nothing in place of later ones;
* ``theirs``: DeepXDE's Adam and L-BFGS, for as many seconds of CPU time;
* ``full``: what the script says, ended after ``--cap`` seconds of CPU time.

A call ``model.train(0)`` trains nothing, and is left alone. Lines for TensorFlow's functions are replaced by those of
torch where that is all that is missing, and a line of Klein_Gordon by one with which its reference is a solution. The
error is the relative L2 error at 10,000 points of the geometry where the model has a reference, else what the script
prints. What the file of ``--json`` has already is not repeated.

Targets: no script fails here, the error is at most a tenth of that of ``theirs`` in the median, and above it for none.
Exits with 1 where that is missed.

Not counted are scripts with fractional derivatives, integrals, a search of hyper-parameters, networks that DeepXDE does
not have for torch, and those whose own lines fail under torch, by whoever they are trained.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from networks import put

TENTH = 0.1
OMITTED = re.compile("fractional|HPO|_IDE$|^ide$")
KINDS = ("pinn_forward", "pinn_inverse")
REPLACED = {
    "from deepxde.backend import tf\n": "import torch as tf\n",
    "tf.math.": "tf.",
    "tf.concat(": "tf.cat(",
}
"""Lines for TensorFlow by lines for torch."""
CORRECTED = {
    "Klein_Gordon": (
        "jacobian(y, x, i=0, j=1),\n    lambda _, on_initial: on_initial,",
        "jacobian(y, x, i=0, j=1),\n    lambda x, _: dde.utils.isclose(x[1], 0),",
    )
}
"""Lines that contradict the reference: an OperatorBC is told of the boundary, not of the initial time, so that
∂u/∂t = 0 is imposed at x = ±1 for all t, where u = ± cos t is, too."""
CHOSEN = {"torch": torch, "sin": torch.sin, "cos": torch.cos}
"""What scripts choose by the backend's name, some without a choice for torch."""
PRINTED = re.compile(r"((?:L2 relative|relative L2) error(?: in \w+)?):?\s*\[?([0-9.eE+-]+)", re.IGNORECASE)
"""What many scripts print in the end, for each field or for all."""
LATER = 50
"""Calls of ``model.train`` after the first, of which none does anything, that a script may make."""
LINE_SEARCH = 25
"""Evaluations of an iteration of L-BFGS with its line search at most, where Adam has one."""
TORCH, OTHER = "# Backend pytorch", "# Backend "


def source(file):
    text = file.read_text()
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    if lines := CORRECTED.get(file.stem):
        if lines[0] not in text:
            raise ValueError(f"{file.name} no longer has the lines to correct; see CORRECTED")
        text = text.replace(*lines)
    # Some scripts choose their functions by commented lines, those of torch among them.
    text, chosen = re.sub(r"^# (import torch)$", r"\1", text, flags=re.MULTILINE), False
    lines = []
    for line in text.splitlines():
        chosen = line.startswith(TORCH) or (chosen and line.startswith("# ") and not line.startswith(OTHER))
        lines.append(line[2:] if chosen and not line.startswith(OTHER) else line)
    return "\n".join(lines) + "\n"


def executed(file, train):
    """Run a script with ``train(model, …)`` in place of ``model.train``: its first model, and what it prints; why it
    failed, if it did after that.
    """
    import deepxde as dde

    models, said, failure = [], io.StringIO(), ""
    own = dde.Model.train

    def instead(model, *args, **settings):
        if (settings.get("iterations", args[0] if args else None)) == 0:
            return own(model, *args, **settings)
        models.append(model)
        with contextlib.redirect_stdout(sys.stderr):
            train(model, *args, **settings)
        return model.losshistory, model.train_state

    dde.Model.train = instead
    sys.path.insert(0, str(file.parent))
    os.chdir(file.parent)
    try:
        with contextlib.redirect_stdout(said):
            names = {"__name__": "__main__", "__file__": str(file), **CHOSEN}
            exec(compile(source(file), str(file), "exec"), names)
    except Exception as error:
        if not models:
            raise
        failure = f"{type(error).__name__}: {error}"[:200]
    finally:
        dde.Model.train = own
    return models[0], said.getvalue(), failure


def once(train):
    """A training in place of the first call for each model, and nothing in place of later ones.

    A script that trains until something is reached would never end: it is ended after a while.
    """
    trained, later = [], []

    def first(model, *_, **__):
        if model in trained:
            later.append(model)
            if len(later) > LATER:
                raise RuntimeError("the script trains again and again")
            return
        trained.append(model)
        train(model)

    return first


def error_in(model, said):
    """The error at points of the geometry where the model has a reference, else what the script prints, if it does."""
    if model.data.soln is not None:
        return error_of(model)
    found = {label: float(error) for label, error in PRINTED.findall(said)}  # the last of each
    return max(found.values(), default=None)


def error_of(model):
    """Relative L2 error at points of the geometry."""
    import deepxde as dde
    import numpy as np

    np.random.seed(7)
    X = model.data.geom.random_points(10_000).astype(dde.config.real(np))
    values = model.predict(X)
    wanted = np.asarray(model.data.soln(X)).reshape(values.shape)
    return float(np.linalg.norm(values - wanted) / np.linalg.norm(wanted))


def until(end):
    """A callback of DeepXDE that ends training when the process has taken so many seconds of CPU time."""
    import deepxde as dde

    class Until(dde.callbacks.Callback):
        def on_epoch_end(self):
            self.model.stop_training |= time.process_time() > end

    return Until()


def adam_and_lbfgs(model, seconds, train):
    """DeepXDE's Adam as compiled for half of so many seconds of CPU time, and L-BFGS for the other half, or Adam again
    where that might not suffice for one line search.
    """
    import deepxde as dde

    begun = time.process_time()
    adam = lambda end: train(model, iterations=10**7, display_every=10**6, callbacks=[until(end)], verbose=0)
    adam(begun + seconds / 2)
    settings = {"loss_weights": model.loss_weights, "external_trainable_variables": model.external_trainable_variables}
    most = LINE_SEARCH * (time.process_time() - begun) / max(model.train_state.step, 1)
    if most > seconds / 2:
        adam(begun + seconds)
    while (left := begun + seconds - time.process_time()) > 0:
        before = model.train_state.step
        dde.optimizers.set_LBFGS_options(maxiter=max(1, min(200, round(left / most))))
        model.compile("L-BFGS", verbose=0, **settings)
        train(model, display_every=10**6, verbose=0)
        if model.train_state.step == before:
            break


def ours(file, seconds):
    """What becomes of a script by our training."""
    time.perf_counter = time.process_time  # before the loop is imported: budgets are CPU time, as those of the rival
    import pinn_odelora as po
    from pinn_odelora.errors import InputError

    found, problems = {}, []

    def train(model):
        try:
            result = po.deepxde.train(model, seconds, log=po.Log(every=10**6, estimate=False))
        except Exception as failure:  # What is measured here.
            problems.append(failure)
            raise
        found.update({"steps": result.steps, "loss": result.heldout_loss, "in double": result.rel_l2})
        found["variables"] = {name: x["estimate"] for name, x in result.coefficients.items()}

    try:
        model, said, failure = executed(file, once(train))
    except Exception as error:  # Whatever a script does wrong before it trains is its own.
        return {"outcome": "fails by itself", "said": f"{type(error).__name__}: {error}"[:200]}
    if problems:
        refused = isinstance(problems[0], InputError)
        said = str(problems[0]) if refused else f"{type(problems[0]).__name__}: {problems[0]}"[:200]
        return {"outcome": "refused" if refused else "failed", "said": said}
    return found | {"outcome": "runs", "error": error_in(model, said)} | ({"after": failure} if failure else {})


def theirs(file, seconds):
    """What becomes of a script by DeepXDE's training in the same time."""
    import deepxde as dde

    train = dde.Model.train
    return rival("theirs", file, once(lambda model: adam_and_lbfgs(model, seconds, train)))


def full(file, cap):
    """What becomes of a script as it is; after so many seconds of CPU time its training ends."""
    import deepxde as dde

    own, spent = dde.Model.train, [0.0]

    def train(model, *args, **settings):
        begun = time.process_time()
        if spent[0] < cap:
            more = [*(settings.pop("callbacks", None) or []), until(begun + cap - spent[0])]
            own(model, *args, callbacks=more, **settings)
        spent[0] += time.process_time() - begun

    found = rival("full", file, train)
    return found | {"full seconds": spent[0], "capped": spent[0] >= cap}


def rival(who, file, train):
    try:
        model, said, _ = executed(file, train)
    except Exception as failure:  # A rival that fails is no reason to stop.
        return {who: None, f"{who} said": f"{type(failure).__name__}: {failure}"[:200]}
    return {who: error_in(model, said), f"{who} variables": [v.item() for v in model.external_trainable_variables]}


TRAININGS = {"ours": ours, "theirs": theirs, "full": full}
KEYS = {"ours": "outcome", "theirs": "theirs", "full": "full"}
"""What a run has where a training is done."""


def scripts(folder, names):
    every = [file for kind in KINDS for file in sorted((folder / kind).glob("*.py"))]
    return [f for f in every if not OMITTED.search(f.stem) and (not names or f.stem in names)]


def lines(runs):
    rows = ["| script | outcome | error | DeepXDE | its own length | steps |", "|---|---|---|---|---|---|"]
    shown = lambda x: "–" if x is None else f"{x:.1e}"
    for name, run in sorted(runs.items()):
        outcome = run.get("outcome", "–") + (f": {run['said']}" if "said" in run else "")
        whole = shown(run.get("full")) + (" (capped)" if run.get("capped") and run.get("full") else "")
        errors = f"{shown(run.get('error'))} | {shown(run.get('theirs'))} | {whole}"
        rows.append(f"| {name} | {outcome} | {errors} | {run.get('steps', '')} |")
    return rows


def unknowns(runs):
    """The values found for the unknowns of inverse scripts, where there are any."""
    rows = ["| script | found | DeepXDE | its own length |", "|---|---|---|---|"]
    shown = lambda values: ", ".join(f"{x:.5g}" for x in values or ())
    for name, run in sorted(runs.items()):
        if run.get("variables"):
            named = ", ".join(f"{key} {x:.5g}" for key, x in run["variables"].items())
            rows.append(
                f"| {name} | {named} | {shown(run.get('theirs variables'))} | {shown(run.get('full variables'))} |"
            )
    return rows if len(rows) > 2 else []


def verdict(runs):
    """What is reached of the targets, a sentence, and whether it is all."""
    both = {name: run for name, run in sorted(runs.items()) if run.get("error") and run.get("theirs")}
    ratios = {name: run["error"] / run["theirs"] for name, run in both.items()}
    failed = [name for name, run in runs.items() if run.get("outcome") == "failed"]
    lost = [name for name, ratio in ratios.items() if ratio > 1]
    middle = statistics.median(ratios.values()) if ratios else math.nan
    said = f"{sum(run.get('outcome') == 'runs' for run in runs.values())} of {len(runs)} scripts run here. Of "
    said += f"{len(ratios)} with both errors ours is {middle:.2g} times DeepXDE's in the median (target {TENTH})"
    said += f", and above it for {', '.join(lost)}." if lost else ", and above it for none."
    said += f" Failed: {', '.join(failed)}." if failed else ""
    return said, not failed and not lost and middle <= TENTH


def read(file):
    return json.loads(file.read_text()) if file.exists() else {}


def measured(file, training, args):
    """One training of a script, in a process of its own."""
    command = [sys.executable, __file__, "--examples", str(args.examples), "--seconds", str(args.seconds)]
    command += ["--cap", str(args.cap), "--trainings", training, "--one", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    failed = {KEYS[training]: "failed" if training == "ours" else None}
    failed[{"ours": "said"}.get(training, f"{training} said")] = (done.stderr.strip().splitlines() or [""])[-1][:200]
    return json.loads(said[0][6:]) if said else failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=Path, required=True, help="the folder examples of a checkout of DeepXDE")
    parser.add_argument("--names", nargs="+", help="some of the scripts")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=["ours", "theirs"])
    parser.add_argument("--cap", type=float, default=600.0, help="seconds after which a script's own training ends")
    parser.add_argument("--json", type=Path, default=Path("examples.json"))
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ |= {"DDE_BACKEND": "pytorch", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    if args.one:
        time.perf_counter = time.process_time  # before our own modules are imported, which keep it
        from pinn_odelora.threads import set_threads

        set_threads(1)
        (training,) = args.trainings
        seconds = args.cap if training == "full" else args.seconds
        print("FOUND " + json.dumps(TRAININGS[training](args.one.resolve(), seconds)))
        return 0
    for training in () if args.report else args.trainings:
        for file in scripts(args.examples, args.names):
            name = f"{file.parent.name}/{file.stem}"
            if KEYS[training] in read(args.json).get(name, {}):
                continue
            found = measured(file, training, args)
            runs = read(args.json)  # again: others may have written meanwhile
            runs[name] = runs.get(name, {}) | found
            args.json.write_text(json.dumps(runs, indent=1))
            print(lines({name: runs[name]})[-1], flush=True)
    runs = read(args.json)
    said, reached = verdict(runs)
    report = "\n\n".join(filter(None, ("\n".join(lines(runs)), "\n".join(unknowns(runs)), said)))
    print(report)
    if args.page:
        put(args.page, report)
    return int(not reached)


if __name__ == "__main__":
    sys.exit(main())

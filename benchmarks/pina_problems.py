"""PINA's problems, trained here and by PINA's own solver for as many seconds: its zoo, and two inverse problems.

    python benchmarks/pina_problems.py [--names Poisson2DSquareProblem] [--seconds 20] [--json pina.json]
                                       [--page docs/results/pina.md] [--report]

The nine entries of ``pina.problem.zoo`` are posed by ``po.pina.problem``. Where an entry asks for a choice, ``CASES``
has it; the periodicity of two entries is that of the network, as in PINA's tutorial 9. The inverse problem of the zoo
is that of tutorial 7, the only inverse one among PINA's tutorials, and its data, which PINA downloads, are those of a
sine series here. The other one is the wave of tutorial 3 with an unknown speed, restated.

From the same random weights of a network of three layers of 30 units, each for so many seconds of CPU time, one thread:

* here: 100 steps of Adam, and natural gradient, in double precision. With unknown parameters two fifths of the time go
  to the network at PINA's first guess for them, the rest to both.
* PINA: its solver ``PINN``, ``SupervisedSolver`` for the supervised entry, Adam with the learning rate 0.005 of its
  tutorial 7, 1000 random points inside and 200 for each other condition, in single precision, as its tutorials do.

The error is the relative L2 error at 10,000 points, by the entry's ``solution``, else by our own reference. Seven
entries must run and both inverse problems be solved, with errors that are not above those of PINA. Exits with 1 where
that is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from networks import put
from pina_cases import CASES, INVERSE, TRUE, Case
from torch import Tensor, nn

import pinn_odelora as po
from pinn_odelora.errors import InputError
from pinn_odelora.files import write_json
from pinn_odelora.geometry import sobol
from pinn_odelora.threads import set_threads

WIDTH, DEPTH, SEED, POINTS = 30, 3, 0, 10_000
INSIDE, BESIDE, RATE = 1000, 200, 5e-3
AT_THE_GUESS = 0.4
"""The part of the time before unknown parameters are sought, as of ``po.deepxde.train``."""
ENOUGH = 7
"""Entries of the zoo that must run."""


# Training.


class Periodic(nn.Module):
    """A network of cos 2πx/L, sin 2πx/L and t."""

    def __init__(self, period: float, inner: nn.Module) -> None:
        super().__init__()
        self.period = period
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi / self.period * x[:, :1]
        return self.inner(torch.cat([torch.cos(angle), torch.sin(angle), x[:, 1:]], dim=1))


def network(inputs: int, outputs: int, period: float | None) -> nn.Module:
    """The same at each call; periodic in its first input."""
    from pina.model import FeedForward

    torch.manual_seed(SEED)
    inner = FeedForward(inputs + (period is not None), outputs, layers=[WIDTH] * DEPTH, func=nn.Tanh)
    return inner if period is None else Periodic(period, inner)


def error(net: Callable[[Tensor], Tensor], posed: Any, case: Case) -> float:
    """Relative L2 error at points of the domain."""
    p = posed.region.sample(POINTS, lambda n, d: sobol(n, d, seed=7))
    wanted = (case.reference or posed.reference)(p)
    with torch.no_grad():
        found = net(p.rows(posed.coords)).double()
    return float((found - wanted).norm() / wanted.norm())


def ours(case: Case, seconds: float) -> dict[str, Any]:
    """Adam and natural gradient, on our points."""
    posed = po.pina.problem(case.make())
    unknown = [*posed.parameters()]
    begun = time.process_time()
    first = po.Pretraining(natural_gradient_steps=0, lbfgs_evals=0, second_stage="natural_gradient")
    net = po.pretrain(posed, network(posed.inputs, len(posed.fields), case.period), settings=first)

    def stepped(net: nn.Module, problem: Any, until: float, unknown: list[str]) -> Any:
        budget = po.Budget(seconds=max(0.1, begun + until - time.process_time()))
        method = po.methods.full_implicit(po.LinearlyImplicit())
        log = po.Log(every=10**6, estimate=False)
        run = po.steps(net, problem, method=method, budget=budget, log=log, unknown=unknown, seed=SEED)
        run.training.clock = time.process_time
        _ = [*run]
        run.conclude()
        return run

    if unknown:
        net = stepped(net, posed.as_source(), AT_THE_GUESS * seconds, []).net
    run = stepped(net, posed, seconds, unknown)
    spent, result = time.process_time() - begun, run.result()
    engines = {"jets" if run.system.engine(term).by_rows.plan else "reverse mode" for term in run.system.terms}
    found = {name: x["estimate"] for name, x in result.coefficients.items()}
    solved = lambda x: result.net(x.to(next(result.net.parameters())))
    return {
        "error": error(solved, posed, case),
        "found": found,
        "steps": result.steps,
        "seconds": spent,
        "engine": " and ".join(sorted(engines)),
    }


def theirs(case: Case, seconds: float) -> dict[str, Any]:
    """PINA's solver and trainer."""
    from lightning.pytorch import Callback
    from pina import Trainer
    from pina.optim import TorchOptimizer
    from pina.solver import PINN, SupervisedSolver

    class Until(Callback):
        def on_train_start(self, *_: Any) -> None:
            self.begun = time.process_time()

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = time.process_time() > self.begun + seconds

    posed, problem = po.pina.problem(case.make()), case.make()
    for name in {c.domain for c in problem.conditions.values() if hasattr(c, "domain")}:
        problem.discretise_domain(INSIDE if name == "D" else BESIDE, "random", domains=[name])
    model = network(posed.inputs, len(posed.fields), case.period)
    optimizer = TorchOptimizer(torch.optim.Adam, lr=RATE)
    if problem.input_variables is None:  # of data alone, without labels
        solver = SupervisedSolver(problem, model, optimizer=optimizer, use_lt=False)
    else:
        solver = PINN(problem, model, optimizer=optimizer)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False)
    trainer = Trainer(solver, max_epochs=-1, accelerator="cpu", callbacks=[Until()], **quiet)
    begun = time.process_time()
    trainer.train()
    spent = time.process_time() - begun
    parameters = getattr(problem, "unknown_parameters", {})
    return {
        "error": error(lambda x: model(x.float()), posed, case),
        "found": {name: value.item() for name, value in parameters.items()},
        "steps": trainer.global_step,
        "seconds": spent,
    }


def measured(name: str, seconds: float) -> dict[str, Any]:
    """An entry by both; a failure is what is measured here."""
    run: dict[str, Any] = {"outcome": "runs"}
    try:
        run["ours"] = ours(CASES[name], seconds)
    except Exception as failure:
        said = str(failure) if isinstance(failure, InputError) else f"{type(failure).__name__}: {failure}"[:200]
        run |= {"outcome": "refused" if isinstance(failure, InputError) else "failed", "said": said}
    try:
        run["theirs"] = theirs(CASES[name], seconds)
    except Exception as failure:  # A rival that fails is no reason to stop.
        run["their failure"] = f"{type(failure).__name__}: {failure}"[:200]
    return run


# The table.


def coefficients(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in run.get("found", {}).items())


HEAD = ["problem", "as posed", "outcome", "error", "PINA", "steps", "PINA", "found", "PINA", "true"]


def row(name: str, run: Mapping[str, Any]) -> list[str]:
    ours, theirs = run.get("ours", {}), run.get("theirs", {})
    shown = lambda x: f"{x['error']:.1e}" if x else "–"
    outcome = run["outcome"] + (f": {run['said']}" if "said" in run else "")
    true = ", ".join(f"{key} {TRUE[key]:g}" for key in ours.get("found", {}))
    steps = [str(x.get("steps", "–")) for x in (ours, theirs)]
    known = [coefficients(ours), coefficients(theirs), true]
    return [name, CASES[name].said, outcome, shown(ours), shown(theirs), *steps, *known]


def markdown(runs: Mapping[str, Any]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *(row(name, runs[name]) for name in CASES if name in runs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(runs: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing that is missed."""
    runs = {name: runs[name] for name in CASES if name in runs}
    running = [name for name, run in runs.items() if run["outcome"] == "runs" and name.endswith("Problem")]
    missed = [] if len(running) >= ENOUGH else [f"{len(running)} entries of the zoo run, not {ENOUGH}"]
    missed += [f"{name}: not solved" for name in INVERSE if runs.get(name, {}).get("outcome") != "runs"]
    both = {name: run for name, run in runs.items() if "ours" in run and "theirs" in run}
    return missed + [
        f"{name}: an error of {run['ours']['error']:.1e}, above PINA's {run['theirs']['error']:.1e}"
        for name, run in both.items()
        if not run["ours"]["error"] <= run["theirs"]["error"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path, default=Path("pina.json"))
    parser.add_argument("--page", type=Path, help="renew the table of this page")
    parser.add_argument("--report", action="store_true", help="run nothing")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    set_threads(1)
    runs = json.loads(given.json.read_text()) if given.json.exists() else {}
    for name in () if given.report else given.names:
        if name not in runs:
            runs[name] = measured(name, given.seconds)
            write_json(given.json, runs)
            print(" | ".join(row(name, runs[name])), file=sys.stderr, flush=True)
    print(markdown(runs))
    missed = short(runs)
    print("\n".join(missed))
    if given.page:
        put(given.page, markdown(runs))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())

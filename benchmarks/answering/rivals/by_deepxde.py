"""From scratch by DeepXDE (Lu, Meng, Mao and Karniadakis, 2021): 500 steps of Adam and then its L-BFGS.

Network, points and hard conditions are those of the other solvers; derivatives and steps are its own. It changes the
defaults of torch, so that it runs in a process of its own, from which a trace comes back:

    python -m answering.rivals.by_deepxde burgers 40 0.013 0 1e-4 30
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from answering.cases import CASES, Case
from answering.rivals.scratch import FIRST, POINTS
from answering.trace import Trace, error_at
from pinn_odelora.derivatives.field import Field
from pinn_odelora.formulation import Problem
from pinn_odelora.points import Points
from pinn_odelora.system import draw_points

ROOT = Path(__file__).parents[3]
ADAM_RATE, ITERATIONS = 5e-3, 20
"""``ITERATIONS`` of L-BFGS between two looks at the error."""


def deepxde(case: Case, value: float, seed: int, target: float, cap: float) -> Trace:
    """The trace of the process, which knows the case by its name and the width of its network."""
    words = [case.name, str(case.width), repr(value), str(seed), repr(target), repr(cap)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "DDE_BACKEND": "pytorch"}
    done = subprocess.run(
        [sys.executable, "-m", "answering.rivals.by_deepxde", *words], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"DeepXDE on {case.name}:\n{done.stderr}")
    trace = Trace(lambda: float("nan"), target, cap)
    trace.marks = [tuple(mark) for mark in json.loads(done.stdout.splitlines()[-1])]
    return trace


def run(case: Case, value: float, seed: int, target: float, cap: float) -> Trace:
    """In this process."""
    with contextlib.redirect_stderr(io.StringIO()):
        import deepxde as dde

    class Asked(Field):
        """The network's output, differentiated by DeepXDE."""

        def __init__(self, problem: Problem, x: Tensor, y: Tensor) -> None:
            super().__init__(Points.from_rows(problem.coords, x), problem.fields, problem.coords)
            self.inputs, self.outputs = x, y

        def derivative(self, field: str, along: str) -> Tensor:
            i, at = self.fields.index(field), [self.coords.index(c) for c in along]
            match at:
                case []:
                    return self.outputs[:, i : i + 1]
                case [j]:
                    return dde.grad.jacobian(self.outputs, self.inputs, i=i, j=j)
                case [j, k]:
                    return dde.grad.hessian(self.outputs, self.inputs, component=i, i=j, j=k)
            raise NotImplementedError("equations of second order at most")

        def at(self, **columns: Tensor) -> Field:
            raise NotImplementedError("no case evaluates its solution at moved points")

    problem, (interior, boundary) = case.at(value), POINTS
    dde.config.set_default_float("float64")
    dde.config.set_random_seed(seed)
    low, high = np.array([problem.region.bounds[name] for name in problem.coords], dtype=float).T
    terms = problem.loss_terms()

    def residual(name: str) -> Any:
        def columns(x: Tensor, y: Tensor) -> list[Tensor]:
            r = terms[name].residual(Asked(problem, x, y))
            return list(r) if isinstance(r, tuple) else [r]

        return columns

    conditions, drawn = [], draw_points(terms, interior, boundary, seed)
    for name in (name for name, term in terms.items() if not term.where.interior):
        x = drawn[name].rows(problem.coords).numpy()
        few = torch.tensor(x[:2], requires_grad=True)
        number = len(residual(name)(few, few.sum(dim=1, keepdim=True).repeat(1, len(problem.fields))))
        for k in range(number):
            operator = lambda inputs, outputs, X, name=name, k=k: residual(name)(inputs, outputs)[k]
            conditions.append(dde.icbc.PointSetOperatorBC(x, np.zeros((len(x), 1)), operator))
    data = dde.data.PDE(
        dde.geometry.Hypercube(low, high), residual("pde"), conditions, num_domain=interior, train_distribution="Sobol"
    )
    depth = len(case.net(0).linears) - 1
    net = dde.nn.FNN([problem.inputs, *[case.width] * depth, len(problem.fields)], "tanh", "Glorot uniform")
    points = lambda x: Points.from_rows(problem.coords, x)
    net.apply_feature_transform(lambda x: problem.embed(points(x)))
    if problem.conditions == "hard":

        def transform(x: Tensor, y: Tensor) -> Tensor:
            g, m = problem.ansatz(points(x))
            return g + m * y

        net.apply_output_transform(transform)
    error = error_at(problem)
    trace = Trace(lambda: error(lambda p: net(p.rows(problem.coords))), target, cap)

    class Look(dde.callbacks.Callback):
        def __init__(self, every: int) -> None:
            super().__init__()
            self.every, self.epoch = every, 0

        def on_epoch_end(self) -> None:
            self.epoch += 1
            if self.epoch % self.every == 0 and trace.look():
                self.model.stop_training = True

    model, quiet = dde.Model(data, net), {"verbose": 0, "display_every": 10**9}
    trace.look()
    model.compile("adam", lr=ADAM_RATE, verbose=0)
    model.train(iterations=FIRST, callbacks=[Look(ITERATIONS)], **quiet)
    if not trace.look():
        dde.optimizers.set_LBFGS_options(maxcor=100, ftol=0, gtol=0, maxiter=10**7)
        dde.optimizers.LBFGS_options["iter_per_step"] = ITERATIONS
        dde.optimizers.LBFGS_options["fun_per_step"] = int(1.25 * ITERATIONS)
        model.compile("L-BFGS", verbose=0)
        model.train(callbacks=[Look(1)], **quiet)
    return trace


def main() -> None:
    name, width, *numbers = sys.argv[1:]
    torch.set_num_threads(1)
    value, seed, target, cap = (float(x) for x in numbers)
    print(json.dumps(run(CASES[name]._replace(width=int(width)), value, int(seed), target, cap).marks))


if __name__ == "__main__":
    main()

"""One adaptation for every target: ``po.adapt`` with its default settings, from the pretrained network."""

from __future__ import annotations

import time

from torch import nn

import pinn_odelora as po
from answering.cases import Case
from answering.trace import Trace, error_at


def adaptation(case: Case, value: float, seed: int, target: float, cap: float, net: nn.Module) -> Trace:
    """Its history, step by step: the error of what the run would return, and its seconds, measurements excluded."""
    problem = case.at(value)
    error = error_at(problem)
    run = po.steps(net, problem, seed=seed, budget=po.Budget(seconds=cap), log=po.Log(every=1), device="cpu")
    run.training.clock = time.process_time
    trace = Trace(lambda: error(run.solution), target, cap)
    for _ in run:
        row = run.history[-1]
        if trace.look(row["error/rel_l2"], row["cost/seconds"]):
            return trace
    run.conclude()
    trace.look(seconds=run.training.progress.seconds)
    return trace

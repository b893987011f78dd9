"""Ours: loss and gradient of a system of residuals, the derivatives by jets or by nested reverse mode."""

from __future__ import annotations

import torch

from engines import Step
from engines.workloads import WORKLOADS, Case, network, points
from pinn_odelora.gradient import Gradient
from pinn_odelora.system import Solution, System


def build(case: Case, device: str, derivatives: str) -> Step:
    problem, net = WORKLOADS[case.workload].problem, network(case).to(device)
    system = System(problem, Solution(problem, net), derivatives=derivatives)
    step = Gradient(system, list(net.parameters()))
    where = {"pde": points(case).to(device)}

    def run():
        result = step(where)
        if device != "cpu":
            torch.cuda.synchronize()
        return result

    return Step(run, lambda result: [g.cpu().numpy() for g in result[1]])

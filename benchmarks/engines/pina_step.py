"""PINA's loss of a batch, ``PINN.batch_evaluation_step``, and its backward pass (Coscia et al., 2023).

The solver stands outside of a trainer, so its logging does nothing. The equations share first derivatives, which is
faster than asking ``laplacian`` for the second ones.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from pina import Condition, LabelTensor
from pina.domain import CartesianDomain
from pina.equation import Equation
from pina.operator import grad
from pina.problem import SpatialProblem, TimeDependentProblem
from pina.solver import PhysicsInformedSingleModelSolver
from pina.weighting import ScalarWeighting

from engines import Step
from engines.workloads import WORKLOADS, AllenCahn, Burgers, Case, KdV, NavierStokes, gradients, network


def burgers(x, u):
    du = grad(u, x)
    u_xx = grad(du, x, components="dudx", d="x")
    return du["dudt"] + u * du["dudx"] - Burgers.nu * u_xx


def allen_cahn(x, u):
    du = grad(u, x)
    u_xx = grad(du, x, components="dudx", d="x")
    return du["dudt"] - AllenCahn.d * u_xx - 5 * (u - u**3)


def navier_stokes(x, y):
    u, v = y["u"], y["v"]
    du, dv, dp = (grad(y, x, components=component) for component in "uvp")
    lap_u = grad(du, x, components="dudx", d="x") + grad(du, x, components="dudy", d="y")
    lap_v = grad(dv, x, components="dvdx", d="x") + grad(dv, x, components="dvdy", d="y")
    return torch.cat(
        [
            u * du["dudx"] + v * du["dudy"] + dp["dpdx"] - lap_u / NavierStokes.re,
            u * dv["dvdx"] + v * dv["dvdy"] + dp["dpdy"] - lap_v / NavierStokes.re,
            du["dudx"] + dv["dvdy"],
        ],
        dim=1,
    )


def kdv(x, u):
    du = grad(u, x)
    u_xx = grad(du, x, components="dudx", d="x")
    u_xxx = grad(u_xx, x, d="x")
    return du["dudt"] + u * du["dudx"] + KdV.delta**2 * u_xxx


def poisson(x, u):
    du = grad(u, x)
    return sum(grad(du, x, components=f"dud{c}", d=c) for c in x.labels) + 1


EQUATIONS = {f.__name__: f for f in (burgers, allen_cahn, navier_stokes, kdv, poisson)}


class Solver(PhysicsInformedSingleModelSolver):
    """The solver without a trainer."""

    trainer = SimpleNamespace(logging_kwargs={}, current_epoch=0)

    def log(self, **_):
        pass


def statement(problem, conditions):
    """The problem as PINA states it: time has a domain of its own, and comes last among the network's inputs."""

    def domain(*names):
        return CartesianDomain({name: list(problem.region.bounds[name]) for name in names})

    bases = [SpatialProblem]
    stated = {
        "output_variables": list(problem.fields),
        "spatial_domain": domain(*(name for name in problem.coords if name != "t")),
        "conditions": conditions,
    }
    if "t" in problem.coords:
        bases.append(TimeDependentProblem)
        stated["temporal_domain"] = domain("t")
    return type("Statement", tuple(bases), stated)()


def build(case: Case, device: str) -> Step:
    problem = WORKLOADS[case.workload].problem
    batch = LabelTensor(torch.from_numpy(case.points).to(device), list(problem.coords))
    stated = statement(problem, {"pde": Condition(input=batch, equation=Equation(EQUATIONS[case.workload]))})

    # PINA means over the components of a residual where everybody else sums.
    components = len(problem.fields)
    solver = Solver(stated, network(case), weighting=ScalarWeighting({"pde": float(components)})).to(device)
    parameters = list(solver.model.parameters())

    def run():
        for p in parameters:
            p.grad = None
        solver.batch_evaluation_step([("pde", {"input": batch})], 0).backward()
        if device != "cpu":
            torch.cuda.synchronize()

    return Step(run, lambda _: gradients(parameters))

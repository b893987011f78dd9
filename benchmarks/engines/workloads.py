"""The five workloads: equations in our own words, networks, points, and the gradient that every engine must find.

Each is the residual of one equation in the interior, under a tanh network; the loss is the mean over the points of
the squared residual, components summed. They differ in what a derivative engine has to do: a small and a wide network
for a scalar equation of second order, a system, a third order, and many dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pinn_odelora.derivatives import AutogradField
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Box, sobol
from pinn_odelora.nets import MLP
from pinn_odelora.points import Points
from pinn_odelora.system import Solution


class Interior(Problem):
    """An equation without its conditions."""

    supports = ("soft",)

    def terms(self):
        return {"pde": Term(self.region, self.residual)}


class Burgers(Interior):
    """u_t + u u_x = ν u_xx."""

    coords = ("x", "t")
    region = Box(x=(-1, 1), t=(0, 1))
    nu = 0.01 / math.pi

    def residual(self, f):
        return f.op("u", {"t": 1, "xx": -self.nu}) + f.u * f.u_x


class AllenCahn(Interior):
    """u_t = d u_xx + 5 (u − u³)."""

    coords = ("x", "t")
    region = Box(x=(-1, 1), t=(0, 1))
    d = 1e-4

    def residual(self, f):
        return f.op("u", {"t": 1, "xx": -self.d}) - 5 * (f.u - f.u**3)


class NavierStokes(Interior):
    """(u, v)·∇(u, v) + ∇p = Δ(u, v) / Re, u_x + v_y = 0."""

    coords = ("x", "y")
    fields = ("u", "v", "p")
    region = Box(x=(-0.5, 1), y=(-0.5, 1.5))
    re = 20.0

    def residual(self, f):
        return (
            f.u * f.u_x + f.v * f.u_y + f.p_x - f.lap("u") / self.re,
            f.u * f.v_x + f.v * f.v_y + f.p_y - f.lap("v") / self.re,
            f.u_x + f.v_y,
        )


class KdV(Interior):
    """u_t + u u_x + δ² u_xxx = 0 (Zabusky and Kruskal, 1965)."""

    coords = ("x", "t")
    region = Box(x=(-1, 1), t=(0, 1))
    delta = 0.022

    def residual(self, f):
        return f.op("u", {"t": 1, "xxx": self.delta**2}) + f.u * f.u_x


class Poisson(Interior):
    """Δu + 1 = 0 in ten dimensions."""

    coords = tuple("abcdefghij")
    region = Box(**dict.fromkeys(coords, (0, 1)))

    def residual(self, f):
        return f.lap("u") + 1


@dataclass(frozen=True)
class Workload:
    """A problem, a network of ``depth`` hidden layers, and the number of points."""

    problem: Problem
    depth: int
    width: int
    number: int

    def __str__(self) -> str:
        return f"{self.depth}x{self.width}, N={self.number}"


WORKLOADS = {
    "burgers": Workload(Burgers(), depth=4, width=50, number=2540),
    "allen_cahn": Workload(AllenCahn(), depth=4, width=256, number=8192),
    "navier_stokes": Workload(NavierStokes(), depth=5, width=128, number=4096),
    "kdv": Workload(KdV(), depth=4, width=128, number=4096),
    "poisson": Workload(Poisson(), depth=4, width=128, number=2048),
}


class Case(NamedTuple):
    """What all engines share, float32: layers (W (m, n), b (m,)) in order, and points (N, d)."""

    workload: str
    layers: list[tuple[np.ndarray, np.ndarray]]
    points: np.ndarray


def case(name: str, number: int | None = None) -> Case:
    """Glorot weights, biases away from zero and Sobol points of a workload; ``number`` replaces that of its points."""
    workload = WORKLOADS[name]
    problem = workload.problem
    generator = torch.Generator().manual_seed(0)
    net = MLP(problem.inputs, len(problem.fields), workload.width, workload.depth, generator=generator)
    for linear in net.linears:
        torch.nn.init.normal_(linear.bias, std=0.2, generator=generator)
    points = problem.region.sample(number or workload.number, lambda n, d: sobol(n, d, seed=0))
    layers = [tuple(parameter.detach().float().numpy() for parameter in linear.parameters()) for linear in net.linears]
    return Case(name, layers, points.rows(problem.coords).float().numpy())


def network(case: Case, dtype: torch.dtype = torch.float32) -> MLP:
    """The network of a case."""
    workload = WORKLOADS[case.workload]
    net = MLP(workload.problem.inputs, len(workload.problem.fields), workload.width, workload.depth).to(dtype)
    load(net.parameters(), case)
    return net


def load(parameters, case: Case) -> None:
    """Copy the weights of a case into the parameters of a network, W and b layer by layer."""
    with torch.no_grad():
        for parameter, array in zip(parameters, (array for layer in case.layers for array in layer), strict=True):
            parameter.copy_(torch.from_numpy(array))


def gradients(parameters) -> list[np.ndarray]:
    """What a backward pass has left; the last bias has no gradient where only derivatives enter the residual."""
    return [(torch.zeros_like(p) if p.grad is None else p.grad).cpu().numpy() for p in parameters]


def points(case: Case, dtype: torch.dtype = torch.float32) -> Points:
    """The points of a case."""
    return Points.from_rows(WORKLOADS[case.workload].problem.coords, torch.from_numpy(case.points).to(dtype))


def reference(case: Case) -> list[np.ndarray]:
    """The gradient by nested reverse mode in float64: ∂L/∂W, ∂L/∂b, layer by layer."""
    problem, net = WORKLOADS[case.workload].problem, network(case, torch.float64)
    field = AutogradField(Solution(problem, net), points(case, torch.float64), problem.fields, problem.coords)
    loss = problem.terms()["pde"].rows(field).square().sum(dim=1).mean()
    return [g.numpy() for g in torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)]


def distance(gradient: list, exact: list[np.ndarray]) -> float:
    """‖g − g*‖ / ‖g*‖ over all weights together."""
    a, b = (np.concatenate([np.asarray(part, dtype=np.float64).ravel() for part in g]) for g in (gradient, exact))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))

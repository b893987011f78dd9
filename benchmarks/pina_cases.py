"""The problems of ``pina_problems.py``: the entries of PINA's zoo, two inverse problems, and references of our own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pinn_odelora.geometry import sobol
from problems.allen_cahn import AllenCahn
from problems.burgers import Burgers

SEED = 0
"""Of the first guesses for unknown parameters."""
NU = 0.01 / math.pi
TRUE = {"mu1": 0.5, "mu2": 0.5, "c": 1.0}
MEASURED = 300


class Case(NamedTuple):
    """A problem of PINA, the reference where it has no ``solution``, p -> (N, fields), and a period of the network."""

    make: Callable[[], Any]
    reference: Callable[[Any], Tensor] | None = None
    period: float | None = None
    said: str = ""


# Problems.


def zoo(name: str, *args: Any, **settings: Any) -> Any:
    return getattr(import_module("pina.problem.zoo"), name)(*args, **settings)


def bumps(x: Tensor) -> Tensor:
    """What the supervised entry is given: sin 3x cos 2y, (N, 1)."""
    return torch.sin(3 * x[:, :1]) * torch.cos(2 * x[:, 1:2])


def supervised() -> Any:
    x = sobol(500, 2, seed=3).float()
    return zoo("SupervisedProblem", x, bumps(x))


@cache
def poisson_modes(n: int) -> Tensor:
    """Coefficients of Δu = exp(-2 |p - μ|²), u = 0 around [-2, 2]²: u = Σ a_jk sin(jπ(x + 2)/4) sin(kπ(y + 2)/4).

    The source is a product, its sine coefficients are found by the trapezoidal rule on 4n cells.
    """
    x = torch.linspace(-2, 2, 4 * n + 1, dtype=torch.float64)
    waves = torch.sin(torch.arange(1, n + 1, dtype=torch.float64)[:, None] * math.pi * (x + 2) / 4)
    f = {name: waves @ torch.exp(-2 * (x - TRUE[name]) ** 2) / (2 * n) for name in ("mu1", "mu2")}
    squares = (torch.arange(1, n + 1, dtype=torch.float64) * math.pi / 4) ** 2
    return -torch.outer(f["mu1"], f["mu2"]) / (squares[:, None] + squares)


def poisson_reference(rows: Tensor, n: int = 128) -> Tensor:
    a = poisson_modes(n)
    k = torch.arange(1, len(a) + 1, dtype=torch.float64)
    waves = [torch.sin(k * math.pi * (rows[:, i : i + 1].double() + 2) / 4) for i in (0, 1)]
    return ((waves[0] @ a) * waves[1]).sum(dim=1, keepdim=True)


def seen(problem: Any, labels: list[str], low: Tensor, high: Tensor, values: Callable[[Tensor], Tensor]) -> Any:
    """The problem with values at points as a further condition ``data``."""
    from pina import Condition, LabelTensor

    x = (low + (high - low) * sobol(MEASURED, len(labels), seed=5)).float()
    condition = Condition(input=LabelTensor(x, labels), target=LabelTensor(values(x).float(), ["u"]))
    condition.problem, condition.name = problem, "data"
    problem.conditions["data"] = condition
    return problem


def inverse_poisson() -> Any:
    """Of the zoo, the data without a download; both guesses are those of PINA, random in [-1, 1]."""
    torch.manual_seed(SEED)
    ends = torch.tensor([2.0, 2.0])
    return seen(zoo("InversePoisson2DSquareProblem", load=False), ["x", "y"], -ends, ends, poisson_reference)


def wave(x: Tensor) -> Tensor:
    """sin πx sin πy cos(√2 c π t), (N, 1)."""
    frequencies = torch.tensor([1.0, 1.0, 2**0.5 * TRUE["c"]], dtype=torch.float64)
    x, y, t = (math.pi * frequencies * x).split(1, dim=1)
    return torch.sin(x) * torch.sin(y) * torch.cos(t)


def wave_speed() -> Any:
    """u_tt = c² Δu on the unit square, at rest at t = 0 with u = sin πx sin πy, u = 0 around; c unknown in [0.5, 2]."""
    from pina import Condition
    from pina.domain import CartesianDomain
    from pina.equation import Equation, FixedValue, SystemEquation
    from pina.operator import grad, laplacian
    from pina.problem import InverseProblem, SpatialProblem, TimeDependentProblem

    def equation(x: Any, u: Any, parameters: Mapping[str, Any]) -> Any:
        accelerated = laplacian(u, x, components=["u"], d=["t"])
        return accelerated - parameters["c"] ** 2 * laplacian(u, x, components=["u"], d=["x", "y"])

    def start(x: Any, u: Any) -> Any:
        return u - torch.sin(torch.pi * x.extract(["x"])) * torch.sin(torch.pi * x.extract(["y"]))

    def rest(x: Any, u: Any) -> Any:
        return grad(u, x, components=["u"], d=["t"])

    square, time_domain = CartesianDomain({"x": [0, 1], "y": [0, 1]}), CartesianDomain({"t": [0, 1]})

    class Wave(TimeDependentProblem, SpatialProblem, InverseProblem):
        output_variables: ClassVar = ["u"]
        spatial_domain = square
        temporal_domain = time_domain
        unknown_parameter_domain = CartesianDomain({"c": [0.5, 2.0]})
        domains: ClassVar = {
            "D": square.update(time_domain),
            "t0": square.update(CartesianDomain({"t": 0.0})),
            "boundary": square.partial().update(time_domain),
        }
        conditions: ClassVar = {
            "D": Condition(domain="D", equation=Equation(equation)),
            "t0": Condition(domain="t0", equation=SystemEquation([start, rest])),
            "boundary": Condition(domain="boundary", equation=FixedValue(0.0)),
        }

    torch.manual_seed(SEED)
    return seen(Wave(), ["x", "y", "t"], torch.zeros(3), torch.ones(3), wave)


CASES: dict[str, Case] = {
    "AcousticWaveProblem": Case(lambda: zoo("AcousticWaveProblem"), said="c = 2"),
    "AdvectionProblem": Case(lambda: zoo("AdvectionProblem"), period=2 * math.pi, said="periodic network"),
    "AllenCahnProblem": Case(
        lambda: zoo("AllenCahnProblem"), AllenCahn(d=1e-4).reference, period=2.0, said="periodic network"
    ),
    "BurgersProblem": Case(lambda: zoo("BurgersProblem", nu=NU), Burgers(nu=NU).reference, said="ν = 0.01/π"),
    "DiffusionReactionProblem": Case(lambda: zoo("DiffusionReactionProblem"), said="α = 1e-4"),
    "HelmholtzProblem": Case(lambda: zoo("HelmholtzProblem"), said="k = 1, frequencies 1 and 4"),
    "Poisson2DSquareProblem": Case(lambda: zoo("Poisson2DSquareProblem")),
    "SupervisedProblem": Case(supervised, lambda p: bumps(p.rows("xy")), said="500 values of sin 3x cos 2y"),
    "InversePoisson2DSquareProblem": Case(
        inverse_poisson, lambda p: poisson_reference(p.rows("xy")), said="tutorial 7, 300 values"
    ),
    "tutorial 3, unknown speed": Case(wave_speed, lambda p: wave(p.rows("xyt")), said="300 values"),
}
INVERSE = ("InversePoisson2DSquareProblem", "tutorial 3, unknown speed")

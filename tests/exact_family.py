"""A family whose answers are exact solutions, and two problems for it."""

import dataclasses
import math

import numpy as np
import torch

from pinn_odelora.families.ranges import Ranges
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.points import Points


class ExactAnswer:
    def __init__(self, problem, error):
        self.problem, self.error = problem, error

    def __call__(self, *coordinates):
        columns = np.broadcast_arrays(*coordinates)
        names = self.problem.coords
        p = Points({name: torch.as_tensor(x.reshape(-1, 1)) for name, x in zip(names, columns, strict=True)})
        values = self.problem.reference(p).numpy()
        fields = len(self.problem.fields)
        return values.reshape(columns[0].shape if fields == 1 else (*columns[0].shape, fields))


class ExactFamily:
    """Answers by the problem's reference; counts them."""

    def __init__(self, problem, error=0.0, **ranges):
        self.problem, self.error, self.asked = problem, error, []
        self.space = Ranges.of(problem, ranges)
        self.centres = (0.0,) * len(problem.fields)

    def __call__(self, form="auto", **values):
        for interval in self.space.intervals:
            assert interval.low <= values[interval.name] <= interval.high
        self.asked.append(values)
        return ExactAnswer(dataclasses.replace(self.problem, **values), self.error)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift(Problem):
    """u_t + c u_x = κ u_xx on the line: u = exp(-κπ²t) sin π(x - ct)."""

    coords = ("x", "t")
    region = Box(x=(0, 1), t=(0, 1))
    supports = ("soft",)
    c: float = parameter(0.0, 1.0)
    kappa: float = parameter(0.1, 0.1, above=0)

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_t + self.c * f.u_x - self.kappa * f.u_xx)}

    def reference(self, p):
        return torch.exp(-self.kappa * math.pi**2 * p.t) * torch.sin(math.pi * (p.x - self.c * p.t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Problem):
    """u'' = a sin 3x + b, linear in both parameters: u = -a sin(3x)/9 + b x²/2."""

    coords = ("x",)
    region = Box(x=(0, 1))
    supports = ("soft",)
    a: float = parameter(0.0, 1.0)
    b: float = parameter(0.0, 1.0)

    def terms(self):
        return {"pde": Term(self.region, lambda f: f.u_xx - self.a * torch.sin(3 * f.x) - self.b)}

    def reference(self, p):
        return -self.a * torch.sin(3 * p.x) / 9 + self.b * p.x.square() / 2

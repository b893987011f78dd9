"""The families that are answered: an equation, the parameter that varies, its range, and what is expected.

Every solution is known, so that every answer has its error. Parameters are drawn evenly in the logarithm of a range of
more than an octave, else in the parameter itself; a wave number is drawn evenly, too.

Transfer of networks is often shown on sets that count what varies: waves of mode 2, 4, 6, 8, 10 (from low frequencies
to high ones, as Mustajab, Lyu, Rizvi and Wuttke, 2024, arXiv 2401.02810), heat with 5 to 40 modes, Poisson's equation
with a source of scale 1 to 16. A family needs a parameter that can have every value, and contains theirs; the choice
of it is ours:

* ``wave``: the wave number k of a standing wave. Between whole numbers its end x = 1 is moved, as the wave there moves.
  A change of k by a half turns it round at the far corner, so that the way from 2 to 10 is long; ``wave_octave`` goes
  from 2 to 4;
* ``heat_modes``: the initial state has n sine modes, and the next one enters by a smooth step as n grows;
* ``poisson_scale``: s is the inverse length of a source. One that a number multiplies would be answered by linearity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import pinn_odelora as po
from pinn_odelora.formulation import Problem
from problems.allen_cahn import AllenCahn
from problems.burgers import Burgers
from problems.convection import Convection
from problems.heat import Heat
from problems.kovasznay import Kovasznay
from problems.reaction import Reaction

SQUARE = po.Box(x=(0, 1), t=(0, 1))
MODES, DIFFUSIVITY, EARLY = 41, 0.02, 0.02
"""``EARLY``: at the start of a wave the network is (1 - cos kπt)/t², of order k², with the cut-off t², and of order 1
with t²/(t² + EARLY): natural gradient from scratch then takes half the time at k = 3, and arrives at all at k = 5.
"""
PARAMETERS = 64


# Equations.


def sines(p, modes: int) -> Tensor:
    """sin nπx for n = 1 … modes, (N, modes)."""
    return torch.sin(math.pi * torch.arange(1, modes + 1, dtype=torch.float64) * p.x)


def spectrum(n: float | Tensor) -> Tensor:
    """Amplitudes k⁻² of the modes k ≤ n, (MODES,) or (N, MODES); between whole n the next mode enters smoothly."""
    k = torch.arange(1, MODES + 1, dtype=torch.float64)
    y = torch.clamp(n - k + 1, 0, 1)
    return y**2 * (3 - 2 * y) / k**2


def standing(p, k: float | Tensor) -> Tensor:
    """sin kπx cos kπt, (N, 1)."""
    return torch.sin(k * math.pi * p.x) * torch.cos(k * math.pi * p.t)


def bump(p, s: float | Tensor) -> tuple[Tensor, Tensor]:
    """16 x(1-x) y(1-y) exp(-s²ρ²) with ρ the distance from (½, 2/5), and its Laplacian, each (N, 1)."""
    a, b, x, y = p.x * (1 - p.x), p.y * (1 - p.y), p.x - 0.5, p.y - 0.4
    a_x, b_y, s2 = 1 - 2 * p.x, 1 - 2 * p.y, s**2
    rho2 = x**2 + y**2
    G = 16 * torch.exp(-s2 * rho2)
    cross = -4 * s2 * (x * a_x * b + y * b_y * a)
    return a * b * G, G * (-2 * (a + b) + cross + a * b * (4 * s2**2 * rho2 - 4 * s2))


@cache
def wave() -> Problem:
    """u_tt = u_xx on [0, 1]²;  u = sin kπx and u_t = 0 at t = 0,  u = sin kπx cos kπt at x = 0 and x = 1."""
    end = lambda p, k: torch.sin(k * math.pi * torch.ones_like(p.x))
    return po.problem(
        name="Wave",
        coords="xt",
        region=SQUARE,
        k=po.parameter(2.0, 10.0, above=0),
        pde=lambda f: f.op("u", {"tt": 1, "xx": -1}),
        start=(SQUARE.face(t=0.0), lambda f, k: f.u - standing(f, k)),
        rest=(SQUARE.face(t=0.0), lambda f: f.u_t),
        ends=(SQUARE.boundary("x"), lambda f, k: f.u - standing(f, k)),
        ansatz=lambda p, k: (
            torch.sin(k * math.pi * p.x) + p.x * end(p, k) * (torch.cos(k * math.pi * p.t) - 1),
            4 * p.x * (1 - p.x) * p.t**2 / (p.t**2 + EARLY),
        ),
        enforced=("start", "rest", "ends"),
        reference=standing,
    )


@cache
def heat_modes() -> Problem:
    """u_t = κ u_xx on [0, 1]²;  u = Σ_{k ≤ n} k⁻² sin kπx at t = 0,  u = 0 at x = 0 and x = 1."""

    def initial(p, n):
        return (spectrum(n) * sines(p, MODES)).sum(dim=1, keepdim=True)

    def exact(p, n):
        rates = DIFFUSIVITY * math.pi**2 * torch.arange(1, MODES + 1, dtype=torch.float64) ** 2
        return (spectrum(n) * torch.exp(-rates * p.t) * sines(p, MODES)).sum(dim=1, keepdim=True)

    return po.problem(
        name="HeatModes",
        coords="xt",
        region=SQUARE,
        n=po.parameter(5.0, 40.0, above=0),
        pde=lambda f: f.op("u", {"t": 1, "xx": -DIFFUSIVITY}),
        start=(SQUARE.face(t=0.0), lambda f, n: f.u - initial(f, n)),
        ends=(SQUARE.boundary("x"), lambda f: f.u),
        ansatz=lambda p, n: (initial(p, n), 4 * p.x * (1 - p.x) * p.t),
        enforced=("start", "ends"),
        reference=exact,
    )


@cache
def poisson_scale() -> Problem:
    """-Δu = f on [0, 1]²,  u = 0 on its boundary, with f around (½, 2/5) over a length of 1/s."""
    box = po.Box(x=(0, 1), y=(0, 1))
    return po.problem(
        name="PoissonScale",
        coords="xy",
        region=box,
        s=po.parameter(1.0, 16.0, above=0),
        pde=lambda f, s: bump(f, s)[1] - f.lap("u"),
        sides=(box.boundary(), lambda f: f.u),
        ansatz=lambda p: (torch.zeros_like(p.x), 16 * p.x * (1 - p.x) * p.y * (1 - p.y)),
        enforced="sides",
        reference=lambda p, s: bump(p, s)[0],
    )


@cache
def heat_plane() -> Problem:
    """u_t = κ (u_xx + u_yy) on [0, 1]³, in three coordinates;  u = 0 on the sides, two modes at t = 0."""
    cube = po.Box(x=(0, 1), y=(0, 1), t=(0, 1))
    mode = lambda p, a, b: torch.sin(a * math.pi * p.x) * torch.sin(b * math.pi * p.y)
    initial = lambda p: mode(p, 1, 1) + mode(p, 2, 3) / 2
    decay = lambda p, kappa, square: torch.exp(-kappa * square * math.pi**2 * p.t)
    return po.problem(
        name="HeatPlane",
        coords="xyt",
        region=cube,
        kappa=po.parameter(0.05, 0.2, above=0),
        pde=lambda f, kappa: f.op("u", {"t": 1, "xx": -kappa, "yy": -kappa}),
        start=(cube.face(t=0.0), lambda f: f.u - initial(f)),
        sides=(cube.boundary("x", "y"), lambda f: f.u),
        ansatz=lambda p: (initial(p), 16 * p.x * (1 - p.x) * p.y * (1 - p.y) * p.t),
        enforced=("start", "sides"),
        reference=lambda p, kappa: decay(p, kappa, 2) * mode(p, 1, 1) + decay(p, kappa, 13) * mode(p, 2, 3) / 2,
    )


# Families.


class Case(NamedTuple):
    """A family: the parameter goes from ``source``, where a network is pretrained, to ``end``.

    ``scale``: in which coordinate parameters are drawn evenly. ``median``, ``worst``: relative L2 errors of the answers
    that are to be reached; ``seconds``: of CPU time for an answer, at most.
    """

    name: str
    problem: Callable[[], Problem]
    parameter: str
    source: float
    end: float
    scale: Literal["log", "linear"]
    width: int = 40
    median: float = 5e-5
    worst: float = 1e-3
    seconds: float = 0.1

    @property
    def range(self) -> tuple[float, float]:
        """Lower and upper end."""
        return min(self.source, self.end), max(self.source, self.end)

    def at(self, value: float) -> Problem:
        """The problem with this value of the parameter."""
        return replace(self.problem(), **{self.parameter: float(value)})

    def value(self, unit: float | Tensor) -> float | Tensor:
        """The parameter where the scale's coordinate, 0 at the lower end and 1 at the upper one, has this value."""
        low, high = self.range
        exp = torch.exp if isinstance(unit, Tensor) else math.exp
        return low * exp(math.log(high / low) * unit) if self.scale == "log" else low + (high - low) * unit

    def unit(self, value: float) -> float:
        """The inverse of ``value``."""
        low, high = self.range
        return math.log(value / low) / math.log(high / low) if self.scale == "log" else (value - low) / (high - low)

    def values(self, number: int = PARAMETERS) -> list[float]:
        """The parameters that are asked for: the same for every seed and every rival, the first ones if fewer."""
        generator = np.random.default_rng(list(self.name.encode()))
        return [float(self.value(unit)) for unit in generator.uniform(size=max(number, PARAMETERS))[:number]]

    def net(self, seed: int, outputs: int | None = None, inputs: int | None = None) -> po.MLP:
        """The untrained network."""
        problem, generator = self.at(self.source), torch.Generator().manual_seed(seed)
        sizes = inputs or problem.inputs, outputs or len(problem.fields)
        return po.MLP(*sizes, width=self.width, generator=generator)


STRICT = {"median": 1e-5, "worst": 2e-4}
CASES = {
    case.name: case
    for case in (
        Case("burgers", Burgers, "nu", 0.05, 0.006, "log", **STRICT),
        Case("burgers_sharp", Burgers, "nu", 0.05, 0.0032, "log"),
        Case("heat", Heat, "kappa", 0.05, 0.3, "log", **STRICT),
        Case("reaction", Reaction, "rho", 3.0, 6.0, "linear", **STRICT),
        Case("allen_cahn", AllenCahn, "d", 1e-3, 1e-4, "log"),
        Case("kovasznay", Kovasznay, "re", 20.0, 80.0, "log", seconds=0.3, **STRICT),
        Case("convection", Convection, "beta", 10.0, 20.0, "linear"),
        Case("wave", wave, "k", 2.0, 10.0, "linear"),
        Case("wave_octave", wave, "k", 2.0, 4.0, "linear"),
        Case("heat_modes", heat_modes, "n", 5.0, 40.0, "log"),
        Case("poisson_scale", poisson_scale, "s", 1.0, 16.0, "log"),
        Case("heat_plane", heat_plane, "kappa", 0.05, 0.3, "log"),
        Case("burgers_wide", Burgers, "nu", 0.05, 0.006, "log", width=128),
        Case("heat_wide", Heat, "kappa", 0.05, 0.3, "log", width=128),
    )
}
QUICK = ("burgers", "heat")

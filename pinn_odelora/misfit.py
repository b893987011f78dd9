"""Whether measured values are fitted: what an interval of a coefficient, which counts their misfit as noise, needs.

The misfits e_i = u(x_i) - u_i of a fitted solution are noise, and noise at one place says nothing of that at the next.
Those of a solution that has not reached the data are smooth: the correlation of nearest neighbours i and n(i),

    ρ = Σ e_i e_n(i) / Σ e_i²

is then near one instead of zero (von Neumann, 1941, in one dimension; Moran, 1950). For noise its standard deviation
is about √(1.5/N), since the nearest neighbour of a point's nearest neighbour is often the point itself. A field counts
as not fitted if its misfit is more than 1 % of the spread of its values and ρ is both above a half and beyond 2.5
standard deviations; or if it is no smaller than that of the mean of the values.

A term of measurements of something else, such as a slope or a flux, is judged in the same way, each component of its
residual r(u) by itself: e = r(u), and the place of the values is taken by the residual of a constant solution, which is
that of the values up to a constant where what is measured of a constant is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pinn_odelora.derivatives import AutogradField
from pinn_odelora.formulation import Problem
from pinn_odelora.points import Points
from pinn_odelora.system import System

SMALL = 0.01
"""Of the spread of the values: a misfit below it is that of the network, whatever its shape."""
FEWEST = 4
MOST = 2000
"""Points between which neighbours are looked for."""


class Misfit(NamedTuple):
    """The misfit of one measured field, in its units.

    Attributes:
        rms: the root mean square of u - u_measured.
        spread: that of the measured values about their mean.
        correlation: ρ; NaN for fewer than four points.
        fitted: whether it may be noise.
    """

    rms: float
    spread: float
    correlation: float
    fitted: bool


@torch.no_grad()
def misfits(problem: Problem, solution: Callable[[Points], Tensor], p: Points) -> dict[str, Misfit]:
    """The misfit of each field that the points have values of, ``measured_<field>``; those of weight 0 do not count.

    Args:
        problem: names coordinates and fields.
        solution: Points -> (N, fields).
        p: the measured points.
    """
    u = solution(p)
    weighted = p["weight"][:, 0] > 0 if "weight" in p else torch.ones(p.number, dtype=torch.bool, device=u.device)
    found = {}
    for i, name in enumerate(problem.fields):
        if (values := p.get(f"measured_{name}")) is not None:
            here = weighted & values[:, 0].isfinite()
            if bool(here.any()):
                found[name] = _misfit((u[:, i] - values[:, 0])[here], values[here, 0], p.rows(problem.coords)[here])
    return found


def misfits_of_term(system: System, name: str, p: Points) -> dict[str, Misfit]:
    """The misfit of each component of a term of measurements, in the units of its residual: by the name of the term, or
    ``<term>_1``, … for several components.

    Args:
        system: has the term and the fitted solution.
        name: of the term.
        p: its points.
    """
    problem = system.problem
    fields = len(problem.fields)
    with torch.no_grad():
        u = system.evaluated(p)
    mean = u[:, :fields].mean(dim=0)
    constant = lambda q: torch.cat([mean.expand(q.number, fields), system.evaluated(q)[:, fields:]], dim=1)
    with torch.enable_grad():
        e = system.engine(name).residual(p).detach()
        values = system.terms[name].rows(AutogradField(constant, p, problem.readable, problem.coords)).detach()
    x = p.rows(problem.coords)
    names = [name] if e.shape[1] == 1 else [f"{name}_{k + 1}" for k in range(e.shape[1])]
    return {key: _misfit(e[:, k], values[:, k], x) for k, key in enumerate(names)}


def _misfit(e: Tensor, values: Tensor, x: Tensor) -> Misfit:
    rms, spread = (float(y.square().mean().sqrt()) for y in (e, values - values.mean()))
    if len(e) < FEWEST:
        return Misfit(rms, spread, math.nan, True)
    rho = _correlation(e, x)
    beyond = rho > max(0.5, 2.5 * math.sqrt(1.5 / len(e)))
    return Misfit(rms, spread, rho, not (rms > SMALL * spread and beyond) and not rms >= spread > 0)


def _correlation(e: Tensor, x: Tensor) -> float:
    """ρ, with distances in units of the range of each coordinate."""
    every = max(1, -(-len(e) // MOST))
    e, x = e[::every].double(), x[::every].double()
    width = x.amax(dim=0) - x.amin(dim=0)
    x = x / torch.where(width > 0, width, 1.0)
    distance = torch.cdist(x, x).fill_diagonal_(math.inf)
    total = float(e.square().sum())
    return float((e * e[distance.argmin(dim=1)]).sum()) / total if total > 0 else 0.0

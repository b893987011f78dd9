"""How well the measurements determine a coefficient: its confidence interval at the end of a run.

Near the minimum of ½‖r‖² the coordinates θ of all that is trained (tangent coordinates of the adapter, the logarithm of
a coefficient above a bound) are θ̂ = θ - H⁻¹Jᵀr with H = JᵀJ, the Gauss–Newton method. Only the measured values are
noisy, not the equation, so the noise ε reaches the estimate through the rows J_d of the data alone:

    θ̂ - θ* = H⁻¹ J_dᵀ ε,    cov θ̂ = s² H⁻¹ (J_dᵀJ_d) H⁻¹,    s² = ‖r_d‖² / (N_d - tr J_d H⁻¹ J_dᵀ).

This is the sandwich covariance (Huber, 1967; White, 1982); s²H⁻¹ would count residuals of the equation as measurements.
tr J_d H⁻¹ J_dᵀ is how many measurements the fit has used up: the coefficients, and what the equation's weight leaves
free for the network to follow the noise with.

A run may end before its minimum. The step  -H⁻¹Jᵀr  says by how much the estimate would still move: it widens the
interval on both sides, and is reported beside it.

Assumptions: the noise is independent, of mean zero and, once divided by the square root of the given weights, of one
size; the true solution leaves no residual in the equation and lies within the adapter's reach; the system is linear
over the width of the interval. At the minimum the interval is then that of Student's t with N_d - tr degrees of
freedom, in log(x - bound) for a coefficient above a bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from scipy.special import stdtrit
from torch import Tensor, linalg

from pinn_odelora.linearisation import Coordinates, Linearisation, Sweep
from pinn_odelora.manifolds.variables import variable
from pinn_odelora.points import Points

DAMPING = 1e-14
"""On the diagonal of H, relative to its largest entry: H stays invertible where no residual sees a direction."""
DATA = "data"
COEFFICIENTS = "coefficients."


class Interval(NamedTuple):
    """An estimate with its interval, in the units of the coefficient.

    ``std`` is its standard deviation, ``ahead`` what the next Gauss–Newton step would add to it.
    """

    estimate: float
    low: float
    high: float
    std: float
    ahead: float

    @property
    def settled(self) -> bool:
        """Whether the measurements, and not the budget of the run, limit the estimate."""
        return abs(self.ahead) < self.std / 2


class Response(NamedTuple):
    """Of each coordinate: ‖row of H⁻¹J_dᵀ‖, the standard deviation under unit noise in the data, (P,).

    ``used``: tr J_d H⁻¹ J_dᵀ, the degrees of freedom that the fit takes from the data; ``step``: -H⁻¹Jᵀr, (P,).
    """

    deviation: Tensor
    used: float
    step: Tensor


def response(J: Tensor, r: Tensor, data: slice) -> Response:
    """How estimates respond to noise in the data, by the QR factor of J: H = RᵀR.

    Args:
        J: the Jacobian of all residuals, (R, P).
        r: the residuals, (R,).
        data: which of them are those of the data.
    """
    damping = math.sqrt(DAMPING * float(J.square().sum(dim=0).max()))
    R = linalg.qr(torch.cat([J, damping * torch.eye(J.shape[1], dtype=J.dtype, device=J.device)]), mode="r").R
    half = linalg.solve_triangular(R.mT, J[data].mT, upper=False)
    whole = linalg.solve_triangular(R, half, upper=True)
    step = linalg.solve_triangular(R, linalg.solve_triangular(R.mT, -(J.mT @ r)[:, None], upper=False), upper=True)
    return Response(linalg.vector_norm(whole, dim=1), float(half.square().sum()), step[:, 0])


def coefficient_intervals(
    sweep: Sweep, groups: Sequence[dict[str, Any]], points: Mapping[str, Points], level: float = 0.95
) -> dict[str, Interval]:
    """The interval of every unknown coefficient by name, with the weights as they are.

    Args:
        sweep: of the system, with the data as its term ``data``.
        groups: parameter groups of all that is trained, see ``Method.groups``.
        points: for every term; those of the data are all measurements.
        level: the probability with which the interval covers the truth.
    """
    linearised = Linearisation(sweep, points)
    variables = {group["name"]: variable({"above": None} | group, "weights") for group in groups}
    here = {name: variables[name].start() for name in (*linearised.layers, *linearised.others)}
    frames = {name: frame for name, y in here.items() if (frame := variables[name].frame(y)) is not None}
    J, r, data = Coordinates(linearised, frames).dense(), linearised.r.double(), linearised.terms[DATA]
    found = response(J, r, data)
    freedom = int((J[data] != 0).any(dim=1).sum()) - found.used
    s = float(r[data].norm()) / math.sqrt(freedom) if freedom > 0 else math.nan
    quantile = student(level, freedom)
    above = {group["name"]: group.get("above") for group in groups}
    column = {name: first for name, first in _first_columns(linearised, J.shape[1]) if name.startswith(COEFFICIENTS)}
    return {
        name.removeprefix(COEFFICIENTS): _interval(
            float(here[name]),
            above[name],
            s * float(found.deviation[i]),
            quantile,
            float(found.step[i]),
        )
        for name, i in column.items()
    }


def _first_columns(linearised: Linearisation, columns: int) -> Iterator[tuple[str, int]]:
    """Where the columns of each tensor beside the layers begin; they come last."""
    first = columns - sum(x.numel() for x in linearised.others.values())
    for name, x in linearised.others.items():
        yield name, first
        first += x.numel()


def _interval(x: float, above: float | None, deviation: float, quantile: float, step: float) -> Interval:
    """``deviation`` and ``step`` are those of log(x - above), or of x itself without a bound."""
    half = quantile * deviation + abs(step)
    if above is None:
        return Interval(x, x - half, x + half, deviation, step)
    size = x - above
    moved = lambda by: size * math.exp(min(by, 700.0))
    return Interval(x, above + moved(-half), above + moved(half), size * deviation, moved(step) - size)


def student(level: float, freedom: float) -> float:
    """The two-sided quantile of Student's t; NaN without a degree of freedom."""
    # scipy.stats.t.ppf calls the same function, but takes 0.6 s to import.
    return float(stdtrit(freedom, (1 + level) / 2)) if freedom > 0 else math.nan

"""Confidence intervals of coefficients estimated from measurements.

Let θ be the coordinates of all trained variables: tangent coordinates of the adapter, the logarithm of a coefficient
above a bound. Near the minimum of ½‖r‖² the Gauss–Newton method gives the estimate θ̂ = θ - H⁻¹Jᵀr, H = JᵀJ. Only the
measured values are noisy, not the equation, so that noise ε enters the estimate through the rows J_d of the data alone:

    θ̂ - θ* = H⁻¹ J_dᵀ ε,    cov θ̂ = s² H⁻¹ (J_dᵀJ_d) H⁻¹,    s² = ‖r_d‖² / (N_d - tr J_d H⁻¹ J_dᵀ).

This is the sandwich covariance (Huber, 1967; White, 1982); s²H⁻¹ would count residuals of the equation as measurements.
tr J_d H⁻¹ J_dᵀ is the number of degrees of freedom used by the fit: those of the coefficients, and those with which the
network, to the extent that the weight of the equation allows, fits the noise.

Several terms of measurements have each a noise of their own, and so have the fields of a file with blanks, of which
N_d counts the measured values: cov θ̂ = Σ_d s_d² H⁻¹ (J_dᵀJ_d) H⁻¹, and the number of
degrees of freedom of the sum v = Σ_d v_d is v² / Σ_d (v_d² / ν_d) (Welch, 1938; Satterthwaite, 1946).

A run may end before it reaches the minimum. The step  -H⁻¹Jᵀr  is the remaining change of the estimate: it widens the
interval on both sides, and is reported with it.

A coefficient may be one that the residuals leave open, such as one of two of which only the sum matters. What decides
it then is the damping μ of H = JᵀJ + μ, and the formula above sees no noise in it. The part of coordinate i that is so
decided is 1 - (H⁻¹JᵀJ)_ii = μ (H⁻¹)_ii, by the resolution matrix of linear inverse theory (Menke, 1989). Where that is
more than ``OPEN`` the interval is the whole line.

Assumptions: the noise is independent, with mean zero and a variance inversely proportional to the given weights; the
true solution satisfies the equation and can be represented by the adapted network; the system is linear over the width
of the interval. At the minimum the interval is then that of Student's t with N_d - tr J_d H⁻¹ J_dᵀ degrees of freedom,
in log(x - bound) for a coefficient above a bound.
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
from pinn_odelora.measurements import noises
from pinn_odelora.points import Points

DAMPING = 1e-14
"""Damping of H, relative to its largest diagonal entry, for directions that affect no residual."""
OPEN = 1e-3
"""The part of a coefficient left to the damping above which the measurements do not determine it."""
FREE = 0.1
"""Degrees of freedom below which there are none but rounding errors."""
DATA = "data"
COEFFICIENTS = "coefficients."


class Interval(NamedTuple):
    """An estimate with its confidence interval, in the units of the coefficient.

    Attributes:
        estimate: the estimate.
        low, high: the ends of the interval; NaN where the fit leaves no measured value to tell the noise by.
        std: the standard deviation of the estimate; infinite where the measurements do not determine it.
        ahead: the change of the estimate by the next Gauss–Newton step.
    """

    estimate: float
    low: float
    high: float
    std: float
    ahead: float

    @property
    def settled(self) -> bool:
        """Whether the accuracy is limited by the measurements and not by the budget of the run."""
        return math.isfinite(self.std) and abs(self.ahead) < self.std / 2


class Response(NamedTuple):
    """The response of the estimate to noise in the data.

    Attributes:
        deviation: ‖row of H⁻¹J_dᵀ‖, the standard deviation of each coordinate for unit noise in the data, (P,).
        used: tr J_d H⁻¹ J_dᵀ, the degrees of freedom used by the fit.
        step: -H⁻¹Jᵀr, the next Gauss–Newton step, (P,).
        left: the part of each coordinate that the residuals leave open, from 0 to 1, (P,).
    """

    deviation: Tensor
    used: float
    step: Tensor
    left: Tensor


def response(J: Tensor, r: Tensor, data: slice) -> Response:
    """The response of the estimate to noise in the data, by the QR factor of J: H = RᵀR.

    Args:
        J: the Jacobian of all residuals, (R, P).
        r: the residuals, (R,).
        data: the indices of those of the data.
    """
    damping = math.sqrt(DAMPING * float(J.square().sum(dim=0).max()))
    R = linalg.qr(torch.cat([J, damping * torch.eye(J.shape[1], dtype=J.dtype, device=J.device)]), mode="r").R
    half = linalg.solve_triangular(R.mT, J[data].mT, upper=False)
    whole = linalg.solve_triangular(R, half, upper=True)
    step = linalg.solve_triangular(R, linalg.solve_triangular(R.mT, -(J.mT @ r)[:, None], upper=False), upper=True)
    inverse = linalg.solve_triangular(R.mT, damping * torch.eye(len(R)).to(R), upper=False)
    left = linalg.vector_norm(inverse, dim=0).square()
    return Response(linalg.vector_norm(whole, dim=1), float(half.square().sum()), step[:, 0], left)


def coefficient_intervals(
    sweep: Sweep,
    groups: Sequence[dict[str, Any]],
    points: Mapping[str, Points],
    level: float = 0.95,
    multipliers: Mapping[str, float] | None = None,
) -> dict[str, Interval]:
    """The confidence interval of every unknown coefficient by name, at the current weights.

    Args:
        sweep: evaluates the residuals, measured ones and those of the term ``data`` among them, and their Jacobian.
        groups: parameter groups of all trained variables, see ``Method.groups``.
        points: points by term; those of the data are all measurements.
        level: the confidence level.
        multipliers: λ_k by term, 1 where not given: the estimate minimises Σ_k λ_k L_k.
    """
    linearised = Linearisation(sweep, points, multipliers=multipliers)
    variables = {group["name"]: variable({"above": None} | group, "product") for group in groups}
    here = {name: variables[name].start() for name in (*linearised.layers, *linearised.others)}
    frames = {name: frame for name, y in here.items() if (frame := variables[name].frame(y)) is not None}
    J, r = Coordinates(linearised, frames).dense(), linearised.r.double()
    measured = [name for name, term in sweep.system.terms.items() if term.measured or name == DATA]
    parts = [part for name in measured for part in noises(points[name], linearised.terms[name])]
    found = [(response(J, r, rows), rows) for rows in parts]
    variance, freedom = _noise(J, r, found)
    above = {group["name"]: group.get("above") for group in groups}
    size = {group["name"]: group.get("size") or 1.0 for group in groups}
    column = {name: first for name, first in _first_columns(linearised, J.shape[1]) if name.startswith(COEFFICIENTS)}
    return {
        name.removeprefix(COEFFICIENTS): _interval(
            float(here[name]),
            above[name],
            (math.inf if float(found[0][0].left[i]) > OPEN else math.sqrt(float(variance[i]))) * size[name],
            student(level, float(freedom[i])),
            float(found[0][0].step[i]) * size[name],
        )
        for name, i in column.items()
    }


def _noise(J: Tensor, r: Tensor, found: Sequence[tuple[Response, slice]]) -> tuple[Tensor, Tensor]:
    """The variance of every coordinate by the noise of all measurements, and its degrees of freedom, (P,) each."""
    parts, freedoms = [], []
    for to_noise, rows in found:
        freedom = int((J[rows] != 0).any(dim=1).sum()) - to_noise.used
        s = float(r[rows].norm()) / math.sqrt(freedom) if freedom > FREE else math.nan
        parts.append((s * to_noise.deviation) ** 2)
        freedoms.append(freedom)
    if len(parts) == 1:
        return parts[0], torch.full_like(parts[0], freedoms[0])
    variance = sum(parts)
    freedom = variance**2 / sum(v**2 / freedom for v, freedom in zip(parts, freedoms, strict=True))
    # Without any noise it is between the smallest and the sum, and of no account.
    return variance, torch.where(variance == 0, torch.full_like(freedom, min(freedoms)), freedom)


def _first_columns(linearised: Linearisation, columns: int) -> Iterator[tuple[str, int]]:
    """The first column of each variable other than a layer; they come last."""
    first = columns - sum(x.numel() for x in linearised.others.values())
    for name, x in linearised.others.items():
        yield name, first
        first += x.numel()


def _interval(x: float, above: float | None, deviation: float, quantile: float, step: float) -> Interval:
    """The interval; ``deviation`` and ``step`` are those of log(x - above), or of x itself without a bound."""
    half = quantile * deviation + abs(step)
    if math.isinf(deviation):
        return Interval(x, -math.inf if above is None else above, math.inf, math.inf, step)
    if above is None:
        return Interval(x, x - half, x + half, deviation, step)
    size = x - above
    moved = lambda by: size * math.exp(min(by, 700.0))
    return Interval(x, above + moved(-half), above + moved(half), size * deviation, moved(step) - size)


def student(level: float, freedom: float) -> float:
    """The two-sided quantile of Student's t; NaN without degrees of freedom.

    Args:
        level: the confidence level.
        freedom: degrees of freedom, not necessarily a whole number.
    """
    # scipy.stats.t.ppf calls the same function, but takes 0.6 s to import.
    return float(stdtrit(freedom, (1 + level) / 2)) if freedom > 0 else math.nan

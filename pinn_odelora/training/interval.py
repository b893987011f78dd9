"""How well the measurements determine a coefficient: its confidence interval at the end of a run.

Near the minimum of ½‖r‖² the coordinates θ of all that is trained (tangent coordinates of the adapter, the logarithm of
a coefficient above a bound) are θ̂ = θ - H⁻¹Jᵀr with H = JᵀJ, the Gauss–Newton method. Only the measured values are
noisy, not the equation, so the noise ε of the data rows reaches the estimate through these rows J_d alone:

    θ̂ - θ* = H⁻¹ J_dᵀ ε,    cov θ̂ = s² H⁻¹ (J_dᵀJ_d) H⁻¹,    s² = ‖r_d‖² / (N_d - tr J_d H⁻¹ J_dᵀ).

This is the sandwich covariance (Huber, 1967; White, 1982); s²H⁻¹ would count the rows of the equation as measurements.
tr J_d H⁻¹ J_dᵀ is how many measurements the fit has used up: the coefficients, and what the equation's weight leaves
free for the network to follow the noise with.

Assumptions: the noise is independent, of mean zero and, once divided by the square root of the given weights, of one
size; the true solution leaves no residual in the equation and lies within the adapter's reach; the run has ended near
the minimum, and the system is linear over the width of the interval. The interval is then that of Student's t with
N_d - tr degrees of freedom, in log(x - bound) for a coefficient above a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.linearisation import Coordinates, Linearisation, Sweep
from pinn_odelora.optim.variables import variable
from pinn_odelora.points import Points

DAMPING = 1e-14
"""On the diagonal of H, relative to its largest entry: it keeps directions that no row sees out of the inverse."""
DATA = "data"
COEFFICIENTS = "coefficients."


class Interval(NamedTuple):
    """An estimate with its interval; ``std`` is in the units of the coefficient."""

    estimate: float
    low: float
    high: float
    std: float


class Response(NamedTuple):
    """Of each coordinate: ‖row of H⁻¹J_dᵀ‖, the standard deviation that unit noise in the data rows gives it, (P,).

    ``used``: tr J_d H⁻¹ J_dᵀ, the degrees of freedom that the fit takes from the data.
    """

    deviation: Tensor
    used: float


def response(J: Tensor, data: Tensor) -> Response:
    """How estimates answer noise in the data rows, by the QR factor of J: H = RᵀR.

    Args:
        J: (R, P), all rows.
        data: (N_d, P), those of the data.
    """
    damping = math.sqrt(DAMPING * float(J.square().sum(dim=0).max()))
    R = linalg.qr(torch.cat([J, damping * torch.eye(J.shape[1], dtype=J.dtype, device=J.device)]), mode="r").R
    half = linalg.solve_triangular(R.mT, data.mT, upper=False)
    whole = linalg.solve_triangular(R, half, upper=True)
    return Response(linalg.vector_norm(whole, dim=1), float(half.square().sum()))


def coefficient_intervals(
    sweep: Sweep, groups: Sequence[dict[str, Any]], points: Mapping[str, Points], level: float = 0.95
) -> dict[str, Interval]:
    """The interval of every unknown coefficient by name, with the weights as they are.

    Args:
        sweep: of the system, with the data as its term ``data``.
        groups: parameter groups of all that is trained, see ``Method.groups``.
        points: for every term; those of the data are all that were measured.
        level: the probability that the interval is to cover the truth with.
    """
    linearised = Linearisation(sweep, points)
    variables = {group["name"]: variable({"above": None} | group, "weights") for group in groups}
    here = {name: variables[name].start() for name in (*linearised.layers, *linearised.others)}
    frames = {name: frame for name, y in here.items() if (frame := variables[name].frame(y)) is not None}
    J, rows = Coordinates(linearised, frames).dense(), linearised.terms[DATA]
    found = response(J, J[rows])
    r = linearised.r[rows].double()
    freedom = int((J[rows] != 0).any(dim=1).sum()) - found.used
    s = float(r.norm()) / math.sqrt(freedom) if freedom > 0 else math.nan
    deviations = found.deviation[-sum(x.numel() for x in linearised.others.values()) :] if linearised.others else []
    by_name = dict(zip(_numbers(linearised.others), deviations, strict=True))
    above = {group["name"]: group.get("above") for group in groups}
    return {
        name.removeprefix(COEFFICIENTS): _interval(
            float(here[name]), above[name], s * float(by_name[name, 0]), student(level, freedom)
        )
        for name in linearised.others
        if name.startswith(COEFFICIENTS)
    }


def _numbers(others: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Which number of which tensor a column belongs to."""
    return [(name, i) for name, x in others.items() for i in range(x.numel())]


def _interval(x: float, above: float | None, deviation: float, quantile: float) -> Interval:
    """``deviation`` is that of log(x - above), or of x itself without a bound."""
    if above is None:
        return Interval(x, x - quantile * deviation, x + quantile * deviation, deviation)
    size = x - above
    ends = [above + size * math.exp(min(sign * quantile * deviation, 700.0)) for sign in (-1, 1)]
    return Interval(x, *ends, size * deviation)


def student(level: float, freedom: float) -> float:
    """The two-sided quantile of Student's t, by its expansion in 1/freedom (Fisher and Cornish, 1960)."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    if not freedom > 0:
        return math.nan
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / freedom**k for k, term in enumerate(terms))

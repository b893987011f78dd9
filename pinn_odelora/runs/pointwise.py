"""What a figure shows beside the solution without a reference: residuals of the equation, and measured values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pinn_odelora.gradient import in_pieces
from pinn_odelora.points import Points
from pinn_odelora.system import System

DATA = "data"
MEASURED = "measured_"


def equation_residual(system: System) -> Callable[[Points], Tensor] | None:
    """|r| of the terms inside the region as a function of points in it, (N, components); None if there are no such.

    Terms on the whole region are taken, else the first one inside; conditions, measurements and coupled residuals,
    whose rows depend on the other points, are not.
    """
    inside = {
        name: term
        for name, term in system.terms.items()
        if term.where.interior and not term.coupled and not hasattr(term.where, "points") and name not in system.extra
    }
    whole = [name for name, term in inside.items() if term.where == system.problem.region] or [*inside][:1]
    if not whole:
        return None
    residuals = in_pieces(system)
    like = next(system.solution.parameters())

    def values(p: Points) -> Tensor:
        found = residuals(dict.fromkeys(whole, p.to(like)))
        return torch.cat([*found.values()], dim=1).abs().double().cpu()

    return values


def measured_points(system: System) -> Points | None:
    """Measured points with their values as columns ``measured_<field>``; None without any."""
    term = system.extra.get(DATA)
    points = None if term is None else getattr(term.where, "points", None)
    return points if points is not None and any(name.startswith(MEASURED) for name in points) else None

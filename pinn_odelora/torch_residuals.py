"""Residuals that were written for plain torch, as a problem.

    def burgers(net, x):                                   # x: (N, 2), columns x and t
        u = net(x)
        (g,) = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True)
        (h,) = torch.autograd.grad(g[:, 0:1], x, torch.ones_like(u), create_graph=True)
        return g[:, 1:2] + u * g[:, 0:1] - 0.02 * h[:, 0:1]

    result = po.adapt(net, residuals={"pde": burgers, "ic": start}, points={"pde": X, "ic": X0})

While a function runs, ``net`` is the solution at the points of a step, and ``torch.autograd.grad`` is answered as
``derivatives.gradients`` says. Points x may have been copied, or put together from columns: tensors of the same values
are the same points. At others, ``net(x + period)``, the solution is evaluated there, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.gradients import Derivatives, Gradients, transformed
from pinn_odelora.equation import coordinate_names, field_names
from pinn_odelora.equation import problem as equation
from pinn_odelora.errors import InputError, unknown
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Cloud, Region
from pinn_odelora.geometry.pool import Pool
from pinn_odelora.points import Points

Function = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor | Sequence[Tensor]]
"""From a network and points (N, d) to rows (N, k), or a sequence of them, that must vanish."""
Where = ArrayLike | Tensor | Region
ONE = "residual"
FEW = 32
"""Points up to which every step has all of them."""


def torch_problem(
    net: nn.Module,
    residuals: Function | Mapping[str, Function],
    points: Where | Mapping[str, Where],
    *,
    reference: Callable[[Tensor], Tensor] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Problem:
    """The problem of residuals written for plain torch, see ``pinn_odelora.torch_residuals``.

    Args:
        net: the network, (N, d) -> (N, fields), which tells how many coordinates and fields there are.
        residuals: a function of network and points, (N, d), or several by name; each is a term of the loss.
        points: where each must vanish, (N, d), of which every step takes some; by the same names for several functions.
            A region, ``po.Box(x=(0, 1), t=(0, 1))``, its face or boundary is possible, too; the columns are its
            coordinates in their order.
        reference: the solution at points (N, d), (N, fields), which errors are measured against.
        weights: w of each term, 1 if not given.

    Raises:
        InputError: if names or columns do not fit, or a function does not give a row for each point.
    """
    functions = residuals if isinstance(residuals, Mapping) else {ONE: residuals}
    if not functions:
        raise InputError("residuals is empty, but there must be one residual at least.")
    wheres = points if isinstance(points, Mapping) else dict.fromkeys(functions, points)
    for name in wheres.keys() - functions.keys():
        raise unknown("residual with points:", name, sorted(functions))
    for name in functions.keys() - wheres.keys():
        raise InputError(f"points has no entry for the residual {name}, but every residual needs points of its own.")
    for name, function in functions.items():
        if not callable(function):
            raise InputError(f"The residual {name} is {function!r}, but it must be a function of network and points.")
    rows = {name: _rows(name, where) for name, where in wheres.items()}
    coords = _coordinates(rows)
    regions = {name: _region(x, coords) for name, x in rows.items()}
    interior = next((region for region in regions.values() if region.interior), next(iter(regions.values())))
    return equation(
        coords=coords,
        fields=field_names(_outputs(net, next(iter(regions.values())), coords)),
        region=interior,
        reference=None if reference is None else lambda p: reference(p.rows(coords)),
        scales={},  # the network is the user's own, in units of its own
        weights=weights,
        name="Torch",
        **{name: Term(regions[name], partial(_evaluated, function)) for name, function in functions.items()},
    )


def _rows(name: str, where: Where) -> Tensor | Region:
    if hasattr(where, "sample"):
        return where
    rows = where.detach() if isinstance(where, Tensor) else torch.tensor(np.asarray(where, dtype=float))
    if rows.ndim != 2 or not len(rows) or not bool(torch.isfinite(rows).all()):
        raise InputError(
            f"The points of {name} have the shape {tuple(rows.shape)}; they must be finite, of shape (N, d)."
        )
    return rows


def _region(where: Tensor | Region, coords: tuple[str, ...]) -> Region:
    if not isinstance(where, Tensor):
        return where
    points = Points.from_rows(coords, where.to("cpu", torch.float64))
    return Cloud(points) if len(where) <= FEW else Pool(points)


def _coordinates(rows: Mapping[str, Tensor | Region]) -> tuple[str, ...]:
    """The names of the coordinates: those of the regions, if there are any."""
    regions = {name: _names(x) for name, x in rows.items() if not isinstance(x, Tensor)}
    if len({frozenset(names) for names in regions.values()}) > 1:
        said = "; ".join(f"{name} {', '.join(names)}" for name, names in regions.items())
        raise InputError(f"The regions of all residuals must have the same coordinates; they have: {said}.")
    numbers = {name: x.shape[1] if isinstance(x, Tensor) else len(regions[name]) for name, x in rows.items()}
    if len(set(numbers.values())) > 1:
        said = ", ".join(f"{name} {k}" for name, k in numbers.items())
        raise InputError(f"The points of all residuals must have as many columns; they have: {said}.")
    return next(iter(regions.values()), None) or coordinate_names(next(iter(numbers.values())))


def _names(region: Region) -> tuple[str, ...]:
    """The coordinates of a region."""
    p = region.sample(1, lambda n, d: torch.full((n, max(d, 1)), 0.5, dtype=torch.float64))
    normals = {f"n{name}" for name in p.normals}
    return tuple(name for name in p if name not in normals)


def _outputs(net: nn.Module, region: Region, coords: Sequence[str]) -> int:
    drawn = region.sample(2, lambda n, d: (torch.arange(n * d, dtype=torch.float64).reshape(n, d) + 1) / (n * d + 2))
    try:
        with torch.no_grad():
            values = net(drawn.rows(coords).to(next(net.parameters())))
    except (RuntimeError, StopIteration, TypeError) as error:
        raise InputError(f"The network cannot be evaluated at points of {len(coords)} columns: {error}.") from error
    return values.shape[1]


def _evaluated(function: Function, f: Field) -> Tensor:
    seen = [Derivatives(f)]

    def net(x: Tensor) -> Tensor:
        if transformed(x):
            rows = x.reshape(-1, x.shape[-1])
            return f.values(rows).reshape(*x.shape[:-1], len(f.fields))
        if not isinstance(x, Tensor) or x.shape != seen[0].x.shape:
            raise InputError(
                f"A residual evaluates the network at {tuple(getattr(x, 'shape', ()))}, but its points are "
                f"{tuple(seen[0].x.shape)}: points of another number are a residual of their own."
            )
        for known in seen:
            if known.at(x):
                return known.y
        seen.append(Derivatives(f.at(**Points.from_rows(f.coords, x))))
        seen[-1].at(x)
        return seen[-1].y

    with Gradients(seen):
        found = function(net, seen[0].x)
    columns = [found] if isinstance(found, Tensor) else [*found]
    return torch.cat([r if r.ndim == 2 else r.reshape(len(seen[0].x), -1) for r in columns], dim=1)

"""DeepXDE's conditions as terms of the loss: where each holds, and its residual.

    DirichletBC, IC       u − g                     PeriodicBC          ∂ᵏu(x) − ∂ᵏu(x + period),  k = 0, 1
    NeumannBC             ∂u/∂n − g                 OperatorBC          F(x, u)
    RobinBC               ∂u/∂n − g(x, u)           PointSetBC          u(x_i) − v_i
    Interface2DBC         u(x)·d + u(x')·d' − g     PointSetOperatorBC  F(x_i, u) − v_i

Values and normals are found once for each point and are columns of it, in double precision; DeepXDE has them in its
own, and keeps them by the address of the array.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinn_odelora.deepxde.derivatives import answered
from pinn_odelora.deepxde.regions import coordinates, where, with_columns
from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.geometry.deepxde import library

Rows = Callable[[Field], Tensor]
VALUE, PARTNER = "value", "partner_"
"""Columns of points: what a condition prescribes, and the coordinates of the point that it is compared with."""


def term(name: str, bc: Any, data: Any, fields: Sequence[str], measured: bool) -> Term:
    """The term of a condition, its weight 1/k for k columns: DeepXDE takes the mean over them.

    Args:
        name: of the condition, for messages.
        bc: the condition.
        data: of its model.
        fields: names of the network's outputs.
        measured: whether values at given points are measurements, from which unknown coefficients are found.

    Raises:
        InputError: if it holds on no point, or is of a class that we do not know.
    """
    d = library().icbc
    coords = coordinates(data.geom)
    field = lambda: _field(name, bc.component, fields)
    region = partial(where, name, bc, data)
    match bc:
        case d.IC() | d.DirichletBC():
            return Term(region(partial(_values, name, bc)), partial(_dirichlet, field()))
        case d.NeumannBC():
            columns = lambda X: {**_values(name, bc, X), **_normals(bc.geom, coords, X)}
            return Term(region(columns), partial(_neumann, field()))
        case d.RobinBC():
            return Term(region(partial(_normals, bc.geom, coords)), partial(_robin, field(), bc.func))
        case d.PeriodicBC():
            along = coords[bc.component_x] * bc.derivative_order
            return Term(region(partial(_partners, bc, coords)), partial(_periodic, field(), along))
        case d.OperatorBC():
            return Term(region(lambda X: {}), partial(_operator, bc.func))
        case d.PointSetBC() | d.PointSetOperatorBC():
            return _at_points(name, bc, coords, fields, measured)
        case d.Interface2DBC():
            return _interface(name, bc, data, coords, fields)
    raise InputError(f"{name} is a {type(bc).__name__}, which is none of DeepXDE's own conditions.")


def _field(name: str, component: int, fields: Sequence[str]) -> str:
    if not 0 <= component < len(fields):
        raise InputError(f"{name} is for component {component}, but the network has {len(fields)} outputs.")
    return fields[component]


# What its points have besides the coordinates.


def _values(name: str, bc: Any, X: NDArray) -> dict[str, NDArray]:
    """The prescribed value, from the user's function itself: DeepXDE's wrapper keeps it in its own precision."""
    return {VALUE: _column(name, inspect.unwrap(bc.func)(X), len(X))}


def _column(name: str, given: Any, n: int) -> NDArray:
    values = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, dtype=float)
    if values.ndim < 2:
        values = values.reshape(-1, 1)
    if values.shape not in ((n, 1), (1, 1)):
        raise InputError(f"The values of {name} have the shape {values.shape}, but {(n, 1)} is needed.")
    return np.broadcast_to(values, (n, 1))


def _normals(geometry: Any, coords: Sequence[str], X: NDArray) -> dict[str, NDArray]:
    normals = geometry.boundary_normal(X)
    return {f"n{c}": normals[:, i : i + 1] for i, c in enumerate(coords) if c != "t" or len(coords) == 1}


def _partners(bc: Any, coords: Sequence[str], X: NDArray) -> dict[str, NDArray]:
    others = bc.geom.periodic_point(X, bc.component_x)
    return {PARTNER + c: others[:, i : i + 1] for i, c in enumerate(coords)}


# Residuals.


def _dirichlet(u: str, f: Field) -> Tensor:
    return f.derivative(u, "") - f.points[VALUE]


def _along_normal(u: str, f: Field) -> Tensor:
    """∂u/∂n; a time coordinate has no part in it."""
    normals = {c: f.points[f"n{c}"] for c in f.coords if f"n{c}" in f.points}
    products = [n * f.derivative(u, c) for c, n in normals.items()]
    return sum(products[1:], products[0])


def _neumann(u: str, f: Field) -> Tensor:
    return _along_normal(u, f) - f.points[VALUE]


def _robin(u: str, function: Callable, f: Field) -> Tensor:
    with answered(f) as d:
        return _along_normal(u, f) - function(array(d.x), d.y)


def _periodic(u: str, along: str, f: Field) -> Tensor:
    other = f.at(**{c: f.points[PARTNER + c] for c in f.coords})
    return f.derivative(u, along) - other.derivative(u, along)


def _operator(function: Callable, f: Field) -> Tensor:
    with answered(f) as d:
        return function(d.x, d.y, array(d.x))


def array(x: Tensor) -> NDArray:
    """Points as the NumPy array that DeepXDE hands on."""
    return x.detach().cpu().numpy()


def _at_points(name: str, bc: Any, coords: Sequence[str], fields: Sequence[str], measured: bool) -> Term:
    values = bc.values.detach().cpu().numpy() if isinstance(bc.values, Tensor) else np.asarray(bc.values)
    several = isinstance(getattr(bc, "component", 0), list | tuple)
    which = [*bc.component] if several else [getattr(bc, "component", 0)]
    number = len(which)
    given = np.broadcast_to(values if values.ndim == 2 else values.reshape(-1, 1), (len(bc.points), number))
    columns = lambda X: {f"{VALUE}{k}": given[:, k : k + 1] for k in range(number)}
    region = Cloud(with_columns(coords, bc.points, columns))
    prescribed = lambda f: torch.cat([f.points[f"{VALUE}{k}"] for k in range(number)], dim=1)
    if isinstance(bc, library().icbc.PointSetOperatorBC):
        return Term(region, lambda f: _operator(bc.func, f) - prescribed(f), measured=measured)
    names = [_field(name, component, fields) for component in which]
    values_of = lambda f: torch.cat([f.derivative(u, "") for u in names], dim=1)
    return Term(region, lambda f: values_of(f) - prescribed(f), weight=1 / number, measured=measured)


def _interface(name: str, bc: Any, data: Any, coords: Sequence[str], fields: Sequence[str]) -> Term:
    """Pairs of points of two edges, evenly spaced: DeepXDE pairs them in the order of ``uniform_boundary_points``."""
    X = bc.collocation_points(data.train_x_all)
    first, second = np.split(X, [len(X) // 2])
    if not len(first) or len(first) != len(second):
        raise InputError(f"{name} has {len(X)} points on its two edges, but needs as many on the one as on the other.")
    along, beside = _directions(bc, first), _directions(bc, second)

    def columns(_: NDArray) -> Mapping[str, NDArray]:
        partners = {PARTNER + c: second[:, i : i + 1] for i, c in enumerate(coords)}
        directions = {f"d{k}": along[:, k : k + 1] for k in (0, 1)} | {f"e{k}": beside[:, k : k + 1] for k in (0, 1)}
        return {**_values(name, bc, first), **partners, **directions}

    def residual(f: Field) -> Tensor:
        p = f.points
        other = f.at(**{c: p[PARTNER + c] for c in coords})
        here = sum(f.derivative(u, "") * p[f"d{k}"] for k, u in enumerate(fields[:2]))
        there = sum(other.derivative(u, "") * p[f"e{k}"] for k, u in enumerate(fields[:2]))
        return here + there - p[VALUE]

    return Term(Cloud(with_columns(coords, first, columns)), residual)


def _directions(bc: Any, X: NDArray) -> NDArray:
    """Outward normals, or those turned clockwise by a right angle."""
    normals = bc.geom.boundary_normal(X)
    return np.hstack([normals[:, 1:2], -normals[:, :1]]) if bc.direction == "tangent" else normals

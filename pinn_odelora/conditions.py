"""Conditions in one line: functions that return a term of the loss.

    dirichlet     u = value
    neumann       k ∂u/∂n = flux
    robin         a u + b ∂u/∂n = value
    periodic      ∂^j u at both ends of a coordinate, j = 0 … order
    interface     u = v ,  k ∂u/∂n = l ∂v/∂n
    integral      ∫ q dx = value

∂/∂n is the derivative along the outward unit normal of the points: those of a face or the boundary of a box, a ball, a
combination or a mesh have one. A value is a number, or a function of the field at the points, which has their
coordinates too: ``lambda f: torch.sin(f.x)``, or ``lambda f: h * (f.u - 300)`` for a condition that is not linear. In
``po.problem`` it may take parameters as further arguments, ``lambda f, h: …``.

Every function also takes the further arguments of a ``Term``, such as ``weight=10`` or ``only="target"``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinn_odelora.derivatives.field import Field
from pinn_odelora.errors import InputError, unknown
from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Box, Cloud, Region
from pinn_odelora.points import Points
from pinn_odelora.rules import whole

__all__ = ["dirichlet", "integral", "interface", "neumann", "normal_derivative", "periodic", "robin"]

Value = float | Tensor | Callable[..., Tensor | float]
"""A number, or a function of the field at N points, and of parameters by name, to a column (N, 1) or a number."""


def dirichlet(where: Region, value: Value = 0.0, field: str = "u", **term: Any) -> Term:
    """u = value.

    Args:
        where: the region on which it holds.
        value: a number, or a function of the field at N points to a column (N, 1).
        field: name of the component.
        term: further arguments of the term.
    """
    return _term(where, partial(_dirichlet, field), {"value": value}, term)


def _dirichlet(field: str, f: Field, value: Any) -> Tensor:
    return f.derivative(field, "") - value


def neumann(where: Region, flux: Value = 0.0, field: str = "u", coefficient: Value = 1.0, **term: Any) -> Term:
    """k ∂u/∂n = flux, with the outward unit normal n.

    Args:
        where: a region whose points have a normal.
        flux: a number, or a function of the field at N points to a column (N, 1).
        field: name of the component.
        coefficient: k, as ``flux``.
        term: further arguments of the term.
    """
    return _term(where, partial(_neumann, field), {"flux": flux, "coefficient": coefficient}, term)


def _neumann(field: str, f: Field, flux: Any, coefficient: Any) -> Tensor:
    return coefficient * normal_derivative(f, field) - flux


def robin(where: Region, a: Value, b: Value, value: Value = 0.0, field: str = "u", **term: Any) -> Term:
    """a u + b ∂u/∂n = value, with the outward unit normal n: a convective boundary has a = h, b = k, value = h u∞.

    Args:
        where: a region whose points have a normal.
        a, b, value: numbers, or functions of the field at N points to a column (N, 1).
        field: name of the component.
        term: further arguments of the term.
    """
    return _term(where, partial(_robin, field), {"a": a, "b": b, "value": value}, term)


def _robin(field: str, f: Field, a: Any, b: Any, value: Any) -> Tensor:
    return a * f.derivative(field, "") + b * normal_derivative(f, field) - value


def periodic(region: Box, coordinate: str, order: int = 1, fields: Sequence[str] = (), **term: Any) -> Term:
    """Equal values, and derivatives along the coordinate up to an order, at both ends of the coordinate.

    ``periods`` of a problem makes the network periodic exactly; this is the soft form, for one that is not.

    Args:
        region: the box.
        coordinate: whose ends are the same place.
        order: 0 for the values alone; an equation of second order needs 1.
        fields: names of the components; all if empty.
        term: further arguments of the term.

    Raises:
        InputError: if the box has no such coordinate, or the order is not a whole number of at least 0.
    """
    if coordinate not in region.bounds:
        raise unknown("coordinate of the box:", coordinate, region.bounds)
    order = whole(0).check("order", order)
    low, high = region.bounds[coordinate]
    names = (fields,) if isinstance(fields, str) else tuple(fields)
    return _term(region.face(**{coordinate: low}), partial(_periodic, coordinate, high, order, names), {}, term)


def _periodic(coordinate: str, high: float, order: int, fields: Sequence[str], f: Field) -> tuple[Tensor, ...]:
    there = f.at(**{coordinate: torch.full_like(f.points[coordinate], high)})
    return tuple(
        f.derivative(name, along) - there.derivative(name, along)
        for name in fields or f.fields
        for along in (coordinate * j for j in range(order + 1))
    )


def interface(
    where: Region, fields: Sequence[str] = ("u", "v"), coefficients: Sequence[Value] = (1.0, 1.0), **term: Any
) -> Term:
    """u = v and k ∂u/∂n = l ∂v/∂n, where two media meet, each with a field of its own.

    Args:
        where: a region whose points have a normal, of either direction, such as ``box.face(x=0.5)``.
        fields: names of u and v.
        coefficients: k and l, numbers or functions of the field at N points to a column (N, 1).
        term: further arguments of the term.

    Raises:
        InputError: if there are not two fields and two coefficients.
    """
    if len(fields) != 2 or len(coefficients) != 2 or isinstance(fields, str):
        raise InputError("An interface has two fields and coefficients, as in interface(where, ('u', 'v'), (1, 5)).")
    return _term(where, partial(_interface, *fields), dict(zip(("k", "l"), coefficients, strict=True)), term)


def _interface(u: str, v: str, f: Field, k: Any, l: Any) -> tuple[Tensor, ...]:
    flux = k * normal_derivative(f, u) - l * normal_derivative(f, v)
    return f.derivative(u, "") - f.derivative(v, ""), flux


def integral(
    region: Box,
    over: str | Sequence[str] | tuple[Points, Sequence[float]],
    value: Value,
    of: str | Callable[..., Tensor] = "u",
    nodes: int = 16,
    **term: Any,
) -> Term:
    """∫ q dx = value, an integral over some coordinates at every value of the others, by Gauss–Legendre nodes.

        integral(box, over="x", value=1.0)                                     ∫ u(x, t) dx = 1 at all t
        integral(box.face(x=1.0), over="y", value=q, of=lambda f: f.nx * f.u_x)    a flux through a face

    The solution is evaluated at the nodes of every point, ``f.at(x=…)``: no rows are coupled. A mean is the integral
    divided by the volume.

    Args:
        region: a box, or a face of one, with all coordinates.
        over: the coordinates; or nodes of your own, columns (K, 1) of points, and their weights, (K,).
        value: a number, or a function of the field at N points to a column (N, 1).
        of: q, the name of a component, or a function of the field at N points to a column (N, 1).
        nodes: for each coordinate; polynomials of degree up to 2 nodes - 1 are integrated exactly.
        term: further arguments of the term.

    Raises:
        InputError: if the box has no such coordinate, it is fixed, or there is not a weight for each node.
    """
    places, weights = _nodes(region, over, whole(1).check("nodes", nodes))
    along = [name for name in places if name in region.bounds]
    at: Region = region.held(**{name: float(places[name][0]) for name in along})
    if not any(low < high for low, high in at.bounds.values()):
        at = Cloud(at.sample(1, lambda n, d: torch.empty(n, d)))  # one point, there is nothing to draw
    integrand = partial(_component, of) if isinstance(of, str) else of
    return _term(at, partial(_integral, places, weights), {"value": value}, term, {"of": integrand})


def _integral(places: Points, weights: Sequence[float], f: Field, value: Any, of: Callable[[Field], Tensor]) -> Tensor:
    like = f.points[f.coords[0]]
    node = lambda k: {name: torch.full_like(like, float(x[k])) for name, x in places.items()}
    return sum(w * of(f.at(**node(k))) for k, w in enumerate(weights)) - value


def _component(name: str, f: Field) -> Tensor:
    return f.derivative(name, "")


def _nodes(region: Box, over: Any, number: int) -> tuple[Points, list[float]]:
    """Columns (K, 1) of the coordinates that are integrated over, and weights."""
    if isinstance(over, tuple) and len(over) == 2 and isinstance(over[0], Points):
        places, weights = over[0], [float(w) for w in over[1]]
        if len(weights) != places.number:
            raise InputError(f"There are {places.number} nodes, but {len(weights)} weights; each node has one.")
        return places, weights
    x, w = np.polynomial.legendre.leggauss(number)
    columns, weights = {}, np.ones(1)
    for name in over:
        if name not in region.bounds:
            raise unknown("coordinate to integrate over:", name, region.bounds)
        low, high = region.bounds[name]
        if not low < high:
            raise InputError(f"{name} is fixed at {low:g} in this region, so there is nothing to integrate over.")
        columns = {key: np.repeat(column, number) for key, column in columns.items()}
        columns[name] = np.tile((low + high) / 2 + (high - low) / 2 * x, len(weights))
        weights = np.repeat(weights, number) * np.tile((high - low) / 2 * w, len(weights))
    return Points({name: torch.from_numpy(column)[:, None] for name, column in columns.items()}), weights.tolist()


def normal_derivative(f: Field, field: str = "u") -> Tensor:
    """∂u/∂n along the outward unit normal of the points, (N, 1).

    Args:
        f: a field at N points that have a normal.
        field: name of the component.

    Raises:
        InputError: if the points have no normal.
    """
    normal = {c: n for c, n in f.points.normals.items() if c in f.coords}
    if not normal:
        raise InputError(
            "A condition on the normal derivative needs points with a normal: those of a face, box.face(x=1.0), or of "
            "the boundary of a box, a ball, a combination of these or a mesh."
        )
    if len(normal) == 1:
        ((c, n),) = normal.items()
        return n * f.derivative(field, c)
    return f.op(field, normal)


# How values become columns.


@dataclass(frozen=True, eq=False)
class Condition:
    """The residual of a condition, a function of the field and of the parameters that its values take.

    Args:
        formula: from the field and the values by name to a column, or a tuple of columns.
        values: numbers or functions.
        functions: further functions that the formula calls with other fields.
    """

    formula: Callable[..., Tensor | tuple[Tensor, ...]]
    values: Mapping[str, Value]
    functions: Mapping[str, Callable[..., Tensor]]

    def __post_init__(self) -> None:
        # What a caller of ``inspect.signature`` is told: the parameters of all functions.
        field = inspect.Parameter("f", inspect.Parameter.POSITIONAL_ONLY)
        own = {p.name: p for f in self._called for p in _further(f)}
        ordered = sorted(own.values(), key=lambda p: p.kind)
        object.__setattr__(self, "__signature__", inspect.Signature([field, *ordered]))

    @property
    def _called(self) -> list[Callable[..., Any]]:
        return [f for f in (*self.values.values(), *self.functions.values()) if callable(f)]

    def __call__(self, f: Field, **parameters: Any) -> Tensor | tuple[Tensor, ...]:
        values = {name: _column(name, _at(x, parameters)(f)) if callable(x) else x for name, x in self.values.items()}
        return self.formula(f, **values, **{name: _at(x, parameters) for name, x in self.functions.items()})


def _term(
    where: Region,
    formula: Callable[..., Any],
    values: Mapping[str, Value],
    term: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Tensor]] | None = None,
) -> Term:
    for name, value in values.items():
        if not (callable(value) or isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)):
            raise InputError(f"{name} is {value!r}, but it must be a number or a function of the field.")
    return Term(where, Condition(formula, dict(values), dict(functions or {})), **term)


def _further(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """What a function takes besides the field, by keyword."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    _, *others = inspect.signature(function).parameters.values()
    return [p if p.kind in kinds else p.replace(kind=p.KEYWORD_ONLY) for p in others]


def _at(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Callable[[Field], Any]:
    """The function at those of the parameters that it takes."""
    if not parameters:
        return function
    taken = inspect.signature(function).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    return partial(function, **{name: x for name, x in parameters.items() if every or name in taken})


def _column(name: str, value: Any) -> Any:
    """A value as it is, unless it would be spread over more than its row.

    Raises:
        InputError: if it is neither a number nor a column.
    """
    if isinstance(value, Tensor) and value.numel() > 1 and (value.ndim != 2 or value.shape[1] != 1):
        raise InputError(
            f"{name} gives a tensor of shape {tuple(value.shape)}, but it must give a column (N, 1) or a number."
        )
    return value

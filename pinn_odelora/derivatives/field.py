"""The solution as a residual reads it: ``f.x``, ``f.u``, ``f.u_t``, ``f.u_xx``, independent of the derivative engine.

Equations are written in terms of this class alone, so that the engine can be exchanged without changing them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pinn_odelora.points import Points


class Field(ABC):
    """The fields of a solution at given points; every quantity is a column (N, 1).

    ``f.x`` is a coordinate (or an extra column of the points), ``f.u`` a field, ``f.u_xt`` its derivative along
    one-letter coordinates; at a boundary ``f.nx`` is the component of the outward unit normal along x. A field comes
    before a column of the same name. Any other name raises ``AttributeError`` with the names that exist.

    Args:
        points: evaluation points; the columns named in ``coords`` are the coordinates.
        fields: names of the solution's components, in order.
        coords: names of the coordinates, one letter each.
    """

    def __init__(self, points: Points, fields: Sequence[str], coords: Sequence[str]) -> None:
        self.points = points
        self.fields = tuple(fields)
        self.coords = tuple(coords)

    @abstractmethod
    def derivative(self, field: str, along: str) -> Tensor:
        """∂^k field / ∂along₁ … ∂along_k, (N, 1).

        Args:
            field: name of the component.
            along: coordinates by letter, in any order, ``"xxt"``; empty for the value.
        """

    @abstractmethod
    def at(self, **columns: Tensor) -> Field:
        """The same solution at the same points with some columns replaced: ``f.at(x=f.x + period)``.

        Row i of the residual may read both fields at row i, as in a soft periodic condition.

        Args:
            columns: new values of coordinates or other columns, each (N, 1).
        """

    def values(self, rows: Tensor) -> Tensor:
        """The fields at other points, by operations of torch alone, so that transforms such as ``torch.func.grad`` of a
        function that calls this are possible.

        Args:
            rows: coordinates (N', d), of one point or several.

        Returns:
            (N', fields).

        Raises:
            NotImplementedError: by fields that are not evaluated elsewhere.
        """
        raise NotImplementedError

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self.points and name not in self.fields:
            return self.points[name]
        if name[0] == "n" and name[1:] in self.coords and name not in self.fields:
            return self._without(name)
        field, _, along = name.partition("_")
        if field in self.fields and set(along) <= set(self.coords):
            return self.derivative(field, along)
        raise AttributeError(
            f"the solution has no {name!r}: fields are {', '.join(self.fields)}, columns {', '.join(self.points)}, "
            f"and a derivative is written {self._example()}"
        )

    def _example(self) -> str:
        letter = next((c for c in self.coords if len(c) == 1), None)
        return f"like {self.fields[0]}_{2 * letter}" if letter else "by coordinates of a single letter, as in u_xx"

    def _without(self, normal: str) -> Tensor:
        """A component of the normal that the points do not have: zero where they have others."""
        if not self.points.normals:
            raise AttributeError(
                f"the points of this term have no normal, {normal}; those of a face, Box.face(x=0.0), or a boundary do"
            )
        return torch.zeros_like(self.points[normal[1:]])

    def lap(self, field: str, along: Sequence[str] = ()) -> Tensor:
        """The Laplacian Σ_c ∂²field/∂c² over the named coordinates (all of them by default)."""
        return self.op(field, {2 * c: 1.0 for c in along or self.coords})

    def op(self, field: str, coefficients: Mapping[str, float | Tensor]) -> Tensor:
        """The linear operator Σ c·∂_key field, (N, 1); ``op("u", {"t": 1, "xx": -nu})`` is u_t − ν u_xx.

        A linear part written as one operator costs less than its derivatives taken one by one.

        Args:
            field: name of the component.
            coefficients: c by multi-index, numbers or columns (N, 1), which may be trained but may not depend on the
                solution. The key ``""`` stands for the field itself.
        """
        terms = [c * self.derivative(field, along) for along, c in coefficients.items()]
        return sum(terms[1:], terms[0])

"""Derivatives of any differentiable solution by nested reverse mode: ∂/∂c of Σ_i u(p_i), whose rows are independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.multiindex import word
from pinn_odelora.points import Points


class AutogradField(Field):
    """A field whose derivatives come from ``torch.autograd.grad`` of the summed column.

    Exact if row i of the solution depends on point i alone. A layer that mixes rows, such as batch normalisation,
    would give wrong derivatives without an error; ``rehearse`` rejects such networks.

    Args:
        solution: the map Points -> (N, fields).
        points: evaluation points; their coordinate columns are copied to new leaves of the graph.
        fields: names of the solution's components, in order.
        coords: names of the coordinates, one letter each.
    """

    def __init__(
        self, solution: Callable[[Points], Tensor], points: Points, fields: Sequence[str], coords: Sequence[str]
    ) -> None:
        super().__init__(points.tracked(coords), fields, coords)
        self.solution = solution
        with torch.enable_grad():
            values = solution(self.points)
            self._known = {(name, ""): values[:, i : i + 1] for i, name in enumerate(self.fields)}

    def at(self, **columns: Tensor) -> AutogradField:
        return AutogradField(self.solution, Points({**self.points, **columns}), self.fields, self.coords)

    def derivative(self, field: str, along: str) -> Tensor:
        key = (field, word(along))
        if key not in self._known:
            self._differentiate(field, key[1][:-1])
        return self._known[key]

    def _differentiate(self, field: str, along: str) -> None:
        """Differentiate a known column with respect to every coordinate, in one reverse sweep."""
        column = self.derivative(field, along)
        leaves = [self.points[c] for c in self.coords]
        if column.requires_grad:
            with torch.enable_grad():
                gradients = torch.autograd.grad(column.sum(), leaves, create_graph=True, materialize_grads=True)
        else:
            gradients = [torch.zeros_like(column) for _ in leaves]
        for c, gradient in zip(self.coords, gradients, strict=True):
            self._known.setdefault((field, word(along + c)), gradient)

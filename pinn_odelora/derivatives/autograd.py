"""Derivatives of any differentiable solution by nested reverse mode: ∂u/∂c of Σ_i u(p_i), row by row independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.multiindex import word
from pinn_odelora.points import Points


class AutogradField(Field):
    """A field whose derivatives come from ``torch.autograd.grad`` of the summed column.

    Exact when row i of the solution depends on point i alone; a layer that mixes rows (batch normalisation) would
    make it silently wrong, so such networks are not allowed here.

    Args:
        solution: the map Points -> (N, fields).
        points: where; coordinate columns become fresh leaves, so the caller's tensors are untouched.
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
        """Fill in every first derivative of one known column: one reverse sweep gives them all."""
        column = self.derivative(field, along)
        leaves = [self.points[c] for c in self.coords]
        if column.requires_grad:
            with torch.enable_grad():
                gradients = torch.autograd.grad(column.sum(), leaves, create_graph=True, materialize_grads=True)
        else:
            gradients = [torch.zeros_like(column) for _ in leaves]
        for c, gradient in zip(self.coords, gradients, strict=True):
            self._known.setdefault((field, word(along + c)), gradient)

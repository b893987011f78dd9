"""Derivatives of any differentiable solution by nested reverse mode: ∂/∂c of Σ_i u(p_i), whose rows are independent.

Layer normalisation is evaluated by its parts, since torch's own has wrong third derivatives, without an error
(pytorch/pytorch issue 175754): the gradient of a residual with second derivatives would be wrong. Attention is
evaluated by its formula, since torch's fused forms have no second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

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
            values = self._solved(self.points)
            self._known = {(name, ""): values[:, i : i + 1] for i, name in enumerate(self.fields)}

    def values(self, rows: Tensor) -> Tensor:
        return self._solved(Points.from_rows(self.coords, rows))

    def _solved(self, p: Points) -> Tensor:
        """The solution, (N, fields), by functions whose higher derivatives are right."""
        with torch.enable_grad(), _ByParts(), sdpa_kernel(SDPBackend.MATH):
            return self.solution(p)

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


def layer_norm(
    z: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """γ ⊙ (z - mean z) / √(var z + ε) + β, mean and variance over the last dimensions."""
    dim = tuple(range(-len(shape), 0))
    z = z - z.mean(dim=dim, keepdim=True)
    z = z * (z.square().mean(dim=dim, keepdim=True) + eps).rsqrt()
    z = z if weight is None else z * weight
    return z if bias is None else z + bias


class _ByParts(TorchFunctionMode):
    """Functions whose own higher derivatives are wrong, by others."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (layer_norm if func is functional.layer_norm else func)(*args, **(kwargs or {}))

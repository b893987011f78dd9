"""DeepXDE's ``dde.grad.jacobian`` and ``hessian``, answered by the derivatives of a field.

A user's ``pde(x, y)`` asks for J_ij = ∂y_i/∂x_j of the outputs y and for H_ij = ∂²y_k/∂x_i∂x_j, and of derivatives
again for higher orders. While it runs, both functions look up of which field and along which coordinates the columns of
their argument are derivatives already, and return ``f.derivative(field, along + x_j)``: the same function then works
with jets, which carry all derivatives in one forward pass, and with the structured Jacobian of implicit steps.

A column is known by where it lies in memory, so that slices such as ``y[:, 0:1]`` are known, too. The derivative of an
expression, ∂(k u_x)/∂x, is not one of the field: it is found by reverse mode, which the dry run then chooses for the
whole term.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.jet import NoJetRule
from pinn_odelora.errors import InputError
from pinn_odelora.geometry.deepxde import library


class Column(NamedTuple):
    """∂^k field / ∂along₁ … ∂along_k."""

    field: str
    along: str


class Derivatives:
    """What is known of the tensors that a user's function sees at the points of a field.

    Args:
        field: gives the derivatives.

    Attributes:
        x: coordinates, (N, d).
        y: values, (N, fields).
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.coords = field.coords
        self.x = torch.cat([field.points[c] for c in field.coords], dim=1)
        self._known: list[tuple[Tensor, list[Column]]] = []  # kept alive, so that their memory is theirs
        self.y = self._rows([Column(name, "") for name in field.fields])

    def jacobian(self, ys: Any, xs: Tensor, i: int | None = None, j: int | None = None) -> Tensor:
        """∂y_i/∂x_j, (N, 1); without j the row of all x_j, without i the column of all y_i."""
        ys = _outputs(ys)
        rows, columns = ys.shape[1], len(self.coords)
        if i is None and j is None and rows > 1 and columns > 1:
            raise InputError("dde.grad.jacobian needs i or j, where there are several outputs and several coordinates.")
        which = _chosen("i", i, rows)
        along = _chosen("j", j, columns)
        known = self._columns(ys)
        if known is None:
            return torch.cat([self._of_expression(ys[:, a : a + 1])[:, along] for a in which], dim=1)
        return self._rows([Column(known[a].field, known[a].along + self.coords[b]) for a in which for b in along])

    def hessian(self, ys: Any, xs: Tensor, component: int = 0, i: int = 0, j: int = 0) -> Tensor:
        """∂²y_component/∂x_i∂x_j, (N, 1)."""
        return self.jacobian(self.jacobian(ys, xs, i=component, j=i), xs, i=0, j=j)

    def _rows(self, columns: Sequence[Column]) -> Tensor:
        found = torch.cat([self.field.derivative(*column) for column in columns], dim=1)
        self._known.append((found, list(columns)))
        return found

    def _columns(self, ys: Tensor) -> list[Column] | None:
        """Which derivatives the columns of a tensor are; None if it is none that was given out."""
        for known, columns in self._known:
            if ys is known:
                return columns
            first = ys.storage_offset() - known.storage_offset()
            if (
                ys.ndim == 2
                and len(ys) == len(known)
                and ys.untyped_storage().data_ptr() == known.untyped_storage().data_ptr()
                and ys.stride(0) == known.stride(0)
                and (ys.shape[1] == 1 or ys.stride(1) == 1)
                and 0 <= first <= len(columns) - ys.shape[1]
            ):
                return columns[first : first + ys.shape[1]]
        return None

    def _of_expression(self, column: Tensor) -> Tensor:
        """The gradient of a column with respect to all coordinates, (N, d), by reverse mode."""
        return self._by_reverse_mode([column], None)

    def _by_reverse_mode(self, outputs: Sequence[Tensor], weights: Sequence[Tensor | None] | None) -> Tensor:
        leaves = [self.field.points[c] for c in self.coords]
        if not all(leaf.requires_grad for leaf in leaves):
            raise NoJetRule("the equation differentiates an expression, and not the solution or a derivative of it")
        weights = weights or [torch.ones_like(y) for y in outputs]
        with torch.enable_grad():
            found = torch.autograd.grad(outputs, leaves, weights, create_graph=True, materialize_grads=True)
        return torch.cat(found, dim=1)

    def gradient(self, outputs: Sequence[Tensor], weights: Sequence[Tensor | None] | None) -> Tensor:
        """Σ ∂(w · output)/∂x, (N, d), as ``torch.autograd.grad(outputs, x, weights)`` finds it."""
        known = [self._columns(y) for y in outputs]
        ones = all(w is None or _is_one(w) for w in weights or ())
        summed = weights is None and any(y.numel() > 1 for y in outputs)  # torch has an error of its own for that
        if None in known or not ones or summed:
            return self._by_reverse_mode(outputs, weights)
        columns = [column for part in known if part is not None for column in part]
        rows = [self._rows([Column(name, along + c) for c in self.coords]) for name, along in columns]
        return rows[0] if len(rows) == 1 else sum(rows[1:], rows[0])


@contextmanager
def answered(derivatives: Derivatives) -> Iterator[None]:
    """Have DeepXDE's functions, in reverse and in forward mode, and ``torch.autograd.grad`` with respect to x answered
    by these derivatives meanwhile.
    """
    gradients = library().gradients
    with (
        _replaced(gradients.gradients_reverse, derivatives),
        _replaced(gradients.gradients_forward, derivatives),
        Gradients(derivatives),
    ):
        yield


class Gradients(TorchFunctionMode):
    """A mode in which ``torch.autograd.grad`` with respect to the coordinates x is that of a field."""

    def __init__(self, derivatives: Derivatives) -> None:
        super().__init__()
        self.derivatives = derivatives

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is not torch.autograd.grad or not self._of_x(*args, **kwargs):
            return function(*args, **kwargs)
        asked = inspect.signature(torch.autograd.grad).bind(*args, **kwargs).arguments
        return (self.derivatives.gradient(_several(asked["outputs"]), _several(asked.get("grad_outputs"))),)

    def _of_x(self, outputs: Any, inputs: Any, *_: Any, **__: Any) -> bool:
        return [id(x) for x in _several(inputs)] == [id(self.derivatives.x)]


def _is_one(w: Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():  # w depends on no solution, also where it is marked as if it did
        return bool((w == 1).all())


def _several(given: Any) -> Any:
    """A sequence of tensors, also of a single one; None as it is."""
    return [given] if isinstance(given, Tensor) else given


@contextmanager
def _replaced(module: Any, derivatives: Derivatives) -> Iterator[None]:
    own: dict[str, Callable] = {name: getattr(module, name) for name in ("jacobian", "hessian")}
    module.jacobian, module.hessian = derivatives.jacobian, derivatives.hessian
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(module, name, function)


def _outputs(ys: Any) -> Tensor:
    """The outputs alone: in forward mode DeepXDE hands on (outputs, network)."""
    return ys[0] if isinstance(ys, tuple) else ys


def _chosen(name: str, index: int | None, number: int) -> list[int]:
    if index is None:
        return [*range(number)]
    if not 0 <= index < number:
        raise InputError(f"dde.grad: {name} is {index}, but it must be from 0 to {number - 1}.")
    return [index]

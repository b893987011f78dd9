"""``torch.autograd.grad`` with respect to the coordinates, answered by the derivatives of a field.

A function that was written for plain torch evaluates a network at points x and differentiates the values:

    u = net(x);  (g,) = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True);  u_x = g[:, 0:1]

While it runs, ``net`` is the solution at the points of a field, and ``torch.autograd.grad`` looks up of which field and
along which coordinates the columns of its outputs are derivatives already: the answer is ``f.derivative(field, along +
c)`` for each coordinate c. The same function then works with jets, which carry all derivatives in one forward pass, and
with the structured Jacobian of implicit steps.

A column is known by where it lies in memory, so that slices such as ``u[:, 0:1]`` are known, until it is written over.
So are columns that were chosen by indices, and the sum of known columns, since ∂(Σ_i u(x_i))/∂x_i is the derivative at
x_i. The derivative of an
expression, ∂(k u_x)/∂x, is not one of the field: it is found by reverse mode, which the dry run then chooses for the
whole term.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.jet import NoJetRule


class Column(NamedTuple):
    """∂^k field / ∂along₁ … ∂along_k."""

    field: str
    along: str


class Derivatives:
    """What is known of the tensors that a function sees at the points of a field.

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
        self._places = [self.x]
        self._given: list[tuple[Tensor, list[Column], int]] = []  # kept alive, so that their memory is theirs
        self._sums: list[tuple[Tensor, list[Column]]] = []
        self.y = self.rows([Column(name, "") for name in field.fields])

    def at(self, x: Tensor) -> bool:
        """Whether x, (N, d), are these points; if so it and its columns are coordinates from then on."""
        if place_in(x, self.x) is not None:
            return True
        same = x.shape == self.x.shape and bool((x.detach() == self.x.detach()).all())
        if same:
            self._places.append(x)
        return same

    def place(self, x: Tensor) -> slice | None:
        """Which columns of the coordinates a tensor is; one of another place in memory by its values, if that is
        unambiguous.
        """
        for rows in self._places:
            if (place := place_in(x, rows)) is not None:
                return place
        if x.shape != self.x[:, :1].shape:
            return None
        alike = [k for k in range(self.x.shape[1]) if bool((x.detach() == self.x[:, k : k + 1].detach()).all())]
        return slice(alike[0], alike[0] + 1) if len(alike) == 1 else None

    def rows(self, columns: Sequence[Column]) -> Tensor:
        """Derivatives side by side, (N, number); they are known from then on."""
        found = torch.cat([self.field.derivative(*column) for column in columns], dim=1)
        self._keep(found, columns)
        return found

    def _keep(self, found: Tensor, columns: Sequence[Column]) -> None:
        self._given.append((found, list(columns), found._version))

    def sum(self, y: Tensor, total: Tensor) -> None:
        """Remember that a scalar is the sum of y, where the columns of y are known: its gradient is theirs."""
        if (columns := self.columns(y)) is not None:
            self._sums.append((total, columns))

    def part(self, y: Tensor, index: Any, found: Tensor) -> None:
        """Remember y[index], where the columns of y are known and whole columns were chosen by indices."""
        columns = self.columns(y)
        if columns is None or y.ndim != 2 or found.ndim != 2 or len(found) != len(y) or self.columns(found) is not None:
            return
        chosen = torch.arange(y.shape[1]).expand(y.shape)[index]
        rows = torch.arange(len(y))[:, None].expand(y.shape)[index]
        if bool((chosen == chosen[:1]).all()) and bool((rows[:, 0] == torch.arange(len(y))).all()):
            self._keep(found, [columns[k] for k in chosen[0].tolist()])

    def columns(self, y: Tensor) -> list[Column] | None:
        """Which derivatives the columns of a tensor are, or those whose sum it is; None if it is none that was given
        out, nor a part of one.
        """
        for total, columns in self._sums:
            if y is total:
                return columns
        for given, columns, version in self._given:
            if given._version == version and (place := place_in(y, given)) is not None:
                return columns[place]
        return None

    def gradient(self, outputs: Sequence[Tensor], weights: Sequence[Tensor | None] | None = None) -> Tensor:
        """Σ ∂(w · output)/∂x, (N, d), as ``torch.autograd.grad(outputs, x, weights)`` finds it."""
        known = [self.columns(y) for y in outputs]
        ones = all(w is None or _is_one(w) for w in weights or ())
        several = weights is None and any(y.numel() > 1 for y in outputs)  # torch has an error of its own for that
        if None in known or not ones or several:
            return self.by_reverse_mode(outputs, weights)
        wanted = [column for part in known if part is not None for column in part]
        rows = [self.rows([Column(name, along + c) for c in self.coords]) for name, along in wanted]
        return rows[0] if len(rows) == 1 else sum(rows[1:], rows[0])

    def by_reverse_mode(self, outputs: Sequence[Tensor], weights: Sequence[Tensor | None] | None = None) -> Tensor:
        """The same of any expressions, where the points are leaves of a graph.

        Raises:
            NoJetRule: where they are not.
        """
        leaves = [self.field.points[c] for c in self.coords]
        if not all(leaf.requires_grad for leaf in leaves):
            raise NoJetRule("the equation differentiates an expression, and not the solution or a derivative of it")
        with torch.enable_grad():
            found = torch.autograd.grad(outputs, leaves, weights, create_graph=True, materialize_grads=True)
        return torch.cat(found, dim=1)


class Gradients(TorchFunctionMode):
    """A mode in which ``torch.autograd.grad`` with respect to the coordinates, or columns of them, is that of a field.

    Args:
        derivatives: those of the fields whose points are known.
    """

    def __init__(self, derivatives: Sequence[Derivatives]) -> None:
        super().__init__()
        self.derivatives = derivatives

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.autograd.grad:
            asked = inspect.signature(torch.autograd.grad).bind(*args, **kwargs).arguments
            outputs, weights = several(asked["outputs"]), asked.get("grad_outputs")
            for known in self.derivatives:
                places = [known.place(x) for x in several(asked["inputs"])]
                if all(place is not None for place in places):
                    found = known.gradient(outputs, None if weights is None else several(weights))
                    return tuple(found[:, place] for place in places)
        found = function(*args, **kwargs)
        for known in self.derivatives:
            if function in (torch.sum, Tensor.sum) and found.ndim == 0:
                known.sum(args[0], found)
            elif function is Tensor.__getitem__:
                known.part(*args, found)
        return found


def several(given: Any) -> Sequence[Tensor]:
    """A sequence of tensors, also of a single one."""
    return [given] if isinstance(given, Tensor) else list(given)


def place_in(part: Tensor, rows: Tensor) -> slice | None:
    """Which columns of (N, k) rows a tensor is, by its place in memory; None if it is no part of them."""
    if part is rows:
        return slice(0, rows.shape[1])
    first = part.storage_offset() - rows.storage_offset()
    if (
        part.ndim == 2
        and len(part) == len(rows)
        and part.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()
        and part.stride(0) == rows.stride(0)
        and (part.shape[1] == 1 or part.stride(1) == 1)
        and 0 <= first <= rows.shape[1] - part.shape[1]
    ):
        return slice(first, first + part.shape[1])
    return None


def _is_one(w: Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():  # it depends on no solution, also where it is marked as if it did
        return bool((w == 1).all())

"""``torch.autograd.grad`` with respect to the coordinates, answered by the derivatives of a field.

A function that was written for plain torch evaluates a network at points x and differentiates the values:

    u = net(x);  (g,) = torch.autograd.grad(u, x, torch.ones_like(u), create_graph=True);  u_x = g[:, 0:1]

While it runs, ``net`` is the solution at the points of a field, and ``torch.autograd.grad`` looks up of which field and
along which coordinates the columns of its outputs are derivatives already: the answer is ``f.derivative(field, along +
c)`` for each coordinate c, asked for when that column is read (``Row``): ``h[:, 0:1]`` of a second gradient h asks for
u_xx and not for u_xt. The same function then works with jets, which carry all derivatives in one forward pass, and with
the structured Jacobian of implicit steps.

A column is known by where it lies in memory, so that slices such as ``u[:, 0:1]`` are known, until it is written over.
So are columns that were chosen by indices, and the sum of known columns, since ∂(Σ_i u(x_i))/∂x_i is the derivative at
x_i. The derivative of an expression, ∂(k u_x)/∂x, is not one of the field: it is found by reverse mode, which the dry
run then chooses for the whole term.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pinn_odelora.derivatives.field import Field
from pinn_odelora.derivatives.jet import EXPRESSION, NoJetRule
from pinn_odelora.errors import InputError


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
        x = _matrix(x)
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

    def row(self, columns: Sequence[Column]) -> Tensor:
        """As ``rows``, where a column of several is found when it is read."""
        return self.rows(columns) if len(columns) == 1 else Row.of(self, columns)

    def _keep(self, found: Tensor, columns: Sequence[Column]) -> None:
        self._given.append((found, list(columns), found._version))

    def sum(self, y: Tensor, total: Tensor) -> None:
        """Remember that a scalar is the sum of y, where the columns of y are known: its gradient is theirs."""
        if (columns := self.columns(y)) is not None:
            self._sums.append((total, columns))

    def part(self, y: Tensor, index: Any, found: Tensor) -> None:
        """Remember y[index], where the columns of y are known and whole columns were chosen by indices."""
        columns = self.columns(y)
        if columns is None or y.ndim != 2 or found.ndim != 2 or self.columns(found) is not None:
            return
        chosen = whole_columns(places(y)[index], y.shape)
        if chosen is not None:
            self._keep(found, [columns[k] for k in chosen])

    def columns(self, y: Tensor) -> list[Column] | None:
        """Which derivatives the columns of a tensor are, or those whose sum it is; None if it is none that was given
        out, nor a part of one.
        """
        if isinstance(y, Row):
            return None if y.written() else y.columns
        if transformed(y):
            return None
        for total, columns in self._sums:
            if y is total:
                return columns
        y = _matrix(y)
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
        rows = [self.row([Column(name, along + c) for c in self.coords]) for name, along in wanted]
        return rows[0] if len(rows) == 1 else sum(rows[1:], rows[0])

    def by_reverse_mode(self, outputs: Sequence[Tensor], weights: Sequence[Tensor | None] | None = None) -> Tensor:
        """The same of any expressions, where the points are leaves of a graph.

        Raises:
            NoJetRule: where they are not.
        """
        leaves = [self.field.points[c] for c in self.coords]
        if not all(leaf.requires_grad for leaf in leaves):
            raise NoJetRule(EXPRESSION)
        with torch.enable_grad():
            found = torch.autograd.grad(outputs, leaves, weights, create_graph=True, materialize_grads=True)
        return torch.cat(found, dim=1)


class Row(Tensor):
    """Derivatives side by side, (N, number), each asked of the field when it is read.

    Choosing columns reads those alone, any other function reads all. What lies in its memory is one NaN.
    """

    known: Derivatives
    columns: list[Column]
    read: Tensor | None
    version: int
    parts: list[tuple[Tensor, int]]

    @classmethod
    def of(cls, known: Derivatives, columns: Sequence[Column]) -> Row:
        """Derivatives of the fields that ``known`` is for."""
        empty = known.x.detach().new_full((1, 1), torch.nan).expand(len(known.x), len(columns))
        row = empty.as_subclass(cls)
        row.known, row.columns, row.read, row.version, row.parts = known, [*columns], None, 0, []
        return row

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in SHAPES:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        if function in CHOOSING and isinstance(args[0], Row) and args[0].read is None:
            return args[0].chosen(function, *args[1:], **kwargs)
        found = function(*map(_read, args), **{name: _read(x) for name, x in kwargs.items()})
        for row in args:
            if isinstance(row, Row):
                row.check()
        return found

    def chosen(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """What a function of ``CHOOSING`` gives; of several parts each is read in its turn.

        A single part is read at once: PINA makes tensors of its own class of it, past ``__torch_function__``.
        """
        taken = function(places(self), *args, **kwargs)
        parts = [whole_columns(_matrix(part), self.shape) for part in several(taken)]
        if None in parts:
            return function(self.whole(), *args, **kwargs)
        make = self.known.rows if isinstance(taken, Tensor) else partial(Row.of, self.known)
        found = [make([self.columns[k] for k in part]) for part in parts if part is not None]
        self.parts += [(part, 0 if isinstance(part, Row) else part._version) for part in found]
        shaped = [x if x.shape == part.shape else x[:, 0] for x, part in zip(found, several(taken), strict=True)]
        return shaped[0] if isinstance(taken, Tensor) else tuple(shaped)

    def whole(self) -> Tensor:
        """All columns, read."""
        self.check()
        if self.read is None:
            self.read = self.known.rows(self.columns)
            self.version = self.read._version
        return self.read

    def check(self) -> None:
        """Check that no part is written over beside the whole.

        Raises:
            InputError: if one is.
        """
        if self.parts and self.written():
            raise InputError("A residual writes into a column of a gradient; it must write into a copy, .clone().")

    def written(self) -> bool:
        """Whether the whole or a part has been written over."""
        own = self.read is not None and self.read._version != self.version
        return own or any(x.written() if isinstance(x, Row) else x._version != version for x, version in self.parts)


CHOOSING = {
    *(Tensor.__getitem__, Tensor.select, Tensor.narrow, Tensor.index_select, Tensor.unbind),
    *(Tensor.split, Tensor.chunk, Tensor.tensor_split, Tensor.hsplit),
    *(torch.select, torch.narrow, torch.index_select, torch.unbind),
    *(torch.split, torch.chunk, torch.tensor_split, torch.hsplit),
}
"""Functions that can choose columns."""
SHAPES = {
    *(Tensor.shape.__get__, Tensor.ndim.__get__, Tensor.dtype.__get__, Tensor.device.__get__),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__),
}
"""Functions that read nothing."""


def _read(x: Any) -> Any:
    """An argument with all columns of rows in it read."""
    if isinstance(x, Row):
        return x.whole()
    return type(x)(map(_read, x)) if type(x) in (list, tuple) else x


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
            xs, outputs, weights = several(asked["inputs"]), several(asked["outputs"]), asked.get("grad_outputs")
            for known in self.derivatives:
                places = [known.place(x) for x in xs]
                if all(place is not None for place in places):
                    found = known.gradient(outputs, None if weights is None else several(weights))
                    all_of_them = slice(0, len(known.coords))
                    parts = [found if place == all_of_them else found[:, place] for place in places]
                    return tuple(part if x.ndim == 2 else part[:, 0] for part, x in zip(parts, xs, strict=True))
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


def transformed(x: Any) -> bool:
    """Whether x is what a function sees inside a transform of torch.func, ``vmap`` for instance."""
    return isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x)


def _matrix(x: Tensor) -> Tensor:
    """A vector (N,) as the column (N, 1) in the same place in memory; others as they are."""
    return x[:, None] if x.ndim == 1 else x


def places(y: Tensor) -> Tensor:
    """The numbers of the entries of a matrix, row by row."""
    return torch.arange(y.shape[0] * y.shape[1], device=y.device).reshape(y.shape)


def whole_columns(numbers: Tensor, shape: Sequence[int]) -> list[int] | None:
    """Which columns of a matrix of that shape the entries of these numbers are; None if they are no whole columns."""
    if numbers.ndim != 2 or len(numbers) != shape[0] or not numbers.numel():
        return None
    chosen = numbers[0].tolist()
    below = shape[1] * torch.arange(shape[0], device=numbers.device)[:, None]
    whole = torch.equal(numbers, numbers[:1] + below)
    return chosen if whole and max(chosen) < shape[1] else None


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

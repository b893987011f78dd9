"""Evaluation points: one named column for each coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Points(dict[str, Tensor]):
    """Named columns of shape (N, 1), ``Points(x=..., t=...)``; ``p.x`` is ``p["x"]``.

    Further columns, such as measured values or weights, are possible; they are never differentiated. At points of a
    boundary ``nx``, ``nt``, … are the components of its outward unit normal. Points are treated as immutable, so that
    values that depend on them alone can be cached with them.
    """

    def kept(self, key: object, make: Callable[[], Any]) -> Any:
        """The cached value of ``make()`` under this key; ``make`` is called the first time only."""
        known = self.__dict__.setdefault("_kept", {})
        if key not in known:
            known[key] = make()
        return known[key]

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"these points have no column {name!r}; they have {', '.join(self)}") from None

    @classmethod
    def from_rows(cls, names: Sequence[str], rows: Tensor) -> Points:
        """Points from rows (N, d) and d names."""
        return cls({name: rows[:, i : i + 1] for i, name in enumerate(names)})

    @property
    def normals(self) -> dict[str, Tensor]:
        """The components of the normal by coordinate, (N, 1) each; those that are zero everywhere may be missing."""
        return {name[1:]: x for name, x in self.items() if name[0] == "n" and name[1:] in self}

    @property
    def number(self) -> int:
        """N, the number of points."""
        return len(next(iter(self.values())))

    def rows(self, names: Sequence[str]) -> Tensor:
        """The named columns side by side, (N, len(names))."""
        return torch.cat([self[name] for name in names], dim=1)

    def pieces(self, size: int) -> list[Points]:
        """The points in order, in pieces of ``size`` points; the last may be smaller."""
        return [Points({k: x[i : i + size] for k, x in self.items()}) for i in range(0, self.number, size)]

    def part(self, rows: slice) -> Points:
        """Some of the points; the same object, with its cache, where these are all."""
        if rows == slice(0, self.number):
            return self
        return self.kept(("part", rows.start, rows.stop), lambda: Points({k: x[rows] for k, x in self.items()}))

    def tracked(self, names: Sequence[str]) -> Points:
        """The same points with the named columns as new leaves that require a gradient."""
        return Points({k: v.detach().requires_grad_() if k in names else v for k, v in self.items()})

    def to(self, *args: object, **kwargs: object) -> Points:
        """``Tensor.to`` on every column; the same object, with its cache, if nothing changes."""
        there = {k: v.to(*args, **kwargs) for k, v in self.items()}
        return self if all(there[k] is v for k, v in self.items()) else Points(there)

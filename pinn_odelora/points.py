"""Evaluation points: one named column per coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Points(dict[str, Tensor]):
    """Named columns of shape (N, 1), ``Points(x=..., t=...)``; ``p.x`` reads ``p["x"]``.

    Columns that are not coordinates (measured values, weights) ride along and are never differentiated. Nobody writes
    to points, so that what depends on them alone can be kept with them.
    """

    def kept(self, key: object, make: Callable[[], Any]) -> Any:
        """``make()``, the first time; the same thing under the same key later on."""
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
        """Split rows (N, d) into d named columns."""
        return cls({name: rows[:, i : i + 1] for i, name in enumerate(names)})

    @property
    def number(self) -> int:
        """N, the number of points."""
        return len(next(iter(self.values())))

    def rows(self, names: Sequence[str]) -> Tensor:
        """The named columns side by side, (N, len(names))."""
        return torch.cat([self[name] for name in names], dim=1)

    def pieces(self, size: int) -> list[Points]:
        """The points in their order, ``size`` at a time."""
        return [Points({k: x[i : i + size] for k, x in self.items()}) for i in range(0, self.number, size)]

    def tracked(self, names: Sequence[str]) -> Points:
        """The same points with the named columns as fresh leaves that require a gradient."""
        return Points({k: v.detach().requires_grad_() if k in names else v for k, v in self.items()})

    def to(self, *args: object, **kwargs: object) -> Points:
        """``Tensor.to`` on every column; these points, with what is kept, where that changes nothing."""
        there = {k: v.to(*args, **kwargs) for k, v in self.items()}
        return self if all(there[k] is v for k, v in self.items()) else Points(there)

"""The Jacobian in coordinates, J (R, P), as a linear operator that need not be formed.

A layer's columns are those of its frame: for each part W = L X R only the pairs (G_c L, H_c Rᵀ) are stored, so that
J z and Jᵀ w take thin products only. A layer or tensor without a frame contributes one column per entry. A variable on
a half-line contributes the column of its logarithm (``Stretch``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pinn_odelora.linearisation.blocks import Block
from pinn_odelora.linearisation.linearisation import Linearisation, parts_of
from pinn_odelora.manifolds.tangent import FactorFrame, Frame, Stretch

Frames = Mapping[str, Frame | FactorFrame | Stretch]


FORMED = 2.0**24
"""Most bytes of a block formed at once, for products with several vectors."""


class Part(NamedTuple):
    """A submatrix of J, given by ``block`` (N, k, l) or by ``columns`` (N, k).

    In products with several vectors a few rows of a block are formed at a time, because one matrix product is then
    faster than thin products for each vector.

    Attributes:
        rows, at: its rows and columns in J.
        shape: (k, l), or (k,).
    """

    rows: slice
    at: slice
    shape: tuple[int, ...]
    block: Block | None
    columns: Tensor | None

    def apply(self, z: Tensor) -> Tensor:
        """Its contribution to J z at its rows, (N,) or (N, vectors)."""
        z = z[self.at]
        if self.block is None:
            return self.columns @ z
        if z.ndim == 1:
            return self.block.apply(z.view(self.shape))
        return torch.cat([J @ z for _, J in self.formed()])

    def adjoint(self, w: Tensor) -> Tensor:
        """Its contribution to Jᵀw at its columns, (k,) or (k, vectors)."""
        w = w[self.rows]
        if self.block is None:
            return self.columns.mT @ w
        if w.ndim == 1:
            return self.block.adjoint(w).flatten()
        return sum(J.mT @ w[rows] for rows, J in self.formed())

    def formed(self) -> Iterator[tuple[slice, Tensor]]:
        """The block as matrices (rows, k l), a few of its rows at a time."""
        number = self.rows.stop - self.rows.start
        step = max(1, int(FORMED / (8 * self.shape[0] * self.shape[1])))
        for start in range(0, number, step):
            rows = slice(start, min(start + step, number))
            yield rows, self.block[rows].formed().flatten(1)

    def squares(self) -> Tensor:
        """Σ_i J_ip² for each of its columns p."""
        return self.columns.square().sum(dim=0) if self.block is None else self.block.column_squares().flatten()

    def row_squares(self) -> Tensor:
        """Σ_p J_ip² over its columns for each of its rows i."""
        return self.columns.square().sum(dim=1) if self.block is None else self.block.squares()

    @property
    def bytes(self) -> int:
        """Memory of the part."""
        return self.columns.numel() * self.columns.element_size() if self.block is None else self.block.bytes


class Coordinates:
    """J in coordinates; ``J @ z``, ``J.mT @ w`` and ``J.shape`` are those of a float64 matrix.

    z and w are single vectors, (P,) and (R,), or several, (P, k) and (R, k).

    Args:
        linearised: the linearised system.
        frames: coordinates by variable, see above.
        memory: bytes available for the parts of J; if they need more, they are recomputed for every product.
        kernel: whether the kernel J Jᵀ may be used where it is available.
        restore: resets the weights to the point of linearisation before anything is recomputed; without it they must
            not change while this object is in use.
    """

    def __init__(
        self,
        linearised: Linearisation,
        frames: Frames,
        memory: float = 2.0**29,
        kernel: bool = True,
        restore: Callable[[], None] = lambda: None,
    ) -> None:
        self.linearised = linearised
        self.frames = frames
        self.memory = memory
        self.restore = restore
        self.has_kernel = kernel and not frames
        self.shape = (linearised.rows, linearised.width(self._lowrank))
        self.dtype = linearised.r.dtype
        self._kept: list[Part] | None = None

    @property
    def _lowrank(self) -> dict[str, Frame | FactorFrame]:
        like = self.linearised.r
        return {name: frame.to(like) for name, frame in self.frames.items() if not isinstance(frame, Stretch)}

    def dense(self) -> Tensor:
        """The matrix, (R, P), float64."""
        self.restore()
        J = self.linearised.columns(self._lowrank).double()
        start = self.shape[1] - sum(x.numel() for x in self.linearised.others.values())
        for name, x in self.linearised.others.items():
            if name in self.frames:
                J[:, start : start + x.numel()] *= self.frames[name].size.flatten()
            start += x.numel()
        return J

    def kernel(self) -> Tensor:
        """J Jᵀ of full weights, (R, R), without forming J."""
        self.restore()
        return self.linearised.kernel().double()

    def __matmul__(self, z: Tensor) -> Tensor:
        out = self.linearised.r.new_zeros(len(self.linearised.r), *z.shape[1:])
        z = z.to(out)
        for part in self.parts():
            out[part.rows] += part.apply(z)
        return out.double()

    @property
    def mT(self) -> Transposed:
        """Jᵀ."""
        return Transposed(self)

    def squares(self) -> Tensor:
        """The diagonal of JᵀJ, (P,)."""
        return self._summed(Part.squares)

    def diagonal(self) -> Tensor:
        """The diagonal of J Jᵀ, (R,)."""
        out = torch.zeros_like(self.linearised.r)
        for part in self.parts():
            out[part.rows] += part.row_squares()
        return out.double()

    def _summed(self, of: Callable[[Part], Tensor], vectors: tuple[int, ...] = ()) -> Tensor:
        out = self.linearised.r.new_zeros(self.shape[1], *vectors)
        for part in self.parts():
            out[part.at] += of(part)
        return out.double()

    def parts(self) -> Iterable[Part]:
        """The parts of J, stored if the memory allows, else recomputed each time."""
        if self._kept is not None:
            return self._kept
        kept, spent = [], 0
        for part in self._found():
            spent += part.bytes
            if spent > self.memory:
                return self._found()
            kept.append(part)
        self._kept = kept
        return kept

    def _found(self) -> Iterator[Part]:
        self.restore()
        frames = self._lowrank
        for group in self.linearised.groups():
            at = 0
            for name, block in group.blocks.items():
                for shape, part in parts_of(block, self.linearised.layers[name].weight, frames.get(name)):
                    size = shape[0] * shape[1]
                    yield Part(group.rows, slice(at, at + size), shape, part, None)
                    at += size
            for name, columns in group.columns.items():
                if name in self.frames:
                    columns = columns * self.frames[name].size.flatten().to(columns)
                yield Part(group.rows, slice(at, at + columns.shape[1]), (columns.shape[1],), None, columns)
                at += columns.shape[1]


class Transposed(NamedTuple):
    """Jᵀ; ``Jᵀ @ w`` is (P,) or (P, k)."""

    J: Coordinates

    def __matmul__(self, w: Tensor) -> Tensor:
        w = w.to(self.J.linearised.r)
        return self.J._summed(lambda part: part.adjoint(w), w.shape[1:])

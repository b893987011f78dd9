"""The residual system r(y) linearised at the current weights:  r(y + δ) = r + J δ + O(‖δ‖²),  L = ½‖r‖².

J has one row for each (term, component, point) and is stored as one block per layer, from which products, columns,
Gram matrix and kernel follow without automatic differentiation. The neural tangent kernel (Jacot, Gabriel and Hongler,
2018, arXiv 1806.07572) of the weights is J Jᵀ = Σ_l Σ_cc' (G_c G_c'ᵀ) ∘ (H_c H_c'ᵀ).

Directions δ are dicts by name: (m, n) for each layer, and the tensor's own shape for every other variable. Columns are
ordered by layer, then by the other variables; a layer with a frame contributes tangent coordinates, see ``Frame``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pinn_odelora.errors import InputError, unknown
from pinn_odelora.linalg.gram import gram
from pinn_odelora.linearisation.blocks import Block
from pinn_odelora.linearisation.sweep import BATCH, Group, Sweep
from pinn_odelora.manifolds.tangent import FactorFrame, Frame
from pinn_odelora.points import Points

Direction = dict[str, Tensor]


class Linearisation:
    """The linearisation of a residual system at the current weights.

    Args:
        sweep: evaluates the residuals of a system and their Jacobian.
        points: points by term.
        memory: bytes available for the pairs. If they need more, they are recomputed in every operation, chunk by
            chunk; the weights must then not change while this object is in use.
        chunk: points per sweep; None for a number that fits ``memory``.
        multipliers: λ_k by term, 1 where not given: the rows of term k are times √λ_k, so that ½‖r‖² = Σ_k λ_k L_k.
        further: rows that belong to no points, such as those of a weight decay; they come last.

    Raises:
        InputError: if memory or chunk is not positive.
    """

    def __init__(
        self,
        sweep: Sweep,
        points: Mapping[str, Points],
        *,
        memory: float = 2**30,
        chunk: int | None = None,
        multipliers: Mapping[str, float] | None = None,
        further: Sequence[Group] = (),
    ) -> None:
        if not memory > 0 or (chunk is not None and chunk < 1):
            raise InputError(f"memory is {memory!r} and chunk {chunk!r}, but both must be positive.")
        self.layers = sweep.variables.layers
        self.others = sweep.variables.others
        self.points = {name: points[name] for name in sweep.system.terms}
        self.memory = memory
        self.chunk = chunk
        self.further = further
        self._sweep = sweep
        self.multipliers = dict(multipliers or {})
        self._kept: list[Group] | None = None
        self._passed: dict[str, Direction] = {}
        self.terms: dict[str, slice] = {}
        self.r = self._first_pass()

    def _first_pass(self) -> Tensor:
        """Sweep all points and return r, (R,); store the groups if they fit, else only their gradient."""
        kept: list[Group] = []
        spent, values = 0, []
        for group in self._swept():
            values.append((group.rows, group.r))
            kept.append(group)
            spent += group.bytes
            if spent > self.memory:
                for passed in kept:
                    so_far = self._passed.get(passed.term, {})
                    self._passed[passed.term] = _added(so_far, _adjoint(passed, passed.r))
                kept.clear()
        self._kept = kept if spent <= self.memory else None
        r = values[0][1].new_empty(max(rows.stop for rows, _ in values))
        for rows, part in values:
            r[rows] = part
        return r

    def _swept(self) -> Iterator[Group]:
        first = 0
        for name, p in self.points.items():
            size = self._chunk(name, p)
            for start in range(0, p.number, size):
                part = Points({key: x[start : start + size] for key, x in p.items()})
                groups = self._sweep(name, part, p.number, first, start)
                components = len(groups)
                while groups:
                    yield _times(groups.pop(0), math.sqrt(self.multipliers.get(name, 1.0)))
            self.terms[name] = slice(first, first + components * p.number)
            first = self.terms[name].stop
        for group in self.further:
            self.terms[group.term] = slice(first, first + len(group.r))
            first = self.terms[group.term].stop
            yield replace(group, rows=self.terms[group.term])

    def _chunk(self, name: str, p: Points) -> int:
        """Points per sweep: all, unless their graph would exceed the memory; coupled points are never split."""
        if self._sweep.system.terms[name].coupled:
            return p.number
        if not self._sweep.paired(name):
            return min(self.chunk or BATCH, BATCH)
        # A sweep holds about 40 values per point and unit, and by reverse mode 10 for each product with a weight.
        values = max(40, 10 * self._sweep.system.engine(name).by_rows.products)
        width = sum(sum(layer.weight.shape) for layer in self.layers.values()) or 1
        return self.chunk or max(64, min(p.number, int(self.memory / (8 * values * width))))

    def groups(self) -> Iterable[Group]:
        """Residuals and Jacobian, group by group."""
        return self._swept() if self._kept is None else self._kept

    def reweighted(self, multipliers: Mapping[str, float]) -> Linearisation:
        """The same linearisation with other λ_k, without a sweep; terms that are not given keep theirs."""
        other = copy.copy(self)
        other.multipliers = self.multipliers | dict(multipliers)
        root = {name: math.sqrt(other.multipliers[name] / self.multipliers.get(name, 1.0)) for name in multipliers}
        if self._kept is not None:
            other._kept = [_times(group, root.get(group.term, 1.0)) for group in self._kept]
        other._passed = {
            term: {name: root.get(term, 1.0) ** 2 * x for name, x in passed.items()}
            for term, passed in self._passed.items()
        }
        other.r = self.r.clone()
        for name, c in root.items():
            other.r[self.terms[name]] *= c
        return other

    @property
    def rows(self) -> int:
        """R, the number of residuals."""
        return len(self.r)

    @property
    def loss(self) -> Tensor:
        """½‖r‖²."""
        return self.r.square().sum() / 2

    def gradient(self) -> Direction:
        """∂L/∂y = Jᵀr, by variable."""
        if self._kept is not None:
            return self.rmatvec(self.r)
        total: Direction = {}
        for passed in self._passed.values():
            total = _added(total, passed)
        return self._shaped(total)

    def term_gradients(self) -> dict[str, Direction]:
        """J_kᵀ r_k of each term k, by variable: they sum to the gradient."""
        found = dict(self._passed)
        if self._kept is not None:
            for group in self._kept:
                found[group.term] = _added(found.get(group.term, {}), _adjoint(group, group.r))
        return {term: self._shaped(total) for term, total in found.items()}

    def matvec(self, direction: Mapping[str, Tensor]) -> Tensor:
        """J δ, (R,).

        Args:
            direction: δ by variable; those left out do not move.

        Raises:
            InputError: for an unknown variable or a wrong shape.
        """
        for name, x in direction.items():
            self._check_shape(name, x)
        out = torch.zeros_like(self.r)
        for group in self.groups():
            for name, block in group.blocks.items():
                if name in direction:
                    out[group.rows] += block.apply(direction[name])
            for name, columns in group.columns.items():
                if name in direction:
                    out[group.rows] += columns @ direction[name].flatten()
        return out

    def _check_shape(self, name: str, x: Tensor) -> None:
        if name not in self.layers and name not in self.others:
            raise unknown("variable", name, (*self.layers, *self.others))
        shape = (self.layers[name].weight if name in self.layers else self.others[name]).shape
        if x.shape != shape:
            raise InputError(f"The direction of {name} has shape {tuple(x.shape)}, but it must be {tuple(shape)}.")

    def rmatvec(self, w: Tensor) -> Direction:
        """Jᵀ w by variable, for w (R,).

        Raises:
            InputError: if w has another shape.
        """
        if w.shape != self.r.shape:
            raise InputError(f"w has shape {tuple(w.shape)}, but there are {self.rows} residuals, so ({self.rows},).")
        total: Direction = {}
        for group in self.groups():
            total = _added(total, _adjoint(group, w[group.rows]))
        return self._shaped(total)

    def _shaped(self, total: Direction) -> Direction:
        return {name: x.view(self.others[name].shape) if name in self.others else x for name, x in total.items()}

    def columns(self, frames: Mapping[str, Frame | FactorFrame] | None = None) -> Tensor:
        """J in coordinates, (R, P), stored column by column.

        Args:
            frames: coordinates by layer; a layer without a frame contributes its full weight.
        """
        out = self.r.new_empty(self.width(frames), self.rows)
        for group in self.groups():
            self._write(group, frames or {}, out[:, group.rows])
        return out.mT

    def width(self, frames: Mapping[str, Frame | FactorFrame] | None = None) -> int:
        """P, the number of columns of J in the coordinates of the frames."""
        frames = frames or {}
        own = sum(frames[n].dimension if n in frames else layer.weight.numel() for n, layer in self.layers.items())
        return own + sum(x.numel() for x in self.others.values())

    def _write(self, group: Group, frames: Mapping[str, Frame | FactorFrame], out: Tensor) -> None:
        """Write the rows of a group to ``out``, (P, N)."""
        at = 0
        for name, block in group.blocks.items():
            for (m, n), part in parts_of(block, self.layers[name].weight, frames.get(name)):
                part.write(out[at : at + m * n].unflatten(0, (m, n)))
                at += m * n
        for columns in group.columns.values():
            out[at : at + columns.shape[1]] = columns.mT
            at += columns.shape[1]

    def gram(self, frames: Mapping[str, Frame | FactorFrame] | None = None) -> Tensor:
        """JᵀJ in the coordinates of the frames, (P, P); J is formed as a whole only if it fits the memory."""
        if self._kept is not None and self.rows * self.width(frames) * self.r.element_size() <= self.memory:
            return gram(self.columns(frames))
        total = self.r.new_zeros(self.width(frames), self.width(frames))
        for group in self.groups():
            part = self.r.new_empty(len(total), len(group.r))
            self._write(group, frames or {}, part)
            total += gram(part.mT)
        return total

    def kernel(self, term: str | None = None, other: str | None = None) -> Tensor:
        """J Jᵀ of full weights, (R, R), or its block for two terms, without forming J.

        Args:
            term: name of the term of the rows; None for all.
            other: name of the term of the columns; None for the same as ``term``.

        Raises:
            InputError: for an unknown term.
        """
        for name in {term, other} - {None}:
            if name not in self.terms:
                raise unknown("term", name, self.terms)
        rows = slice(0, self.rows) if term is None else self.terms[term]
        columns = rows if other is None and term is None else self.terms[other or term]
        out = self.r.new_empty(rows.stop - rows.start, columns.stop - columns.start)
        for portion in self._portions(term):
            for b in self._of(other or term):
                for a in portion:
                    out[_shift(a.rows, rows), _shift(b.rows, columns)] = _kernel(a, b)
        return out

    def _portions(self, term: str | None) -> Iterator[list[Group]]:
        """The groups of a term in portions of half the memory; the others are swept once per portion."""
        portion: list[Group] = []
        for group in self._of(term):
            if portion and sum(x.bytes for x in (*portion, group)) > self.memory / 2:
                yield portion
                portion = []
            portion.append(group)
        yield portion

    def _of(self, term: str | None) -> Iterable[Group]:
        return (group for group in self.groups() if term in (None, group.term))

    def diagonal(self) -> Tensor:
        """The diagonal of J Jᵀ, (R,): ‖∂r_i/∂y‖² for every residual."""
        out = torch.zeros_like(self.r)
        for group in self.groups():
            out[group.rows] = sum(block.squares() for block in group.blocks.values())
            out[group.rows] += sum(columns.square().sum(dim=1) for columns in group.columns.values())
        return out


def parts_of(block: Block, W: Tensor, frame: Frame | FactorFrame | None) -> list[tuple[tuple[int, int], Block]]:
    """The Jacobian in a layer's coordinates, as parts with their shapes.

    Args:
        block: the Jacobian with respect to W.
        W: the weight, (m, n).
        frame: its coordinates; None for the entries of W.
    """
    (m, n) = W.shape
    if frame is None:
        return [((m, n), block)]
    parts = []
    for L, R, transposed in frame.restrictions:
        shape = (m if L is None else L.shape[1], n if R is None else R.shape[0])
        part = block.restrict(L, R)
        parts.append((shape[::-1], part.transposed()) if transposed else (shape, part))
    return parts


def _times(group: Group, c: float) -> Group:
    return group if c == 1 else group.scaled(c)


def _adjoint(group: Group, w: Tensor) -> Direction:
    """The group's contribution to Jᵀw; w at its rows, (N,)."""
    blocks = {name: block.adjoint(w) for name, block in group.blocks.items()}
    return blocks | {name: w @ columns for name, columns in group.columns.items()}


def _added(total: Direction, part: Direction) -> Direction:
    return {name: total[name] + x if name in total else x for name, x in part.items()}


def _shift(rows: slice, origin: slice) -> slice:
    return slice(rows.start - origin.start, rows.stop - origin.start)


def _kernel(a: Group, b: Group) -> Tensor:
    total = sum(block.kernel(b.blocks[name]) for name, block in a.blocks.items())
    return total + sum(columns @ b.columns[name].mT for name, columns in a.columns.items())

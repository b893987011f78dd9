"""The linearised model as a network and a residual system, for the flows, integrators and the loop of every run.

A point is the number i of a row, and the network that maps it to f_i(δ) has the matrices δ_l for its only weights:

    N(i) = f_i(W0) + Σ_l ⟨J_l[i], δ_l⟩ ,        r_i = N(i) − y_i        for squared errors.

Factors are put beside δ_l as beside any weight, W = W_base + s (B A − B₀A₀). With the base s·B₀A₀ the weight *is*
δ_l = s·B_l A_l, so that δ starts at s·B₀A₀ and there is nothing else in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pinn_odelora.derivatives.rehearsal import Engine
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Cloud, Region
from pinn_odelora.linearisation import Sweep
from pinn_odelora.linearisation.blocks import Block, Formed, Group, Outer, Pair
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.ntk.losses import SquaredError
from pinn_odelora.ntk.model import Linearised
from pinn_odelora.points import Points
from pinn_odelora.system import Loss, Solution, System

LINEAR = "the outputs are affine in the weights, whose Jacobian is known"


class RowNetwork(nn.Module):
    """Row numbers (N, 1) -> f of these rows (N, 1); its linear layers have the names of the adapted ones, weights δ_l.

    Args:
        model: the linearised model.
    """

    def __init__(self, model: Linearised) -> None:
        super().__init__()
        self.model = model
        for name, (m, n) in model.shapes.items():
            with torch.random.fork_rng(devices=()):  # torch initialises the weight first, from the global generator
                layer = nn.Linear(n, m, bias=False, dtype=torch.float64)
            layer.weight.data.zero_()
            _put(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach()[:, 0].round().long()
        out = self.model.start[rows]
        for group in self.model.groups:
            inside = ((rows >= group.rows.start) & (rows < group.rows.stop)).nonzero()[:, 0]
            if len(inside):
                chosen = _contiguous(rows[inside] - group.rows.start)
                parts = [block[chosen].apply(self._weight(name)) for name, block in group.blocks.items()]
                out = out.index_add(0, inside, sum(parts[1:], parts[0]))
        return out[:, None]

    def _weight(self, name: str) -> Tensor:
        return self.get_submodule(name).weight

    def delta(self) -> dict[str, Tensor]:
        """δ by layer, (m, n), detached."""
        return {name: self._weight(name).detach().clone() for name in self.model.shapes}


def _contiguous(rows: Tensor) -> Tensor | slice:
    """Rows in a sequence as a slice, which copies nothing."""
    first = int(rows[0])
    if torch.equal(rows, torch.arange(first, first + len(rows))):
        return slice(first, first + len(rows))
    return rows


def _put(root: nn.Module, name: str, layer: nn.Module) -> None:
    """At a dotted name, with empty modules on the way."""
    *way, last = name.split(".")
    for part in way:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, layer)


@dataclass(frozen=True, kw_only=True)
class LinearisedProblem(Problem):
    """f_i(δ) − y_i = 0 for the rows of a linearised model, term by term of the loss that it came from.

    L = (c/2) ‖f − y‖² for a squared error; the loss of other models is that of ``ConvexSystem``.

    Args:
        model: the linearised model.
    """

    coords: ClassVar[tuple[str, ...]] = ("i",)
    supports: ClassVar[tuple[str, ...]] = ("soft",)
    has_source: ClassVar[bool] = False

    model: Linearised

    @property
    def region(self) -> Region:
        """All rows."""
        return Cloud(self._points(slice(0, self.model.rows)), interior=True)

    def _points(self, rows: slice) -> Points:
        squared = isinstance(self.model.loss, SquaredError)
        y = self.model.loss.y[rows] if squared else torch.zeros(rows.stop - rows.start, dtype=torch.float64)
        return Points(i=torch.arange(rows.start, rows.stop, dtype=torch.float64)[:, None], y=y[:, None])

    def terms(self) -> dict[str, Term]:
        c = self.model.loss.c if isinstance(self.model.loss, SquaredError) else 1.0
        return {
            name: Term(Cloud(self._points(rows)), lambda f: f.u - f.y, weight=c * (rows.stop - rows.start) / 2)
            for name, rows in self.model.terms.items()
        }


class ConvexSystem(System):
    """The rows of a linearised model; the loss of its outputs, a sum of squares or any other convex one.

    Args:
        model: the linearised model.
        net: its network.
    """

    def __init__(self, model: Linearised, net: RowNetwork) -> None:
        problem = LinearisedProblem(model=model)
        super().__init__(problem, Solution(problem, net), derivatives="autograd")
        self.model = model

    def engine(self, name: str) -> Engine:
        """Without a rehearsal: there are no derivatives, and row i is that of point i."""
        if name not in self._engines:
            fields, coords = self.problem.fields, self.problem.coords
            self._engines[name] = Engine(self.solution, fields, coords, self.terms[name].rows, None, LINEAR)
        return self._engines[name]

    def loss_of(self, residuals: Mapping[str, Tensor]) -> Loss:
        if isinstance(self.model.loss, SquaredError):
            return super().loss_of(residuals)
        ((name, f),) = residuals.items()
        value = self.model.loss.value(f[:, 0])
        return Loss(value, {name: value})


class KnownSweep(Sweep):
    """The Jacobian of a linearised model, which is there already: only the residuals are evaluated.

    Args:
        system: of the linearised model, with a squared error.
        layers: δ_l by name.
    """

    def __init__(self, system: ConvexSystem, layers: Mapping[str, nn.Linear | LowRankLinear]) -> None:
        super().__init__(system, layers)
        self.model = system.model

    def paired(self, name: str) -> bool:
        return True

    def _groups(self, name: str, p: Points, number: int, first: int, start: int, paired: bool) -> list[Group]:
        r = self.system.weighted(name, self.system.residuals({name: p})[name], number)[:, 0].detach()
        here = self.model.terms[name].start + start
        root = self.model.loss.c**0.5
        rows = range(here, here + len(r))
        blocks = {layer: self._rows(layer, rows, root) for layer in self.variables.layers}
        return [Group(name, slice(first + start, first + start + len(r)), r, blocks, {})]

    def _rows(self, layer: str, rows: range, root: float) -> Block:
        parts = []
        for group in self.model.groups:
            a, b = max(rows.start, group.rows.start), min(rows.stop, group.rows.stop)
            if a < b:
                whole = slice(a - group.rows.start, b - group.rows.start)
                parts.append(group.blocks[layer][whole])
        block = _joined(parts)
        return block if root == 1 else block.scaled(root)


def _joined(parts: list[Block]) -> Block:
    """Rows one after the other; several groups of one term are the components of its residual, or chunks."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, Outer) and len(part.pairs) == len(parts[0].pairs) for part in parts):
        pairs = zip(*(part.pairs for part in parts), strict=True)
        return Outer([Pair(*(torch.cat(x) for x in zip(*of, strict=True))) for of in pairs])
    return Formed(torch.cat([part.formed() for part in parts]))

"""The residuals of a system with their Jacobian, by one evaluation and one reverse sweep.

The residuals of term k are √(2 w_k / N_k) · r_k(x_i), component by component, so that the loss is ½‖r‖². Their
evaluation, by jets or by nested reverse mode, records every product with the weight of a linear layer on a tape
(``tape``). One reverse sweep of the sum of a component's residuals then gives G = ∂(Σ_i r_i)/∂Z for all of these
products Z and all points at once, because residual i depends on evaluation i alone. No gradient of a weight is formed.
With jets, trained tensors that multiply or are added are on the tape too; any other variable takes a sweep for each of
its numbers.

With coupled points, if a weight is also used outside a linear layer, or where nested reverse mode would take a sweep
for each of more than ``BATCH`` numbers, the Jacobian is formed row by row, ``BATCH`` rows at a time. The two are
compared at a few points to decide which applies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pinn_odelora.derivatives.jet import Tape
from pinn_odelora.distributed import Processes
from pinn_odelora.errors import InputError
from pinn_odelora.linearisation.blocks import Block, Formed, Group, Outer, Pair
from pinn_odelora.linearisation.tape import Place, places
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.points import Points
from pinn_odelora.system import System

Linear = nn.Linear | LowRankLinear
BATCH = 32
"""Residuals differentiated individually in one batch."""


@dataclass(frozen=True, eq=False)
class Variables:
    """The variables of the Jacobian.

    Args:
        layers: linear layers by name, whose effective weights are variables.
        others: further variables by name, such as biases and coefficients of the equation.

    Raises:
        InputError: as ``Sweep``.
    """

    layers: Mapping[str, Linear]
    others: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, x in self.others.items():
            if not (x.is_leaf and x.is_floating_point()):
                raise InputError(f"{name} is not a parameter, but variables must be leaves of the graph.")
        for name, layer in self.layers.items():
            if isinstance(layer, nn.Linear) and "weight" not in dict(layer.named_parameters(recurse=False)):
                raise InputError(f"The weight of layer {name} is computed by a parametrization; remove that first.")
        for name in self.layers.keys() & self.others.keys():
            raise InputError(f"{name} is the name of a layer and of another variable, but names must be unique.")
        tensors = [*(x.weight for x in self.layers.values() if isinstance(x, nn.Linear)), *self.others.values()]
        if len({id(x) for x in tensors}) < len(tensors):
            raise InputError("One tensor is given as two variables, but variables must be distinct.")

    @contextmanager
    def alive(self) -> Iterator[dict[str, Tensor]]:
        """Make the effective weights leaves of the graph inside the context.

        Yields:
            W (m, n) of each layer by name.

        Raises:
            InputError: if the change of a weight is no product of factors.
        """
        plain = {name: layer.weight for name, layer in self.layers.items() if isinstance(layer, nn.Linear)}
        before = [(x, x.requires_grad) for x in (*plain.values(), *self.others.values())]
        merged = {name: layer for name, layer in self.layers.items() if isinstance(layer, LowRankLinear)}
        for name, layer in merged.items():
            if not layer.is_product:
                raise InputError(f"The rows of layer {name} are rescaled (DoRA), of which there is no linearisation.")
        for layer in merged.values():
            layer._formed = layer.weight.detach().requires_grad_()
        for x, _ in before:
            x.requires_grad_(True)
        try:
            with torch.enable_grad():
                yield {name: merged[name]._formed if name in merged else plain[name] for name in self.layers}
        finally:
            for layer in merged.values():
                layer._formed = None
            for x, required in before:
                x.requires_grad_(required)


class Sweep:
    """Residuals and Jacobian of a system at given points; made once, used at every step.

    Args:
        system: the residual system.
        layers: linear layers by name, whose effective weights are variables.
        others: further variables by name, such as biases and coefficients of the equation.

    Raises:
        InputError: if one of the others is not a leaf of the graph, a weight is computed by a parametrization, or a
            name or tensor occurs twice.
    """

    def __init__(
        self,
        system: System,
        layers: Mapping[str, Linear],
        others: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.system = system
        self.variables = Variables(dict(layers), dict(others or {}))
        self._paired: dict[str, bool] = {}
        self._apart: dict[str, set[str]] = {}
        self._alone: dict[str, int] = {}

    def __call__(self, name: str, p: Points, number: int, first: int, start: int) -> list[Group]:
        """The groups of a term at some of its points, one for each component.

        Args:
            name: name of the term.
            p: the points.
            number: N_k, the number of all points of the term.
            first: index of the term's first residual.
            start: index of the first point of p among the ``number`` points.
        """
        paired, processes = self.paired(name), self.system.processes
        share = self.system.share(name, p.number)
        own = p.part(share)
        groups = self._groups(name, own, number, first, start + share.start, paired)
        return groups if own is p else _gathered(groups, processes, share.start, p.number)

    def paired(self, name: str) -> bool:
        """Whether the Jacobian of term ``name`` is given by pairs, determined at a few points."""
        if name not in self._paired:
            self._paired[name] = self._has_pairs(name)
        return self._paired[name]

    def unpaired(self, name: str) -> str | None:
        """Why the Jacobian of term ``name`` is not given by pairs, in words; None where it is."""
        if self.paired(name):
            return None
        if self.system.terms[name].coupled:
            return "its points are coupled"
        if self.system.engine(name).transformed:
            return "it is written with transforms of torch.func"
        if alone := self.alone(name):
            return f"{alone} numbers are trained outside linear layers"
        return "weights are used outside linear layers"

    def alone(self, name: str) -> int:
        """How many numbers would take a reverse sweep each in term ``name``, since the tape does not tell of them; 0
        where its Jacobian has no pairs whatever their number.
        """
        self.paired(name)
        return self._alone.get(name, 0)

    def _groups(self, name: str, p: Points, number: int, first: int, start: int, paired: bool) -> list[Group]:
        with self.variables.alive() as W:
            tape: Tape = []
            engine = self.system.engine(name)
            residual = engine.by_rows.residual(p, tape) if paired else engine.residual(p)
            r = self.system.weighted(name, residual, number)
            told = {key: x for key, x in self.variables.others.items() if key not in self._apart.get(name, ())}
            where = places(tape, W, told)
            found = []
            for j in range(r.shape[1]):
                rows = slice(first + j * number + start, first + j * number + start + len(r))
                blocks, columns = self._pairs(r[:, j], where) if paired else self._arrays(r[:, j], W)
                found.append(Group(name, rows, r[:, j].detach(), blocks, columns))
            if paired:
                known = {key for place in where if place.constant for key in place.constant.derivatives}
                self._alone[name] = sum(x.numel() for key, x in self.variables.others.items() if key not in known)
        return found

    def _pairs(self, r: Tensor, where: Sequence[Place]) -> tuple[dict[str, Block], dict[str, Tensor]]:
        """Blocks and columns from one reverse sweep."""
        pairs: dict[str, list[Pair]] = {name: [] for name in self.variables.layers}
        values: dict[str, Tensor] = {}
        for place, G in zip(where, _gradient(r.sum(), [place.Z for place in where]), strict=True):
            if G is None:
                continue
            if place.layer is not None:
                left, right = (place.H.detach(), G) if place.adjoint else (G, place.H.detach())
                pairs[place.layer] += map(Pair, _parts(left), _parts(right))
            if place.constant is not None:
                for name, x in place.constant.columns(G if place.factor is None else G * place.factor.detach()):
                    values[name] = values[name] + x if name in values else x
        others = self.variables.others.items()
        columns = {name: values[name] if name in values else _columns(r, x) for name, x in others}
        zero = lambda name: Formed(r.new_zeros(len(r), *self.variables.layers[name].weight.shape))
        return {name: Outer(found) if found else zero(name) for name, found in pairs.items()}, columns

    def _arrays(self, r: Tensor, W: Mapping[str, Tensor]) -> tuple[dict[str, Block], dict[str, Tensor]]:
        """Blocks and columns by differentiating every residual individually."""
        J = _jacobian(r, [*W.values(), *self.variables.others.values()])
        blocks: dict[str, Block] = {name: Formed(x) for name, x in zip(W, J, strict=False)}
        return blocks, {name: x.reshape(len(r), -1) for name, x in zip(self.variables.others, J[len(W) :], strict=True)}

    def _has_pairs(self, name: str) -> bool:
        """Whether the pairs reproduce the Jacobian at a few points.

        A variable other than a layer of which the tape does not tell all is differentiated apart from then on.
        """
        if self.system.terms[name].coupled:
            return False
        few = self.system.sample(name)
        try:
            exact = self._groups(name, few, few.number, 0, 0, False)
            paired = self._groups(name, few, few.number, 0, 0, True)
            self._apart[name] = {
                key
                for a, b in zip(paired, exact, strict=True)
                for key, columns in a.columns.items()
                if not _near(columns, b.columns[key])
            }
            if self._apart[name]:
                paired = self._groups(name, few, few.number, 0, 0, True)
        except RuntimeError:  # The pairs have other shapes if the rows of a layer's input are not points.
            self._alone[name] = 0
            return False
        if not all(map(_agree, paired, exact)):
            self._alone[name] = 0
            return False
        return self.system.engine(name).by_rows.plan is not None or self._alone[name] <= BATCH


def _gathered(groups: list[Group], processes: Processes, before: int, number: int) -> list[Group]:
    """The groups of all points from those at the points of each process, by one exchange.

    Args:
        groups: of this process.
        processes: all of them.
        before: how many points come before its own.
        number: of all points.
    """
    own: dict[int, Tensor] = {}

    def known(x: Tensor) -> Tensor:
        return own.setdefault(id(x), x)

    for group in groups:
        group.mapped(known)
    # The components share the inputs of a layer: one tensor is sent once.
    sent = torch.cat([x.flatten(1) if x.ndim > 1 else x[:, None] for x in own.values()], dim=1)
    columns = processes.gathered(sent, number).split([x[0].numel() for x in own.values()], dim=1)
    all_of = {key: part.reshape(number, *x.shape[1:]) for (key, x), part in zip(own.items(), columns, strict=True)}
    rows = lambda group: slice(group.rows.start - before, group.rows.start - before + number)
    return [replace(group.mapped(lambda x: all_of[id(x)]), rows=rows(group)) for group in groups]


def _agree(a: Group, b: Group) -> bool:
    """Whether two groups have the same Jacobian."""
    pairs = [(block.formed(), b.blocks[name].formed()) for name, block in a.blocks.items()]
    pairs += [(columns, b.columns[name]) for name, columns in a.columns.items()]
    return all(_near(x, y) for x, y in pairs)


def _near(x: Tensor, y: Tensor) -> bool:
    """A few digits suffice, since a Jacobian is either right or entirely wrong."""
    return x.shape == y.shape and (not x.numel() or bool((x - y).abs().max() <= 1e-3 * y.abs().max()))


def _parts(x: Tensor) -> Sequence[Tensor]:
    """x (N, …, n) as tensors (N, n), for layers that act on several parts of a row."""
    return [x] if x.ndim == 2 else x.flatten(1, -2).unbind(dim=1)


def _gradient(x: Tensor, places: Sequence[Tensor], **kwargs: Any) -> Sequence[Tensor | None]:
    """The derivative of x with respect to each of the places, None if x does not depend on it."""
    if not (places and x.requires_grad):
        return [None] * len(places)
    return torch.autograd.grad(x, places, retain_graph=True, allow_unused=True, **kwargs)


def _jacobian(r: Tensor, places: Sequence[Tensor]) -> list[Tensor]:
    """∂r_i with respect to each of the places, for every row, (N, …)."""
    units = torch.eye(len(r), dtype=r.dtype, device=r.device).split(BATCH)
    parts = [_adjoints(r, places, w) for w in units]
    return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]


def _adjoints(r: Tensor, places: Sequence[Tensor], w: Tensor) -> list[Tensor]:
    """Jᵀw with respect to each of the places for several w (k, N), in one batched backward pass if torch allows it."""
    try:
        found = _gradient(r, places, grad_outputs=w, is_grads_batched=True)
    except RuntimeError:
        each = zip(*(_gradient(r, places, grad_outputs=x) for x in w), strict=True)
        found = [None if g[0] is None else torch.stack(g) for g in each]
    return [x.new_zeros(len(w), *x.shape) if g is None else g for x, g in zip(places, found, strict=True)]


def _columns(r: Tensor, x: Tensor) -> Tensor:
    """∂r_i/∂x, (N, x.numel()), for a small tensor x: the derivative with respect to w of Jᵀw, which is linear in w."""
    w = torch.zeros_like(r, requires_grad=True)
    (adjoint,) = _gradient(r, [x], grad_outputs=w, create_graph=True)
    if adjoint is None or not x.numel():
        return r.new_zeros(len(r), x.numel())
    columns: Sequence[Tensor] = [
        torch.autograd.grad(a, w, retain_graph=True, materialize_grads=True)[0] for a in adjoint.flatten()
    ]
    return torch.stack(columns, dim=1)

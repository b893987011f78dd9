"""Which linear layers of a network come first, which last, and which between: by what it computes, not by their order.

The network is called once. Every call of a linear layer marks what goes in and what comes out, and the graph of the
output then tells which calls lie on the way to it, and which follow which. A layer is

    first     if no other linear layer comes before it: the first one of each network where there is one per unknown,
              trunk and branches of a DeepONet, both encoders of a modified MLP;
    last      if no other one comes after it;
    hidden    if there is one before and one after, in any of its calls;
    unused    if the output does not depend on it.

Activations, products, sums, concatenations and skip connections are no layers, and change nothing. Input that reaches
an inner layer by a skip does not make it a first one. A last layer with more rows than the network has outputs and more
than half as many rows as columns is as large as a hidden one, and counts as such unless it is a first one, too: trunk
and branch of a DeepONet end in such layers. So does a first layer with more columns than the network has inputs and
more than half as many columns as rows, unless it is a last one, too: it takes Fourier features, or an embedding.

The calls do not tell all where the output depends on a linear layer without a call of it in the graph
(``torch.nn.functional.linear``, ``torch.func`` inside a network). Then, and where there is no input to call the network
with, the first and the last layer are those in the order of the modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.layer import adapters


def linear_layers(net: nn.Module) -> dict[str, nn.Linear]:
    """All linear layers by module name, in module order.

    Args:
        net: an unadapted network.

    Raises:
        InputError: if the network is already adapted.
    """
    if adapters(net):
        raise InputError("The network already has adapted layers; merge them before adapting it again.")
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear) and name}


@dataclass(frozen=True)
class Wiring:
    """The linear layers of a network by their place in it, each list in module order.

    Args:
        first, hidden, last, unused: see the module's docstring; a layer can be both first and last.
        by_order: whether first and last go by the order of the modules.
    """

    first: tuple[str, ...]
    hidden: tuple[str, ...]
    last: tuple[str, ...]
    unused: tuple[str, ...] = ()
    by_order: bool = False

    @property
    def ends(self) -> dict[str, tuple[str, ...]]:
        """The first and the last layers by these words."""
        return {"first": self.first, "last": self.last}

    @classmethod
    def of(cls, net: nn.Module, inputs: Tensor | None = None) -> Wiring:
        """The wiring of an unadapted network, which is called once and remains as it is.

        Args:
            net: from (N, inputs) to (N, outputs).
            inputs: a few rows to call it with, of the type of its weights.

        Raises:
            InputError: if the network is already adapted.
        """
        layers = linear_layers(net)
        if inputs is None or not layers:
            return cls._by_order([*layers])
        with _differentiable(net):
            try:
                calls, output = _called(net, layers, inputs)
            except Exception:  # A network that can be called, but not with marks, such as one that is mapped inside.
                return cls._by_order([*layers])
            edges = _edges(calls, output)
            unseen = [name for name in layers if all(calls[i].layer != name for i in edges)]
            uncalled = [name for name in unseen if _is_used(layers[name], output)]
        if uncalled:
            unused = [name for name in unseen if name not in uncalled]
            return cls._by_order([name for name in layers if name not in unused], tuple(unused))
        before = {name: {calls[j].layer for i in edges if calls[i].layer == name for j in edges[i]} for name in layers}
        return cls._by_calls(layers, before, tuple(unseen), (inputs.shape[-1], output.shape[-1]))

    @classmethod
    def _by_order(cls, names: list[str], unused: tuple[str, ...] = ()) -> Wiring:
        return cls(tuple(names[:1]), tuple(names[1:-1]), tuple(names[-1:]), unused, by_order=True)

    @classmethod
    def _by_calls(
        cls,
        layers: Mapping[str, nn.Linear],
        before: Mapping[str, set[str]],
        unused: tuple[str, ...],
        sides: tuple[int, int],
    ) -> Wiring:
        used = [name for name in layers if name not in unused]
        first = [name for name in used if not before[name] - {name}]
        last = [name for name in used if not any(name in before[other] for other in used if other != name)]
        inputs, outputs = sides
        both = {*first} & {*last}
        large = {name for name in last if name not in both and _is_large(*layers[name].weight.shape, outputs)}
        large |= {name for name in first if name not in both and _is_large(*layers[name].weight.shape[::-1], inputs)}
        inner = [name for name in used if name in large or name not in (*first, *last)]
        outer = lambda names: tuple(name for name in names if name not in large)
        return cls(outer(first), tuple(inner), outer(last), unused)


def _is_large(own: int, other: int, network: int) -> bool:
    """Whether a layer has more rows, or columns, than the network has of its kind, and more than half the others."""
    return own > network and 2 * own > other


@dataclass(frozen=True)
class _Call:
    """One call of a layer, by marks in the graph; ``into`` has none where nothing that is differentiated goes in."""

    layer: str
    into: Tensor
    out: Tensor


def _called(net: nn.Module, layers: Mapping[str, nn.Linear], inputs: Tensor) -> tuple[list[_Call], Tensor]:
    """The calls of the layers, and the output that came of them."""
    calls: list[_Call] = []
    entered: dict[str, Tensor] = {}

    def enter(name: str, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        entered[name] = args[0].clone()  # a node of its own; what has none begins here
        return (entered[name], *args[1:])

    def leave(name: str, layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        calls.append(_Call(name, entered.pop(name), out.clone()))
        return calls[-1].out

    handles = [layer.register_forward_pre_hook(partial(enter, name)) for name, layer in layers.items()]
    handles += [layer.register_forward_hook(partial(leave, name)) for name, layer in layers.items()]
    try:
        return calls, net(inputs.detach().clone().requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()


def _edges(calls: list[_Call], output: Tensor) -> dict[int, set[int]]:
    """For every call on which the output depends, those whose results reach it without another call between."""
    ends = {call.out.grad_fn: i for i, call in enumerate(calls)}
    edges: dict[int, set[int]] = {}
    ahead = [*_nearest(output.grad_fn, ends)]
    while ahead:
        i = ahead.pop()
        if i not in edges:
            edges[i] = _nearest(calls[i].into.grad_fn, ends)
            ahead += edges[i]
    return edges


def _nearest(start: Any, ends: Mapping[Any, int]) -> set[int]:
    """The ends that are met first on all ways down the graph."""
    found, seen, ahead = set(), set(), [start]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in ends:
            found.add(ends[node])
        else:
            ahead += [following for following, _ in node.next_functions]
    return found


def _is_used(layer: nn.Linear, output: Tensor) -> bool:
    """Whether the output depends on a parameter of the layer."""
    parameters = [*layer.parameters()]
    if not (output.requires_grad and parameters):
        return False
    return any(
        g is not None for g in torch.autograd.grad(output.sum(), parameters, allow_unused=True, retain_graph=True)
    )


@contextmanager
def _differentiable(net: nn.Module) -> Iterator[None]:
    """All parameters with gradients, so that the graph holds whatever depends on them."""
    before = [(p, p.requires_grad) for p in net.parameters()]
    for p, _ in before:
        p.requires_grad_(p.is_floating_point())
    try:
        with torch.enable_grad():
            yield
    finally:
        for p, required in before:
            p.requires_grad_(required)

"""Choose the linear layers to adapt, and replace them by adapted ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError, RefusedValueError, unknown
from pinn_odelora.lowrank.layer import LowRankLinear, adapters
from pinn_odelora.lowrank.settings import THAWED
from pinn_odelora.lowrank.start import Start
from pinn_odelora.nets import Scaled
from pinn_odelora.rules import number, whole


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


def linear_targets(net: nn.Module, patterns: Sequence[str] | str | None = None) -> dict[str, nn.Linear]:
    """The linear layers whose names match a pattern, in module order.

    Args:
        net: an unadapted network.
        patterns: shell patterns for module names, such as ``linears.*``; None for the hidden layers, that is, all
            linear layers but the first and the last.

    Raises:
        InputError: if a pattern matches no linear layer, there is no hidden layer, or the network is already adapted.
    """
    linears = linear_layers(net)
    if patterns is None:
        return _hidden(linears)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    within = "net." if isinstance(net, Scaled) else ""  # names in the network that has units name its layers, too
    fits = lambda name, p: fnmatchcase(name, p) or fnmatchcase(name.removeprefix(within), p)
    for pattern in patterns:
        if not any(fits(name, pattern) for name in linears):
            raise unknown("layer pattern in targets:", pattern, linears)
    if not patterns:
        raise InputError(
            f"targets is empty; allowed: patterns matching {', '.join(linears)}, or None for all hidden layers."
        )
    return {name: layer for name, layer in linears.items() if any(fits(name, p) for p in patterns)}


def _hidden(linears: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    if len(linears) < 3:
        raise InputError(
            f"The network has no hidden linear layer between a first and a last one (it has "
            f"{', '.join(linears) or 'none'}); set targets to the layers to adapt, or take a deeper network."
        )
    return dict([*linears.items()][1:-1])


def put_factors(
    net: nn.Module,
    targets: Mapping[str, nn.Linear],
    rank: int,
    scale: float,
    start: Start,
    generator: torch.Generator,
    gradients: Mapping[str, Tensor] | None = None,
    subtracted: bool = True,
    layer: type[LowRankLinear] = LowRankLinear,
) -> dict[str, LowRankLinear]:
    """Replace the targets in ``net`` by adapted layers and freeze everything else; ``net`` remains the same function.

    Args:
        net: an unadapted network, changed in place.
        targets: layers of ``net`` by module name.
        rank: r, from 1 to min(m, n) of every target.
        scale: s > 0.
        start: gives the initial factors, see ``lowrank.start``.
        generator: source of random initial factors, on the CPU.
        gradients: G0 (m, n) by layer, for a start that is made from it instead of the weight.
        subtracted: whether the initial product is subtracted; else the function changes.
        layer: what takes the place of a target.

    Returns:
        The adapted layers by module name.

    Raises:
        InputError: if rank or scale is invalid, or a target's weight is shared or computed; ``net`` is then unchanged.
    """
    check_rank(rank, targets)
    number(above=0).check("scale", scale)
    for name, base in targets.items():
        _check_weight(net, name, base)
    given = gradients or {name: base.weight for name, base in targets.items()}
    net.requires_grad_(False)
    layers = {
        name: layer(base, start(given[name], int(rank), float(scale), generator), float(scale), subtracted)
        for name, base in targets.items()
    }
    for name, adapted in layers.items():
        net.set_submodule(name, adapted)
    return layers


def thaw(net: nn.Module, also: Sequence[str]) -> None:
    """Make further parameters of an adapted network trainable.

    Args:
        net: an adapted network.
        also: ``biases`` for those of all linear layers, ``last`` for the whole last layer unless it is adapted.

    Raises:
        InputError: for any other word, or if the linear layers have no biases.
    """
    linears = [x for x in net.modules() if isinstance(x, nn.Linear | LowRankLinear)]
    inner = {id(y) for x in linears if isinstance(x, LowRankLinear) for y in x.modules() if y is not x}
    linears = [x for x in linears if id(x) not in inner]
    for word in also:
        if word not in THAWED:
            raise unknown("word in also:", word, THAWED)
        if word == "last" and isinstance(linears[-1], LowRankLinear):
            continue
        found = [*linears[-1].parameters()] if word == "last" else [b for b in map(_bias, linears) if b is not None]
        if not found:
            raise InputError("also names biases, but the linear layers of the network have none.")
        for p in found:
            p.requires_grad_(True)


def _bias(layer: nn.Linear | LowRankLinear) -> nn.Parameter | None:
    return layer.base_layer.bias if isinstance(layer, LowRankLinear) else layer.bias


def check_rank(rank: int, targets: Mapping[str, nn.Linear], name: str = "rank") -> None:
    """Check that a rank is a whole number from 1 to min(m, n) of every target.

    Args:
        rank: r.
        targets: linear layers by module name.
        name: the caller's name of the rank, for the message.

    Raises:
        InputError: if it is not.
    """
    whole(1).check(name, rank)
    for layer, linear in targets.items():
        largest = min(linear.weight.shape)
        if rank > largest:
            shape = tuple(linear.weight.shape)
            raise RefusedValueError(name, rank, f"at most {largest} for layer {layer} of shape {shape}")


def _check_weight(net: nn.Module, name: str, layer: nn.Linear) -> None:
    """Reject weights shared between layers or computed by a parametrization, which leave no W0 to adapt."""
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        raise InputError(f"The weight of layer {name} is computed by a parametrization; remove that first.")
    owners = [n for n, p in net.named_parameters(remove_duplicate=False) if p is layer.weight]
    if len(owners) > 1:
        raise InputError(
            f"{' and '.join(owners)} are one shared weight, which cannot be adapted; leave these layers out."
        )

"""Choose the linear layers to adapt, and replace them by adapted ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NoReturn

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError, RefusedValueError, cause, unknown
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.lowrank.settings import THAWED
from pinn_odelora.lowrank.start import Start
from pinn_odelora.lowrank.wiring import Wiring, linear_layers
from pinn_odelora.nets.scaled import own_name
from pinn_odelora.rules import number, whole

Scale = float | Callable[[int], float]
"""s, or s as a function of the rank of a layer, as ``LoRA.scale_at``."""


def linear_targets(
    net: nn.Module, patterns: Sequence[str] | str | None = None, wiring: Wiring | None = None
) -> dict[str, nn.Linear]:
    """The linear layers whose names match a pattern, in module order.

    Args:
        net: an unadapted network.
        patterns: shell patterns for module names, such as ``linears.*``; None for the hidden layers.
        wiring: which these are; None for all linear layers but the first and the last in module order.

    Raises:
        InputError: if a pattern matches no linear layer, there is none, or no hidden one, or the network is already
            adapted.
    """
    linears = linear_layers(net)
    if not linears and any(isinstance(module, torch.jit.ScriptModule) for module in net.modules()):
        raise InputError(
            "The network is compiled by torch.jit, which hides its linear layers; give the module that it was compiled "
            "from."
        )
    if not linears:
        raise InputError(
            "The network has no torch.nn.Linear, whose weight low-rank factors could change; train all of its weights, "
            "as full_adam, full_lbfgs and full_implicit do."
        )
    if patterns is None:
        hidden = (wiring or Wiring.of(net)).hidden
        return {name: linears[name] for name in hidden or _nothing_hidden(linears)}
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    own = {name: own_name(net, name) for name in linears}  # names in the network that has units name its layers, too
    fits = lambda name, p: fnmatchcase(name, p) or fnmatchcase(own[name], p)
    for pattern in patterns:
        if not any(fits(name, pattern) for name in linears):
            raise unknown("layer pattern in targets:", pattern, own.values())
    if not patterns:
        raise InputError(
            f"targets is empty; allowed: patterns matching {', '.join(own.values())}, or None for all hidden layers."
        )
    return {name: layer for name, layer in linears.items() if any(fits(name, p) for p in patterns)}


def _nothing_hidden(linears: Mapping[str, nn.Linear]) -> NoReturn:
    raise InputError(
        f"The network has no hidden linear layer between a first and a last one (it has {', '.join(linears)}); set "
        "targets to the layers to adapt, or take a deeper network."
    )


def put_factors(
    net: nn.Module,
    targets: Mapping[str, nn.Linear],
    rank: int,
    scale: Scale,
    start: Start,
    generator: torch.Generator,
    gradients: Mapping[str, Tensor] | None = None,
    subtracted: bool = True,
    layer: type[LowRankLinear] = LowRankLinear,
    inputs: Tensor | None = None,
) -> dict[str, LowRankLinear]:
    """Replace the targets in ``net`` by adapted layers and freeze everything else; ``net`` remains the same function.

    Args:
        net: an unadapted network, changed in place.
        targets: layers of ``net`` by module name.
        rank: r, at least 1; a layer that cannot have it has the largest that it can, min(m, n).
        scale: s > 0, or s as a function of the rank of a layer.
        start: gives the initial factors, see ``lowrank.start``.
        generator: source of random initial factors, on the CPU.
        gradients: G0 (m, n) by layer, for a start that is made from it instead of the weight.
        subtracted: whether the initial product is subtracted; else the function changes.
        layer: what takes the place of a target.
        inputs: a few rows, (N, inputs), at which the network is called before and after where its function remains.

    Returns:
        The adapted layers by module name.

    Raises:
        InputError: if rank or scale is invalid, a target computes something else than W x + b, or its weight is shared
            or computed, and ``net`` is then unchanged; or if it computes something else with the adapted layers.
    """
    check_rank(rank, targets)
    ranks = ranks_at(rank, targets)
    scales = {name: scale_of(scale, r) for name, r in ranks.items()}
    for name, base in targets.items():
        _check_forward(name, base)
        _check_weight(net, name, base)
    given = gradients or {name: base.weight for name, base in targets.items()}
    inputs = inputs.to(next(net.parameters())) if inputs is not None and subtracted else None
    before = None if inputs is None else net(inputs).detach()
    net.requires_grad_(False)
    layers = {
        name: layer(base, start(given[name], ranks[name], scales[name], generator), scales[name], subtracted)
        for name, base in targets.items()
    }
    for name, adapted in layers.items():
        net.set_submodule(name, adapted)
    if inputs is not None:
        _check_same_function(net, inputs, before, [own_name(net, name) for name in layers])
    return layers


def _check_same_function(net: nn.Module, inputs: Tensor, before: Tensor, names: Sequence[str]) -> None:
    """Refuse a network that cannot be called with adapted layers, or whose outputs differ by more than √ε then."""
    try:
        difference = float((net(inputs).detach() - before).abs().max())
    except Exception as error:
        raise _refused(names, f"cannot be called ({cause(error)})") from error
    if not difference <= torch.finfo(before.dtype).eps ** 0.5 * float(before.abs().max()):
        raise _refused(names, f"computes something else (other by {difference:.1e})")


def _refused(names: Sequence[str], how: str) -> InputError:
    return InputError(
        f"With low-rank factors in the layers {', '.join(names)} the network {how}: it seems to ask for the class or "
        "an attribute of its layers, as isinstance(layer, torch.nn.Linear) does. Let it call them without asking, or "
        "leave them out of targets."
    )


def thaw(net: nn.Module, also: Sequence[str], ends: Mapping[str, Sequence[str]] | None = None) -> None:
    """Make further parameters of an adapted network trainable.

    Args:
        net: an adapted network.
        also: ``biases`` for those of all linear layers, ``first`` and ``last`` for whole first and last layers unless
            they are adapted.
        ends: names of the first and the last layers by these words; None for those in module order.

    Raises:
        InputError: for any other word, or if the linear layers have no biases.
    """
    named = {name: x for name, x in net.named_modules() if isinstance(x, nn.Linear | LowRankLinear)}
    inner = {id(y) for x in named.values() if isinstance(x, LowRankLinear) for y in x.modules() if y is not x}
    linears = {name: x for name, x in named.items() if id(x) not in inner}
    ends = {"first": [*linears][:1], "last": [*linears][-1:]} if ends is None else ends
    for word in also:
        if word not in THAWED:
            raise unknown("word in also:", word, THAWED)
        if word in ends:
            whole = [linears[name] for name in ends[word] if not isinstance(linears[name], LowRankLinear)]
            found = [p for layer in whole for p in layer.parameters()]
        else:
            found = [b for b in map(_bias, linears.values()) if b is not None]
            if not found:
                raise InputError("also names biases, but the linear layers of the network have none.")
        for p in found:
            p.requires_grad_(True)


def _bias(layer: nn.Linear | LowRankLinear) -> nn.Parameter | None:
    return layer.base_layer.bias if isinstance(layer, LowRankLinear) else layer.bias


def check_rank(rank: int, targets: Mapping[str, nn.Linear], name: str = "rank") -> None:
    """Check that a rank is a whole number of at least 1 that one of the targets can have.

    Args:
        rank: r.
        targets: linear layers by module name.
        name: the caller's name of the rank, for the message.

    Raises:
        InputError: if it is not.
    """
    whole(1).check(name, rank)
    layer, largest = max(((n, min(x.weight.shape)) for n, x in targets.items()), key=lambda found: found[1])
    if rank > largest:
        shape = tuple(targets[layer].weight.shape)
        raise RefusedValueError(name, rank, f"at most {largest} for layer {layer} of shape {shape}")


def ranks_at(rank: int, targets: Mapping[str, nn.Linear]) -> dict[str, int]:
    """min(r, m, n), the rank of every layer where r is asked for, by name."""
    return {name: min(int(rank), *layer.weight.shape) for name, layer in targets.items()}


def scale_of(scale: Scale, rank: int) -> float:
    """s of a layer of rank r.

    Raises:
        InputError: if it is not a finite number above 0.
    """
    return float(number(above=0).check("scale", scale(rank) if callable(scale) else scale))


def _check_forward(name: str, layer: nn.Linear) -> None:
    """Reject a layer that computes something else than W x + b, which would be lost."""
    if type(layer).forward is not nn.Linear.forward or "forward" in vars(layer):
        raise InputError(
            f"Layer {name} is a {type(layer).__name__}, a torch.nn.Linear with a forward of its own, which would be "
            "lost with low-rank factors in its place: leave it out of targets, or write it as a module that holds a "
            "plain torch.nn.Linear."
        )
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise InputError(
            f"Layer {name} has a forward hook, which would be lost with low-rank factors in its place: remove it, or "
            "leave the layer out of targets."
        )


def _check_weight(net: nn.Module, name: str, layer: nn.Linear) -> None:
    """Reject weights shared between layers or computed by a parametrization, which leave no W0 to adapt."""
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        raise InputError(f"The weight of layer {name} is computed by a parametrization; remove that first.")
    owners = [n for n, p in net.named_parameters(remove_duplicate=False) if p is layer.weight]
    if len(owners) > 1:
        raise InputError(
            f"{' and '.join(owners)} are one shared weight, which cannot be adapted; leave these layers out."
        )

"""Weight normalisation  W = g v / ‖v‖  folded into W (Salimans and Kingma, 2016, arXiv 1602.07868).

g has size 1 in the directions over which the norm is taken. Folding does not change the function of a network; it is a
plain one afterwards, with a weight W0 that can be adapted.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_weight_norm

from pinn_odelora.errors import InputError

log = logging.getLogger(__name__)

PAIRS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""The names of g and v, by ``torch.nn.utils.weight_norm`` and by ``torch.nn.utils.parametrizations.weight_norm``."""
Network = TypeVar("Network")


def copied(net: Network) -> Network:
    """A deep copy, also where torch refuses one: weight norm keeps W, which is computed, beside g and v."""
    if not isinstance(net, nn.Module):
        return copy.deepcopy(net)
    computed = [x for m in net.modules() for x in vars(m).values() if isinstance(x, Tensor) and not x.is_leaf]
    return copy.deepcopy(net, {id(x): x.detach().clone() for x in computed})


def fold(net: nn.Module) -> None:
    """Replace the weight norm of every layer by the weight that it gives; ``net`` remains the same function.

    Raises:
        InputError: if a layer has spectral norm, which limits its weight: an adapted weight would not keep the limit.
    """
    folded = []
    for name, layer in [*net.named_modules()]:
        hooks = {type(x).__name__ for x in layer._forward_pre_hooks.values() if getattr(x, "name", "") == "weight"}
        kinds = {type(x).__name__ for x in layer.parametrizations.weight} if _parametrized(layer) else set()
        if "SpectralNorm" in hooks or "_SpectralNorm" in kinds:
            raise InputError(
                f"The weight of layer {name} has spectral norm, which an adapted weight would not keep: remove it by "
                "torch.nn.utils.remove_spectral_norm or parametrize.remove_parametrizations."
            )
        if "WeightNorm" in hooks:
            remove_weight_norm(layer)
        elif kinds == {"_WeightNorm"} and len(layer.parametrizations) == 1:
            _unparametrise(layer)
        else:
            continue
        others = {key: p for key, p in layer._parameters.items() if key != "weight"}
        for key in others:  # the weight first again
            del layer._parameters[key]
        layer._parameters.update(others)
        folded.append(name)
    if folded:
        log.info("The weight norm of %s is folded into the weights, which leaves the function as it is.", *_few(folded))


def fold_tensors(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name with W, float64, in the place of every pair g and v."""
    kept = dict(found)
    for g, v in PAIRS:
        for name in [name for name in kept if name == g or name.endswith(f".{g}")]:
            prefix = name.removesuffix(g)
            if prefix + v in kept:
                kept[f"{prefix}weight"] = normed(kept.pop(name), kept.pop(prefix + v))
    return kept


def normed(g: Tensor, v: Tensor) -> Tensor:
    """W = g v / ‖v‖, float64, from v (m, n) and g (m, 1), (1, n) or ()."""
    g, v = g.double(), v.double()
    over = [i for i, size in enumerate(g.shape) if size == 1] or [*range(v.ndim)]
    return g * v / torch.linalg.vector_norm(v, dim=over, keepdim=g.ndim > 0)


def _unparametrise(layer: nn.Module) -> None:
    """A layer with its weight as it is, of the class that it had.

    ``remove_parametrizations`` would also change the class in between, which a layer shares with its copies.
    """
    W = layer.weight.detach().clone()
    layer.__class__ = type(layer).__bases__[0]
    del layer.parametrizations
    layer.register_parameter("weight", nn.Parameter(W))


def _parametrized(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight")


def _few(names: list[str]) -> list[str]:
    return [", ".join(names[:3]) + (f" and {len(names) - 3} more layers" if len(names) > 3 else "")]

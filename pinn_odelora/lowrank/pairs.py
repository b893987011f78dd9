"""The LoRA pairs among the trainable tensors of a model: ours and those of PEFT.

A pair is two matrices A (r, n) and B (m, r) on which a single weight depends through their product alone,

    W = W0 + s·B A,    or    W = W0 + s·(B A)ᵀ    if the layer stores its weight transposed

(GPT-2's ``Conv1D``, embeddings). Both gradients then come from one matrix G, the gradient of the loss with respect to
W or Wᵀ,

    ∂L/∂A = s Bᵀ G,    ∂L/∂B = s G Aᵀ,

as every flow on pairs assumes, and the loss is constant on the pairs with a given product, as the retraction assumes.
Layers with another update (DoRA, block-diagonal factors, experts stacked in one factor, ...) and tensors shared between
weights violate one of the two, and raise ``InputError``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError

FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
"""The names of A and B in a layer; each maps adapters to tensors or to linear layers without bias."""

_SHOWN = 5


class _Pair(NamedTuple):
    """A pair, with the layer and the adapter to which it belongs."""

    name: str
    layer: nn.Module
    adapter: str
    A: Tensor
    B: Tensor


def factor_pairs(model: nn.Module) -> list[dict[str, Any]]:
    """One parameter group for each trainable LoRA pair of a model.

    Pairs with two frozen factors and pairs of inactive or disabled adapters are omitted. Other trainable tensors belong
    to no group, and are listed in a warning.

    Args:
        model: a model with LoRA layers of PEFT or of this package.

    Returns:
        Groups ``{"params": [A, B], "scale": s, "name": layer's name, "layer": (layer, adapter's name)}`` in module
        order, with A (r, n) and B (m, r). ``layer.scaling[adapter]`` is the current scale s.

    Raises:
        InputError: if no pair is trainable, the update of one is not s·B A, only one of its factors is trainable, or
            its factors are shared with another weight.
    """
    pairs = _trained_pairs(model)
    if others := _other_tensors(model):
        warnings.warn(
            f"factor_pairs omits trainable tensors other than LoRA pairs: {_some(others)}; "
            "trainable_groups and ODELoRA.from_model include them.",
            stacklevel=2,
        )
    return _groups(pairs)


def trainable_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The groups of ``factor_pairs``, then one ``{"params": [x], "name": name}`` for every other trainable tensor.

    Args:
        model: a model with LoRA layers of PEFT or of this package.

    Raises:
        InputError: as ``factor_pairs``.
    """
    pairs = _groups(_trained_pairs(model))
    return [*pairs, *({"params": [p], "name": name} for name, p in _other_tensors(model).items())]


def _groups(pairs: list[_Pair]) -> list[dict[str, Any]]:
    """The groups, with unique names: a layer with several active adapters has a pair for each of them."""
    names = [pair.name for pair in pairs]
    return [
        {
            "params": [pair.A, pair.B],
            "scale": float(pair.layer.scaling[pair.adapter]),
            "name": pair.name if names.count(pair.name) == 1 else f"{pair.name}.{pair.adapter}",
            "layer": (pair.layer, pair.adapter),
        }
        for pair in pairs
    ]


def _trained_pairs(model: nn.Module) -> list[_Pair]:
    stored = [*_stored_pairs(model)]
    pairs = [pair for pair in stored if _is_active(pair) and (pair.A.requires_grad or pair.B.requires_grad)]
    if stored and not pairs:
        raise InputError("All LoRA pairs of the model are frozen or of inactive adapters; activate or unfreeze one.")
    if not pairs:
        raise InputError("The model has no LoRA pairs (layers with lora_A and lora_B); adapt it first.")
    for pair in pairs:
        if objection := _objection(pair):
            raise InputError(
                f"The LoRA pair of {pair.name!r} {objection}; "
                "only pairs of two trained matrices A (r, n) and B (m, r) with the update s·B A are supported."
            )
    _check_unshared(model, pairs)
    return pairs


def _stored_pairs(model: nn.Module) -> Iterator[_Pair]:
    """All pairs, trainable or not; a layer used in several places of the model counts once."""
    for name, layer in model.named_modules():
        # Not getattr: wrappers forward the attributes of their inner layer, which is visited on its own.
        own = dict(layer.named_parameters(recurse=False)) | dict(layer.named_children())
        for letters in FACTORS:
            held = [own[letter] for letter in letters if letter in own]
            if len(held) == 2 and all(isinstance(x, nn.ModuleDict | nn.ParameterDict) for x in held):
                for adapter in held[0]:
                    yield _Pair(name, layer, adapter, *(getattr(x[adapter], "weight", x[adapter]) for x in held))
            elif any(p.requires_grad for x in held for p in ([x] if isinstance(x, Tensor) else x.parameters())):
                raise InputError(
                    f"The layer {name!r} keeps {' and '.join(letters)} without adapters' names, as loralib does; "
                    "only the LoRA layers of PEFT and LowRankLinear are supported."
                )


def _is_active(pair: _Pair) -> bool:
    """Whether the layer uses the pair: its adapter is active in PEFT's layers, and always in ours."""
    names = getattr(pair.layer, "active_adapters", [pair.adapter])
    return pair.adapter in names and not getattr(pair.layer, "disable_adapters", False)


def _objection(pair: _Pair) -> str | None:
    """Why the pair violates the assumptions of the flows, or None."""
    layer, adapter, A, B = pair.layer, pair.adapter, pair.A, pair.B
    if hasattr(layer, "lora_E"):
        return "has singular values between the factors (AdaLoRA)"
    if variant := getattr(layer, "lora_variant", {}).get(adapter):
        return f"is of a variant of LoRA ({type(variant).__name__})"
    if not getattr(layer, "is_product", True):
        return "has rescaled rows (DoRA)"
    if not (A.requires_grad and B.requires_grad):
        return f"has only one trained factor ({'A' if A.requires_grad else 'B'})"
    if not all(isinstance(x, nn.Parameter) and x.ndim == 2 for x in (A, B)) or A.shape[0] != B.shape[1]:
        return f"has factors of shapes {tuple(A.shape)} and {tuple(B.shape)}, or computed ones"
    if (rank := getattr(layer, "r", {}).get(adapter, len(A))) != len(A):
        return f"stacks {len(A)} rows in A at rank {rank}, as the experts of target_parameters do"
    if adapter in getattr(layer, "merged_adapters", ()):
        return "is merged into the weight, so that the loss does not depend on it (unmerge_adapter undoes that)"
    if any(getattr(getattr(layer, "base_layer", None), option, None) for option in ("max_norm", "scale_grad_by_freq")):
        return "is of an embedding whose max_norm or scale_grad_by_freq changes factors or gradients"
    return None if _is_product(pair) else "changes the weight by a matrix other than s·B A"


@torch.no_grad()
def _is_product(pair: _Pair) -> bool:
    """Whether the layer's own update of the weight is s·B A or its transpose; true if B = 0 or it is not known."""
    own_change = getattr(pair.layer, "get_delta_weight", None)
    if own_change is None or pair.A.is_meta or not pair.B.any():
        return True
    wide = torch.promote_types(pair.A.dtype, torch.float32)
    product = pair.layer.scaling[pair.adapter] * (pair.B.to(wide) @ pair.A.to(wide))
    tolerance = torch.finfo(pair.A.dtype).eps ** 0.5 * product.norm()
    change = own_change(pair.adapter).to(product.device, wide)
    candidates = [x for x in (product, product.mT) if x.shape == change.shape]
    # Non-finite factors pass here: the optimiser reports them.
    return any(not (change - x).norm() > tolerance for x in candidates)


def _check_unshared(model: nn.Module, pairs: Iterable[_Pair]) -> None:
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for key, p in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(_memory(p), []).append(f"{name}.{key}" if name else key)
    for pair in pairs:
        for factor in (pair.A, pair.B):
            if len(names := places[_memory(factor)]) > 1:
                raise InputError(
                    f"{' and '.join(names)} are one tensor, whose gradient is not that of a single weight; "
                    "adapt the layers without tying their factors."
                )


def _memory(x: Tensor) -> int:
    """The address of the data, since PEFT ties factors as views of each other; sharded tensors have none."""
    return x.data_ptr() or id(x)


def _other_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable tensors that are not factors, by name; those of inactive adapters count as factors."""
    factors = {id(x) for pair in _stored_pairs(model) for x in (pair.A, pair.B)}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in factors}


def _some(names: Mapping[str, Any]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join([*names][:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")

"""Which trainable tensors of a model are LoRA pairs: ours, and those of PEFT.

A pair is two matrices A (r, n) and B (m, r) that one weight depends on by their product alone,

    W = W0 + s·B A,    or    W = W0 + s·(B A)ᵀ    where the layer keeps its weight transposed

(GPT-2's ``Conv1D``, embeddings). Then both gradients come from one matrix G, the gradient of the loss with respect to
W or Wᵀ,

    ∂L/∂A = s Bᵀ G,    ∂L/∂B = s G Aᵀ,

which is what every flow on pairs assumes, and the loss does not change when (A, B) moves along the pairs of one
product, which is what the retraction assumes. Layers with another update (DoRA, block-diagonal factors, experts stacked
in one factor, ...) and tensors that more than one weight depends on break one of the two, and are refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError

FACTORS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
"""The names of A and B in a layer; each holds one tensor, or one linear layer without bias, for each adapter."""

_SHOWN = 5


class _Pair(NamedTuple):
    """A pair as a layer keeps it."""

    name: str
    layer: nn.Module
    adapter: str
    A: Tensor
    B: Tensor


def factor_pairs(model: nn.Module) -> list[dict[str, Any]]:
    """One parameter group for each LoRA pair of a model that is trained.

    Pairs whose factors are both frozen, and those of inactive or disabled adapters, are left alone. What is trained
    beside the pairs is named in a warning, because no group holds it.

    Returns:
        Groups ``{"params": [A, B], "scale": s, "name": layer's name, "layer": (layer, adapter's name)}`` in module
        order, with A (r, n) and B (m, r). ``layer.scaling[adapter]`` is the scale s at any later time.

    Raises:
        InputError: if no pair is trained, the update of one is not s·B A, only one of its factors is trained, or
            another weight depends on them, too.
    """
    pairs = _trained_pairs(model)
    if others := _other_tensors(model):
        warnings.warn(
            f"factor_pairs leaves out what is trained beside the LoRA pairs: {_some(others)}; "
            "trainable_groups and ODELoRA.from_model train it, too.",
            stacklevel=2,
        )
    return _groups(pairs)


def trainable_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The groups of ``factor_pairs``, then one ``{"params": [x], "name": name}`` for every other trained tensor.

    Raises:
        InputError: as ``factor_pairs``.
    """
    pairs = _groups(_trained_pairs(model))
    return [*pairs, *({"params": [p], "name": name} for name, p in _other_tensors(model).items())]


def _groups(pairs: list[_Pair]) -> list[dict[str, Any]]:
    """The groups, each with a name of its own: a layer with several active adapters has a pair for each."""
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
    """All pairs, trained or not; a layer that stands in several places of the model has one W, and counts once."""
    for name, layer in model.named_modules():
        # Not getattr: wrappers hand the attributes of the layer inside on, which comes by itself.
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
    """Whether the layer uses the pair, as PEFT's layers say; ours say nothing and have one."""
    names = getattr(pair.layer, "active_adapters", [pair.adapter])
    return pair.adapter in names and not getattr(pair.layer, "disable_adapters", False)


def _objection(pair: _Pair) -> str | None:
    """Why the flow of a pair would be wrong here."""
    layer, adapter, A, B = pair.layer, pair.adapter, pair.A, pair.B
    if hasattr(layer, "lora_E"):
        return "has singular values between the factors (AdaLoRA)"
    if variant := getattr(layer, "lora_variant", {}).get(adapter):
        return f"is of a variant of LoRA ({type(variant).__name__})"
    if not (A.requires_grad and B.requires_grad):
        return f"has one trained factor alone ({'A' if A.requires_grad else 'B'})"
    if not all(isinstance(x, nn.Parameter) and x.ndim == 2 for x in (A, B)) or A.shape[0] != B.shape[1]:
        return f"has factors of shapes {tuple(A.shape)} and {tuple(B.shape)}, or computed ones"
    if (rank := getattr(layer, "r", {}).get(adapter, len(A))) != len(A):
        return f"stacks {len(A)} rows in A at rank {rank}, as the experts of target_parameters do"
    if adapter in getattr(layer, "merged_adapters", ()):
        return "is merged into the weight, so that the loss does not depend on it (unmerge_adapter undoes that)"
    if any(getattr(getattr(layer, "base_layer", None), option, None) for option in ("max_norm", "scale_grad_by_freq")):
        return "is of an embedding whose max_norm or scale_grad_by_freq changes factors or gradients"
    return None if _says_the_product(pair) else "changes the weight by another matrix than s·B A"


@torch.no_grad()
def _says_the_product(pair: _Pair) -> bool:
    """Whether the layer's own change of the weight is s·B A or its transpose; at B A = 0 that tells nothing."""
    own_change = getattr(pair.layer, "get_delta_weight", None)
    if own_change is None or pair.A.is_meta or not pair.B.any():
        return True
    wide = torch.promote_types(pair.A.dtype, torch.float32)
    product = pair.layer.scaling[pair.adapter] * (pair.B.to(wide) @ pair.A.to(wide))
    tolerance = torch.finfo(pair.A.dtype).eps ** 0.5 * product.norm()
    change = own_change(pair.adapter).to(product.device, wide)
    candidates = [x for x in (product, product.mT) if x.shape == change.shape]
    # Factors that are not finite pass here: the optimiser names them as what they are.
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
                    f"{' and '.join(names)} are one tensor, whose gradient is not that of one weight; "
                    "adapt the layers without tying their factors."
                )


def _memory(x: Tensor) -> int:
    """Where the numbers begin, because PEFT ties factors as views of each other; sharded tensors have no such place."""
    return x.data_ptr() or id(x)


def _other_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained tensors by name that are no factor; those of inactive adapters are factors, too."""
    factors = {id(x) for pair in _stored_pairs(model) for x in (pair.A, pair.B)}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in factors}


def _some(names: Mapping[str, Any]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join([*names][:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")

"""Adapter files in the format of PEFT, for the user's unadapted network.

The layer subtracts the initial product, W = W0 + s (B A - B₀A₀), so the trained pair (A, B) alone does not determine
W - W0. The file holds W - W0 as one balanced pair: with thin QR factorisations [B, -B₀] = Q R and [A; A₀]ᵀ = P S,

    B A - B₀A₀ = [B, -B₀] [A; A₀] = Q (R Sᵀ) Pᵀ = (Q U) Σ (V Pᵀ),    B' = Q U √Σ,    A' = √Σ V Pᵀ,

by the singular value decomposition of the small core R Sᵀ in float64. The blocks [B, -B₀], [A; A₀] themselves have the
same product, but with cancellation: rounded to bfloat16 their error is ten times as large, and linearly dependent
columns make them a singular start for further training. Singular values at rounding level are omitted, so that the rank
is that of the difference, at most r + r₀ and often less. If the difference is zero, A' = A and B' = 0 with the layer's
rank, as PEFT initialises a new adapter, so that it can be trained.

Biases and whole layers trained besides the factors are saved as they are, under PEFT's names.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, linalg, nn

from pinn_odelora.checkpoints import read_state_dict
from pinn_odelora.errors import InputError
from pinn_odelora.files import write_bytes, write_json
from pinn_odelora.lowrank.layer import Factors, LowRankLinear, adapters
from pinn_odelora.lowrank.wiring import linear_layers
from pinn_odelora.plain_files import read_json

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
"""The file of the tensors in older versions of PEFT, and on request in newer ones."""
CONFIG = "adapter_config.json"

_OTHER = re.compile(r"base_model\.model\.(.+?)(?:\.base_layer)?\.(weight|bias)")
_COPIES = (".modules_to_save.", ".original_module.")
"""Name parts of the further copies that PEFT saves of biases of whole layers."""
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", "all", "lora_only"),
    "use_rslora": (False, True, None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva", "mica"),
}
"""Settings under which a PEFT adapter represents W0 + s·B A, with W0 the weight of the user's network.

The other initialisations of PEFT (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) modify W0, which the file does not record.
"""

_ELSEWHERE = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "lora_dropout", "fan_in_fan_out"),
    *("eva_config", "corda_config", "loftq_config", "lora_ga_config", "qalora_group_size", "megatron_core"),
}
"""Settings that record how an adapter was made, or that are implied by names, shapes and the scale.

Every other setting must be off, since it may change the meaning of the factors, as ``alora_invocation_tokens`` does.
"""


@torch.no_grad()
def difference(layer: LowRankLinear) -> Factors:
    """Balanced factors A (R, n) and B (m, R) with s·B A = W - W0; if that is zero, the layer's A, and B = 0.

    Args:
        layer: an adapted layer with weight (m, n).

    Raises:
        InputError: if the factors are not finite, or the change of the weight is no product of two.
    """
    if not layer.is_product:
        raise InputError(
            "an adapter cannot hold a weight whose rows are rescaled, as those of DoRA; save the whole weights, as "
            "result.save does."
        )
    A, B, A0, B0 = (x.detach().cpu().double() for x in (*layer.factors, *layer.start))
    if not all(x.isfinite().all() for x in (A, B, A0, B0)):
        raise InputError("The factors of an adapted layer hold NaN or infinite values, which cannot be saved.")
    Q, R = linalg.qr(torch.cat([B, -B0], dim=1))
    P, S = linalg.qr(torch.cat([A, A0]).mT)
    U, sigma, V = linalg.svd(R @ S.mT, full_matrices=False)
    rounding = R.shape[1] * torch.finfo(sigma.dtype).eps * (B.norm() * A.norm() + B0.norm() * A0.norm())
    rank = int((sigma > rounding).sum())
    if not rank:
        # If both factors were zero, so would be all their gradients.
        return Factors(layer.A, torch.zeros_like(layer.B)) if A.any() else layer.factors
    root = sigma[:rank].sqrt()
    return Factors((root[:, None] * V[:rank] @ P.mT).to(layer.A), (Q @ U[:, :rank] * root).to(layer.B))


def merged_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` of the unadapted network with the effective weights W, as copies.

    Args:
        net: an adapted network; the names are those from before the adaptation.
    """
    layers = adapters(net)
    owners = {f"{name}.{key}": name for name, layer in layers.items() for key in layer.state_dict()}
    merged = {}
    for key, value in net.state_dict().items():
        name = owners.get(key)
        if name is None:
            merged[key] = value
        elif key == f"{name}.base_layer.weight":
            merged[f"{name}.weight"] = layers[name].weight
        elif key == f"{name}.base_layer.bias":
            merged[f"{name}.bias"] = value
    return {key: value.detach().clone() for key, value in merged.items()}


def save_adapter(net: nn.Module, folder: str | Path, base: str) -> None:
    """Write W - W0 of every adapted layer as ``adapter_model.safetensors`` and ``adapter_config.json``.

    The pairs are balanced and exact up to rounding; each layer has the rank of its own difference. An unchanged layer
    is saved with its rank and B = 0.

    Args:
        net: an adapted network.
        folder: created if it does not exist; each file is replaced atomically.
        base: name or path of the user's network, recorded in the settings.

    Raises:
        InputError: if ``net`` has no adapted layer, a factor is not finite, or the folder cannot be written.
    """
    layers = adapters(net)
    if not layers:
        raise InputError("The network has no adapted layer to save.")
    pairs = {name: difference(layer) for name, layer in layers.items()}
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": _plain(factor)
        for name, pair in pairs.items()
        for letter, factor in pair._asdict().items()
    }
    wholes = _wholes(net, layers)
    biases = _biases(net, layers, wholes)
    tensors |= {f"base_model.model.{name}": _plain(x) for name, x in (biases | _parameters(wholes)).items()}
    ranks = {name: len(pair.A) for name, pair in pairs.items()}
    config = _config(ranks, {name: layer.scale for name, layer in layers.items()})
    targets = _target_modules(net, layers)
    config |= {"target_modules": targets, "base_model_name_or_path": base}
    config |= {"modules_to_save": [*wholes] or None, "bias": "all" if biases else "none"}
    write_bytes(Path(folder) / WEIGHTS, safetensors.torch.save(tensors, {"format": "pt"}))
    write_json(Path(folder) / CONFIG, config)


def _plain(x: Tensor) -> Tensor:
    return x.detach().cpu().clone().contiguous()


def _wholes(net: nn.Module, layers: Mapping[str, LowRankLinear]) -> dict[str, nn.Linear]:
    """The linear layers whose full weight is trained, by name, without those inside adapted layers."""
    inside = {id(x) for layer in layers.values() for x in layer.modules()}
    return {
        name: layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear) and id(layer) not in inside and layer.weight.requires_grad
    }


def _parameters(wholes: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
    return {f"{name}.{key}": x for name, layer in wholes.items() for key, x in layer.named_parameters()}


def _biases(net: nn.Module, layers: Mapping[str, LowRankLinear], wholes: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
    """All biases by name if one is trained outside the whole layers, as PEFT saves them; else none."""
    owners = {name: x for name, x in net.named_modules() if isinstance(x, nn.Linear) and x.bias is not None}
    if not any(layer.bias.requires_grad for name, layer in owners.items() if name not in wholes):
        return {}
    return {f"{name}.bias": layer.bias for name, layer in owners.items()}


def _config(ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, Any]:
    """PEFT's settings for plain LoRA, where the scale of a layer is alpha / r."""
    alphas = {name: scales[name] * rank for name, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_exactly(name): r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {_exactly(name): a for name, a in alphas.items() if a != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _exactly(name: str) -> str:
    """A pattern that matches this layer alone in PEFT."""
    return "^" + re.escape(name)


def _target_modules(net: nn.Module, layers: Mapping[str, LowRankLinear]) -> list[str] | str:
    """The names as a list, or as one regular expression if PEFT would match a name as the suffix of another one."""
    others = [name for name, _ in net.named_modules() if name not in layers]
    if any(other.endswith(f".{name}") for other in others for name in layers):
        return "|".join(map(re.escape, layers))
    return [*layers]


class _Adapter(NamedTuple):
    """The factors and the scale of one layer, from a file."""

    pair: Factors
    scale: float


def load_adapter(net: nn.Module, folder: str | Path) -> dict[str, LowRankLinear]:
    """Load a saved adapter, ours or a plain LoRA adapter of PEFT, into the network for which it was saved.

    An adapter is plain if it represents W0 + s·B A with the network's own weights W0, with any initial factors and with
    s = alpha / r or alpha / √r; dropout is ignored. The adapted layers start from the loaded factors with nothing
    subtracted; everything else is frozen, except biases and whole layers in the file.

    Args:
        net: the unadapted network.
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors`` or ``adapter_model.bin``.

    Returns:
        The adapted layers by name.

    Raises:
        InputError: if a file is missing, damaged or of another method, or a layer or shape does not fit; ``net`` is
            then unchanged.
    """
    linears = linear_layers(net)
    path = _weights_file(Path(folder))
    saved, others = _read(Path(folder) / CONFIG, path)
    for name, adapter in saved.items():
        _check_layer(name, adapter.pair, linears, path)
    places = {f"{name}.{key}": x for name, layer in linears.items() for key, x in layer.named_parameters()}
    for name, value in others.items():
        _check_other(name, value, places, path)
    net.requires_grad_(False)
    with torch.no_grad():
        for name, value in others.items():
            places[name].copy_(value)
    layers = {name: _with_factors(linears[name], *adapter) for name, adapter in saved.items()}
    for name, layer in layers.items():
        net.set_submodule(name, layer)
    for name in others:
        places[name].requires_grad_(True)
    return layers


def _check_other(name: str, value: Tensor, places: Mapping[str, Tensor], path: Path) -> None:
    if name not in places:
        raise InputError(f"{path} holds {name}, but the linear layers have {', '.join(places)}.")
    if value.shape != places[name].shape:
        raise InputError(f"{path} has {name} of shape {tuple(value.shape)}, not {tuple(places[name].shape)}.")


def _with_factors(base: nn.Linear, pair: Factors, scale: float) -> LowRankLinear:
    A, B = (factor.to(base.weight) for factor in pair)
    layer = LowRankLinear(base, Factors(A, torch.zeros_like(B)), scale)
    with torch.no_grad():
        layer.B.copy_(B)
    return layer


def _weights_file(folder: Path) -> Path:
    """The file that PEFT would read."""
    pickled = os.path.isfile(folder / PICKLED) and not os.path.isfile(folder / WEIGHTS)
    return folder / (PICKLED if pickled else WEIGHTS)


def _read(settings: Path, weights: Path) -> tuple[dict[str, _Adapter], dict[str, Tensor]]:
    """Factors and scale by layer, and all other tensors by name."""
    config = _read_config(settings)
    pairs, others = _read_tensors(weights)
    try:
        return {name: _Adapter(pair, _scale(config, name, len(pair.A))) for name, pair in pairs.items()}, others
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise InputError(f"{settings} does not give the scale of each layer by r and lora_alpha.") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except OSError as error:
        raise InputError(f"Cannot read the adapter's settings {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON, so it does not hold the settings of an adapter.") from error
    if not isinstance(config, dict) or "peft_type" not in config:
        raise InputError(f"{path} has no peft_type, so it does not hold the settings of an adapter.")
    for key, value in config.items():
        _check_setting(path, key, value)
    return config


def _check_setting(path: Path, key: str, value: Any) -> None:
    off = value is None or value is False or value in ([], {})
    if key in _ELSEWHERE or (value in _PLAIN[key] if key in _PLAIN else off):
        return
    if key == "init_lora_weights":
        raise InputError(
            f"{path} sets init_lora_weights to {value!r}, which may have changed the base weights; allowed: an adapter "
            "converted to the unchanged weights by save_pretrained(path_initial_model_for_weight_conversion=...)."
        )
    if key in _PLAIN:
        raise InputError(f"{path} sets {key} to {value!r}, but only {_PLAIN[key][0]!r} can be read here.")
    raise InputError(f"{path} sets {key} to {value!r}, but only plain LoRA can be read here, where it is off.")


def _read_tensors(path: Path) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    factors: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, value in read_state_dict(path).items():
        if any(copy in key for copy in _COPIES):
            continue
        if not value.isfinite().all():
            raise InputError(f"{key} in {path} holds NaN or infinite values.")
        if match := _FACTOR.fullmatch(key):
            factors.setdefault(match[1], {})[match[2]] = value
        elif (match := _OTHER.fullmatch(key)) and ".lora_" not in key:
            others[f"{match[1]}.{match[2]}"] = value
        else:
            raise InputError(f"{path} holds {key}, which is not a LoRA factor, weight or bias of a linear layer.")
    for name, pair in factors.items():
        if len(pair) < 2:
            raise InputError(f"{path} holds only lora_{next(iter(pair))} of layer {name}; both factors are needed.")
    return {name: Factors(**pair) for name, pair in factors.items()}, others


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """alpha / r, or alpha / √r with ``use_rslora`` (Kalajdzievski, 2023, arXiv 2312.03732).

    r and alpha come from the first pattern that matches the layer's name, else from the common value.
    """
    r, alpha = (
        next((v for key, v in (config.get(kind) or {}).items() if re.match(rf"(.*\.)?({key})$", name)), config[common])
        for kind, common in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    if r != rank or not math.isfinite(alpha):
        raise ValueError(f"layer {name} has rank {rank}, not {r}, or an infinite scale")
    return float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)


def _check_layer(name: str, pair: Factors, linears: Mapping[str, nn.Linear], path: Path) -> None:
    if name not in linears:
        raise InputError(f"{path} adapts {name}, but the linear layers are {', '.join(linears)}.")
    m, n = linears[name].weight.shape
    found = f"A {tuple(pair.A.shape)} and B {tuple(pair.B.shape)}"
    r = len(pair.A)
    if pair.A.shape != (r, n) or pair.B.shape != (m, r):
        raise InputError(f"{path} has {found} for layer {name}, which needs A (r, {n}) and B ({m}, r).")

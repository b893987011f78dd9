"""Reading and writing weights. Code in a file is never executed.

A file of weights is a map from names to tensors: safetensors (our own format), a torch ``state_dict``, or a Lightning
or DeepXDE checkpoint that contains one under "state_dict" or "model_state_dict". A LightningModule holds its network
as an attribute, ``net.linears.0.weight``, possibly besides other parameters; the prefix under which the names are
exactly those of the network is removed.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError
from pinn_odelora.files import write_bytes
from pinn_odelora.nets.scaled import Scaled, has_units

WRAPPERS = ("state_dict", "model_state_dict")
"""The keys of the tensors in checkpoints of Lightning and DeepXDE."""

_FORMATS = "a state_dict, a Lightning or DeepXDE checkpoint, or safetensors"


def load_network(net: nn.Module, path: str | Path) -> None:
    """Load the weights of a file into ``net``, converted to its dtype and device.

    Args:
        net: the network, changed in place.
        path: a file of weights in one of the formats above.

    Raises:
        InputError: if the file cannot be read, its names or shapes are not those of the network, or a value is not
            finite; the network is then unchanged.
    """
    if isinstance(net, Scaled) and not has_units(read_state_dict(path)):
        net = net.net  # trained elsewhere, in the declared units
    expected = _tensors(net.state_dict())
    found = _choose_prefix(read_state_dict(path), expected, path)
    if wrong := _wrong_shapes(found, expected):
        raise InputError(f"{path} does not fit: {', '.join(wrong)}; the network needs the layer sizes of the file.")
    values = {name: found[name].to(like) for name, like in expected.items()}
    for name, value in values.items():
        if not value.isfinite().all():
            raise InputError(f"{name} in {path} holds values that are NaN or infinite in {value.dtype}.")
    net.load_state_dict(values)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, extracted from a checkpoint if necessary.

    Args:
        path: a file of weights in one of the formats above.

    Raises:
        InputError: if the file does not exist, is damaged, has another format or no tensors, or if reading it would
            run code.
    """
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}, not weights by name; give {_FORMATS}.")
    inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = _tensors(inner)
    if not tensors:
        raise InputError(f"{path} holds no tensors ({_some(map(str, inner)) or 'it is empty'}); give {_FORMATS}.")
    return tensors


def save_network(net: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the ``state_dict`` as safetensors with metadata; the file is replaced atomically.

    Raises:
        InputError: if the file cannot be written.
    """
    save_tensors(net.state_dict(), path, metadata)


def save_tensors(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name as safetensors with metadata; the file is replaced atomically.

    Raises:
        InputError: if the file cannot be written.
    """
    # Copies, because safetensors rejects tensors that share memory.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in _tensors(state).items()}
    write_bytes(path, safetensors.torch.save(tensors, dict(metadata or {})))


def _tensors(state: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _is_safetensors(path: str | Path) -> bool:
    """Whether a file is safetensors: the length of its header in 8 bytes, then the header, a JSON object."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{" or Path(path).suffix == ".safetensors"
    except OSError as error:
        raise InputError(f"Cannot read weights from {path}: {error.strerror}; give {_FORMATS}.") from error


def _read_safetensors(path: str | Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error


def _read_torch(path: str | Path) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except Exception as error:  # A damaged pickle can fail in any way.
        raise _damaged(path, error) from error


def _refused(path: str | Path, error: pickle.UnpicklingError) -> InputError:
    """The error for a pickle that contains more than tensors."""
    name = re.search(r"GLOBAL ([\w.]+)", str(error))
    if not name and not _imports(path):
        return _damaged(path, error)
    code = f"pickled code ({name[1]})" if name else "pickled code"
    return InputError(
        f"{path} holds {code}, which is never run; save a state_dict instead: torch.save(net.state_dict(), path)."
    )


def _imports(path: str | Path) -> bool:
    """Whether a pickle not written by torch would import anything, found by listing its opcodes."""
    with suppress(ValueError), open(path, "rb") as file:
        return any(opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") for opcode, _, _ in pickletools.genops(file))
    return False


def _damaged(path: str | Path, error: Exception) -> InputError:
    return InputError(f"{path} is truncated, damaged or no file of weights ({type(error).__name__}); give {_FORMATS}.")


class _Fit(NamedTuple):
    """The tensors of a file below a prefix, and how their names differ from the network's."""

    prefix: str
    tensors: dict[str, Tensor]
    missing: list[str]
    surplus: list[str]


def _fit(prefix: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> _Fit:
    below = {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}
    missing = [name for name in expected if name not in below]
    return _Fit(prefix, below, missing, [prefix + name for name in below if name not in expected])


def _choose_prefix(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | Path
) -> Mapping[str, Tensor]:
    prefixes = {key.removesuffix(name) for key in found for name in expected if key.endswith(f".{name}")}
    fits = [_fit(prefix, found, expected) for prefix in sorted(prefixes | {""}, key=lambda p: (len(p), p))]
    named = [fit for fit in fits if not fit.missing and not fit.surplus]
    if not named:
        raise _misfit(min(fits, key=lambda fit: len(fit.missing) + len(fit.surplus)), found, path)
    first, *others = [fit for fit in named if not _wrong_shapes(fit.tensors, expected)] or named[:1]
    for other in others:
        if not all(torch.equal(first.tensors[name].to(x), other.tensors[name].to(x)) for name, x in expected.items()):
            raise InputError(
                f"{path} holds several networks that fit, {first.prefix!r} and {other.prefix!r}; "
                "save the state_dict of one of them."
            )
    return first.tensors


def _misfit(fit: _Fit, found: Iterable[str], path: str | Path) -> InputError:
    if any(".lora_A." in name for name in found):
        return InputError(f"{path} holds low-rank factors, not a whole network; give the file of a merged network.")
    parts = [f"{word} {_some(names)}" for word, names in (("missing", fit.missing), ("surplus", fit.surplus)) if names]
    return InputError(
        f"The names in {path} are not those of the network: {', '.join(parts)}; the network needs "
        "the depth and the class of the one that was saved."
    )


def _wrong_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {tuple(found[name].shape)} in the file but {tuple(like.shape)} in the network"
        for name, like in expected.items()
        if found[name].shape != like.shape
    ]


def _some(names: Iterable[str], shown: int = 3) -> str:
    names = [*names]
    rest = [f"{len(names) - shown} more"] if len(names) > shown else []
    return ", ".join(names[:shown] + rest)

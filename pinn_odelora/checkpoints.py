"""Reading and writing weights. Code in a file is never executed.

A file of weights holds maps from names to tensors: safetensors (our own format) is one such map; what torch, Lightning,
DeepXDE or somebody's own loop saved holds several, at any depth, beside optimisers and settings of any class. Taken is
the one whose names are exactly those of the network, behind a prefix that all of them share: ``net.`` of an attribute,
``module.`` of parallel training, ``_orig_mod.`` of a compiled network. A pickled module is a map, too, of its
parameters and buffers. Weight norm is folded into the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError, RefusedValueError
from pinn_odelora.files import write_bytes
from pinn_odelora.nets.scaled import Scaled, units_in, units_inside
from pinn_odelora.nets.weight_norm import PAIRS, fold_tensors
from pinn_odelora.pickles import Made, UnreadableError
from pinn_odelora.torch_files import read_torch, tensor

WRAPPERS = ("state_dict", "model_state_dict")
"""The keys of the tensors in checkpoints of Lightning and DeepXDE, which are looked at first."""
TOP = "."
"""The part of a file that is in no inner map."""
DEPTH = 16
"""Maps inside maps that are looked at."""

_FORMATS = "a checkpoint of torch, Lightning or DeepXDE, or safetensors"


class Weights:
    """What a file of weights holds, read once.

    Args:
        path: a file of weights in one of the forms above.
        part: the map to take, by its keys with dots between them, where several fit.

    Raises:
        InputError: if the file does not exist, is damaged, has another format, or no tensors.
    """

    def __init__(self, path: str | Path, part: str | None = None) -> None:
        self.path = path
        self._maps = _maps(path, part)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU: those of the first of ``WRAPPERS`` or of the part that was chosen, or all of
        the file, those in inner maps under names with dots.

        Raises:
            InputError: if one of them cannot be read.
        """
        chosen = next((found for found in self._maps if found.path in WRAPPERS), self._maps[-1])
        for name, reason in chosen.unread.items():
            raise _unread(name, self.path, reason)
        return chosen.tensors

    @property
    def units(self) -> dict[str, Tensor]:
        """The tensors of a network in units, see ``nets.scaled``; none of another one's."""
        return next((units for found in self._maps if (units := units_in(found.tensors))), {})

    def load(self, net: nn.Module) -> None:
        """Load the weights into ``net``, converted to its dtype and device.

        Args:
            net: the network, changed in place.

        Raises:
            InputError: if names or shapes are not those of the network, the file has units and the network has none,
                several maps fit that are not equal, or a value is not finite; the network is then unchanged.
        """
        if isinstance(net, Scaled) and not self.units:
            net = net.net  # trained elsewhere, in the declared units
        if self.units and units_inside(net) is None:
            raise InputError(
                f"{self.path} holds a network in units of its own (scales), without which its weights are those of "
                "another function; give the network in these units, as pinn_odelora.nets.in_units_of does."
            )
        expected = _tensors(net.state_dict())
        found = _choose(self._maps, expected, self.path)
        if wrong := _wrong_shapes(found, expected):
            raise InputError(
                f"{self.path} does not fit: {', '.join(wrong)}; the network needs the layer sizes of the file."
            )
        values = {name: found[name].to(like) for name, like in expected.items()}
        for name, value in values.items():
            if not value.isfinite().all():
                raise InputError(f"{name} in {self.path} holds values that are NaN or infinite in {value.dtype}.")
        net.load_state_dict(values)


def load_network(net: nn.Module, path: str | Path, part: str | None = None) -> None:
    """Load the weights of a file into ``net``, see ``Weights``.

    Args:
        net: the network, changed in place.
        path, part: as of ``Weights``.

    Raises:
        InputError: as ``Weights`` and its ``load``; the network is then unchanged.
    """
    Weights(path, part).load(net)


def read_state_dict(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, see ``Weights``.

    Args:
        path, part: as of ``Weights``.

    Raises:
        InputError: as ``Weights``, and if a tensor cannot be read.
    """
    return Weights(path, part).tensors


def units_of(path: str | Path, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file of a network in units, see ``Weights``; none of another one's.

    Args:
        path, part: as of ``Weights``.

    Raises:
        InputError: as ``Weights``.
    """
    return Weights(path, part).units


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


class _Map(NamedTuple):
    """Tensors by name at a path in a file, and what cannot be read among them, with the reason."""

    path: str
    tensors: dict[str, Tensor]
    unread: dict[str, str]


def _maps(path: str | Path, part: str | None = None) -> list[_Map]:
    """Every map of a file that holds tensors, ``WRAPPERS`` first; last, where they are nested, all of its tensors."""
    content = _read_safetensors(path) if _is_safetensors(path) else _read(path)
    if (entries := _entries(content)) is None:
        kind = content.name.rpartition(".")[2] if isinstance(content, Made) else type(content).__name__
        kind = "Tensor" if _is_tensor(content) else kind
        raise InputError(f"{path} holds a {kind}, not weights by name; give {_FORMATS}.")
    nested = dict(_nested(content))
    direct = [_read_tensors(at, nested[at]) for at in sorted(nested, key=lambda at: at not in WRAPPERS)]
    maps = [found for found in direct if found.tensors or found.unread]
    if not maps:
        entries = next((inner for at, inner in nested.items() if at in WRAPPERS), entries)
        raise InputError(f"{path} holds no tensors ({_some(map(str, entries)) or 'it is empty'}); give {_FORMATS}.")
    named = [(f"{found.path}.".lstrip("."), found) for found in maps]
    tensors = {at + name: x for at, found in named for name, x in found.tensors.items()}
    unread = {at + name: x for at, found in named for name, x in found.unread.items()}
    if part == TOP:
        return [found for found in maps if not found.path]
    if part is None:
        return maps if len(maps) == 1 and not maps[0].path else [*maps, _Map("", tensors, unread)]
    start = f"{part}."
    below = [{k.removeprefix(start): x for k, x in found.items() if k.startswith(start)} for found in (tensors, unread)]
    if not any(below):
        raise RefusedValueError("part", part, f"the name of a map of tensors in {path}, as {_some(_places(maps))}")
    return [_Map(part, *below)]


def _places(maps: Iterable[_Map]) -> list[str]:
    """What a part may be called: the paths of maps, and what stands before the last two words of names in them."""
    deeper = {f"{m.path}.{name}".strip(".").rpartition(".")[0].rpartition(".")[0] for m in maps for name in m.tensors}
    return sorted({m.path for m in maps if m.path} | deeper - {""})


def _nested(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The maps of a tree by their paths, each once: a tree may refer to one many times, or to itself."""
    ahead, seen = deque([("", content, 0)]), set[int]()
    while ahead:
        path, value, depth = ahead.popleft()
        entries = dict(enumerate(value)) if isinstance(value, list | tuple) else _entries(value)
        if entries is None or id(value) in seen or depth > DEPTH:
            continue
        seen.add(id(value))
        yield path, entries
        ahead += [(f"{path}.{key}".lstrip("."), inner, depth + 1) for key, inner in entries.items()]


def _entries(value: Any) -> Mapping[Any, Any] | None:
    """What a value of the tree holds by name, None for what is no map: a module holds what its ``state_dict`` does."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, Made) or _is_tensor(value):
        return None
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    if isinstance(state, Mapping) and isinstance(state.get("_modules"), Mapping | Made):
        own, dropped = _entries(state.get("_buffers")) or {}, _elements(state.get("_non_persistent_buffers_set"))
        buffers = {name: x for name, x in own.items() if name not in dropped}
        return {**(_entries(state.get("_parameters")) or {}), **buffers, **(_entries(state["_modules"]) or {})}
    return value.entries or (state if isinstance(state, Mapping) else value.entries)


def _elements(value: Any) -> list[Any]:
    """Those of a set."""
    inner = value.args[0] if isinstance(value, Made) and value.args and isinstance(value.args[0], list) else []
    return [*inner, *(value.elements if isinstance(value, Made) else ())]


def _is_tensor(value: Any) -> bool:
    try:
        return isinstance(value, Tensor) or tensor(value) is not None
    except UnreadableError:
        return True


def _read_tensors(path: str, entries: Mapping[Any, Any]) -> _Map:
    tensors, unread = dict[str, Tensor](), dict[str, str]()
    for name, value in entries.items():
        try:
            found = value if isinstance(value, Tensor) else tensor(value)
        except UnreadableError as error:
            unread[str(name)] = str(error)
        else:
            tensors |= {} if found is None else {str(name): found}
    return _Map(path, tensors, unread)


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
        raise _damaged(path, type(error).__name__) from error


def _read(path: str | Path) -> Any:
    try:
        return read_torch(path)
    except UnreadableError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: str | Path, reason: str) -> InputError:
    return InputError(f"{path} is truncated, damaged or no file of weights ({reason}); give {_FORMATS}.")


class _Fit(NamedTuple):
    """The tensors of a map below a prefix, and how their names differ from the network's."""

    place: str
    tensors: dict[str, Tensor]
    missing: list[str]
    surplus: list[str]
    unread: dict[str, str]


def _fits(found: _Map, expected: Mapping[str, Tensor]) -> Iterator[_Fit]:
    """A map below each prefix that it may have, the shortest first."""
    keep = any(name.endswith(pair) for name in expected for pair in PAIRS)
    tensors = found.tensors if keep else fold_tensors(found.tensors)
    ends = {key.removesuffix(name) for key in tensors for name in expected if key.endswith(f".{name}")}
    for prefix in sorted(ends | {""}, key=lambda p: (len(p), p)):
        below = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        missing = [name for name in expected if name not in below]
        surplus = [prefix + name for name in below if name not in expected]
        unread = {prefix + name: found.unread[prefix + name] for name in missing if prefix + name in found.unread}
        yield _Fit(f"{found.path}.{prefix}".strip("."), below, missing, surplus, unread)


def _choose(maps: Iterable[_Map], expected: Mapping[str, Tensor], path: str | Path) -> Mapping[str, Tensor]:
    """The tensors of the map that fits.

    Raises:
        InputError: if none does, or two that are not equal.
    """
    fits = [fit for found in maps for fit in _fits(found, expected)]
    named = [fit for fit in fits if not fit.missing and not fit.surplus]
    if not named:
        raise _misfit(min(fits, key=lambda fit: len(fit.missing) - len(fit.unread) + len(fit.surplus)), path)
    first, *others = [fit for fit in named if not _wrong_shapes(fit.tensors, expected)] or named[:1]
    for other in others:
        if not all(torch.equal(first.tensors[name].to(x), other.tensors[name].to(x)) for name, x in expected.items()):
            places = " or ".join(place or TOP for place in (first.place, other.place))
            raise RefusedValueError("part", None, f"{places}, since {path} holds several networks that fit")
    return first.tensors


def _unread(name: str, path: str | Path, reason: str) -> InputError:
    return InputError(f"{name} in {path} cannot be read: {reason}.")


def _misfit(fit: _Fit, path: str | Path) -> InputError:
    for name, reason in fit.unread.items():
        return _unread(name, path, reason)
    if any(".lora_A." in f".{name}" for name in fit.surplus):
        return InputError(f"{path} holds low-rank factors, not a whole network; give the file of a merged network.")
    if computed := [name for name in fit.surplus if name.endswith("weight_orig") or ".parametrizations." in f".{name}"]:
        return InputError(
            f"{path} holds {computed[0]}, from which a weight is computed; give a file with the weights themselves."
        )
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

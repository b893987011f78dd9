"""What ``torch.save`` wrote, read without torch's unpickler: a tree of plain values whose tensors are views of bytes.

A file is a zip archive with one pickle, ``data.pkl``, and the bytes of each storage, ``data/<key>``; before torch 1.6
it was a row of pickles followed by the bytes. A file that ``pickle.dump`` wrote holds the older form inside, once for
each storage. The pickle only says how a tensor lies in its storage, by offset, sizes and strides. These are checked
against the bytes that there are, and nothing that the pickle names is imported or called (see ``pickles``).
"""

from __future__ import annotations

import io
import math
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinn_odelora.pickles import Made, Name, UnreadableError, read_pickle

MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of a file from before torch 1.6."""
LARGEST = 2**20
"""Numbers of a tensor that repeats those of its storage, as an expanded one does; else a few bytes could be endless."""
_DTYPES: Mapping[str, torch.dtype] = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "Untyped": torch.uint8,
    "_Untyped": torch.uint8,
}
"""By the name of the storage's class, ``torch.<name>Storage``."""

_NUMBERS = {Name(str(x)): x for x in vars(torch).values() if isinstance(x, torch.dtype)}


@dataclass(eq=False)
class Storage:
    """The memory of tensors: so many numbers of one type, None for one that is not read, and where their bytes are."""

    dtype: torch.dtype | None
    numel: int
    bytes: Callable[[], bytes]
    swapped: bool = False

    @cached_property
    def memory(self) -> Tensor:
        """The numbers, (numel,)."""
        if self.dtype is None:
            raise UnreadableError("it is quantised, or of a type that is not read; save it as floating-point numbers")
        found, size = self.bytes(), self.numel * self.dtype.itemsize
        if not 0 <= size <= len(found):
            raise UnreadableError(f"it claims {size} bytes of {len(found)}")
        memory = torch.frombuffer(bytearray(found[:size]), dtype=self.dtype) if size else torch.empty(0).to(self.dtype)
        if self.swapped:
            memory.untyped_storage().byteswap(self.dtype)
        return memory


def read_torch(file: str | Path | bytes) -> Any:
    """The tree that a file holds: plain values, ``Made`` and ``Name``; ``tensor`` finds the tensors in it.

    Args:
        file: its path, or its bytes.

    Raises:
        UnreadableError: if the file is damaged, or none of the forms above.
        OSError: if it cannot be read.
    """
    return _read(file if isinstance(file, bytes) else Path(file).read_bytes())


def tensor(value: Any) -> Tensor | None:
    """The tensor that a value of the tree stands for, a view of the file's bytes; None for anything else.

    Arrays of NumPy are tensors, too.

    Raises:
        UnreadableError: if it does stand for a tensor, but for a sparse or quantised one, or one without its bytes.
    """
    if not isinstance(value, Made):
        return None
    module, _, name = value.name.rpartition(".")
    known = _ARRAYS if module.startswith("numpy") else _TENSORS if module.startswith("torch") else {}
    if name not in known:
        return None
    try:
        return known[name](value)
    except UnreadableError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError, OverflowError, MemoryError) as error:
        raise UnreadableError(f"it is damaged ({type(error).__name__})") from error


# Files.


def _read(data: bytes) -> Any:
    file = io.BytesIO(data)
    try:
        if data.startswith(b"PK\x03\x04"):
            return _read_zip(zipfile.ZipFile(file))
        content = read_pickle(file)
        return _read_older(file) if content == MAGIC else content
    except UnreadableError:
        raise
    except Exception as error:  # Damaged bytes can fail in any way.
        raise UnreadableError(type(error).__name__) from error


def _read_zip(archive: zipfile.ZipFile) -> Any:
    main = next(name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl"))
    folder = main.removesuffix("data.pkl")

    def record(name: str) -> bytes:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise UnreadableError("it is compressed, as torch leaves no file")
        try:
            return archive.read(name)
        except (zipfile.BadZipFile, EOFError) as error:
            raise UnreadableError(f"it is damaged ({error})") from error

    order = f"{folder}byteorder"
    swapped = order in archive.namelist() and record(order).decode() != sys.byteorder

    def persistent(identifier: Any) -> Storage:
        kind, named, key, _, numel = identifier
        if kind != "storage" or not isinstance(key, str) or not isinstance(numel, int):
            raise UnreadableError("it refers to something that is no storage")
        made = Storage(_dtype(named), numel, lambda: record(f"{folder}data/{key}"), swapped)
        return shared.setdefault((made.dtype, key), made)

    shared: dict[Any, Storage] = {}
    return read_pickle(io.BytesIO(record(main)), persistent)


def _read_older(file: io.BytesIO) -> Any:
    """After the magic number: version, facts on the machine, the tree, the keys of the storages, and their bytes."""
    for _ in range(2):
        read_pickle(file)
    start, types, parts = file.tell(), dict[str, Any](), dict[str, bytes]()
    read_pickle(file, lambda identifier: types.update({_key(identifier[2]): identifier[1]}))
    for key in map(_key, read_pickle(file)):
        (numel,) = struct.unpack("<q", file.read(8))
        dtype = _dtype(types[key])
        if dtype is None:  # how many bytes to skip is not known
            break
        parts[key] = file.read(max(numel, 0) * dtype.itemsize)
        if len(parts[key]) < numel * dtype.itemsize:
            raise UnreadableError("it ends early")

    def persistent(identifier: Any) -> Any:
        if identifier[0] == "module":  # class and source text of a pickled module
            return identifier[1]
        _, named, key, _, numel, *view = identifier
        dtype, found = _dtype(named), parts.get(_key(key), b"")
        if view and view[0] is not None:  # a part of another storage
            _, offset, numel = view[0]
            found = found[offset * (dtype or torch.uint8).itemsize :] if offset >= 0 else b""
        return Storage(dtype, int(numel), lambda: found)

    file.seek(start)
    return read_pickle(file, persistent)


def _key(value: Any) -> str:
    """A storage's key as text; to write out something nested, which none is, could take for ever."""
    if not isinstance(value, str | int):
        raise UnreadableError("it refers to something that is no storage")
    return str(value)


def _dtype(named: Any) -> torch.dtype | None:
    found = re.fullmatch(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage", getattr(named, "dotted", ""))
    return _DTYPES.get(found[1]) if found else None


# Tensors.


def _strided(value: Made) -> Tensor:
    """``_rebuild_tensor[_v2|_v3](storage, offset, sizes, strides, ...)``."""
    storage, offset, sizes, strides, *rest = value.args
    if isinstance(storage, Made) and storage.name == "torch.storage._load_from_bytes":
        storage = _read(_bytes(storage.args[0]))
    if not isinstance(storage, Storage):
        raise UnreadableError("it has no storage")
    named = rest[2] if value.name.endswith("_v3") else None
    if named is not None and (storage.swapped or named not in _NUMBERS):
        raise UnreadableError("it is of a type that is not read")
    if any(isinstance(x, Mapping) and x for x in rest[2:]):
        raise UnreadableError("it is a conjugated or negated view; save it resolved")
    numbers = [offset, *sizes, *strides]
    if len(sizes) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise UnreadableError("it is damaged (its sizes are no numbers)")
    memory = storage.memory
    if named is not None:
        memory = memory.view(_NUMBERS[named])
    if all(sizes) and offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) >= len(memory):
        raise UnreadableError("it is damaged (its sizes go beyond its bytes)")
    if math.prod(sizes) > max(len(memory), LARGEST):
        raise UnreadableError("it is damaged (its sizes repeat its bytes)")
    return memory.as_strided(sizes, strides, offset) if all(sizes) else memory.new_empty(sizes)


def _inner(value: Made) -> Tensor:
    """``_rebuild_parameter(data, ...)`` and others that hold a tensor."""
    found = tensor(value.args[0])
    if found is None:
        raise UnreadableError("it holds no tensor")
    return found


def _of_type(value: Made) -> Tensor:
    """``_rebuild_from_type_v2(function, type, args, state)``: a tensor that has attributes, or of a derived class."""
    function, _, args, *_ = value.args
    return _inner(Made("", (Made(function.dotted, args),)))


def _refused(reason: str) -> Callable[[Made], Tensor]:
    def refuse(_: Made) -> Tensor:
        raise UnreadableError(reason)

    return refuse


_TENSORS: Mapping[str, Callable[[Made], Tensor]] = {
    **dict.fromkeys(("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"), _strided),
    **dict.fromkeys(("_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter"), _inner),
    **dict.fromkeys(("_rebuild_device_tensor_from_numpy", "_rebuild_device_tensor_from_cpu_tensor"), _inner),
    "_rebuild_from_type_v2": _of_type,
    "_rebuild_sparse_tensor": _refused("it is sparse; save it by to_dense()"),
    "_rebuild_qtensor": _refused("it is quantised; save it by dequantize()"),
    "_rebuild_meta_tensor_no_storage": _refused("it is on the meta device, which keeps no values"),
    **dict.fromkeys(
        ("_rebuild_nested_tensor", "_rebuild_wrapper_subclass"), _refused("it is no plain tensor; save it as one")
    ),
}
"""By the function of torch that makes it."""


def _bytes(value: Any) -> bytes:
    """Bytes, which pickles of protocol 2 hold as text."""
    return value.args[0].encode("latin1") if isinstance(value, Made) and value.name == "_codecs.encode" else value


def _array(value: Made) -> Tensor:
    """``_reconstruct(ndarray, ...)`` with its state: version, shape, type, whether columns come first, and bytes."""
    _, shape, kind, columns_first, data = value.state
    code, order = str(kind.args[0]), (kind.state or (0, "="))[1]
    if not re.fullmatch(r"[fiu][1248]|b1", code) or order not in ("<", ">", "=", "|"):
        raise UnreadableError("it is an array of something else than numbers")
    found = np.frombuffer(_bytes(data), np.dtype(code).newbyteorder(order)).reshape(
        shape, order="F" if columns_first else "C"
    )
    return torch.from_numpy(found.astype(np.dtype(code), order="C"))


_ARRAYS: Mapping[str, Callable[[Made], Tensor]] = {"_reconstruct": _array}

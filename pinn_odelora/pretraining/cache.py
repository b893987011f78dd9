"""Pretrained networks kept between runs, each under a key made of everything that determines it.

The key is a digest of the source problem, the initial network and the settings of pretraining: their values, exactly,
and the files that define their classes, with those of the user's that these import; of the version of torch; and of
every Python file of this package. The last is coarse, since an edit of the figures, say, makes all kept networks out of
date. But a list of the files that take part would have to be kept by hand, and one missing from it would silently give
a network that the present code would not have made. Coarseness costs those who edit the package seconds of training,
and nobody else anything.

A problem or network that cannot be told exactly from another one has no key and is not kept: an equation made of
functions by ``po.problem``, a class that is defined in no file (in a notebook) or inside a function, values without an
exact form, such as a lambda, and networks with hooks. What a file of the user's reads at run time is not seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor, nn

import pinn_odelora
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem
from pinn_odelora.user_modules import file_of, modules

APART = ("builtins", "abc", "typing", "math", "torch", "numpy", "pinn_odelora")
"""Packages whose functions and classes their names determine: by the versions and the digest in the key."""


def folder() -> Path:
    """The user's cache folder, or the one that the environment variable PINN_ODELORA_CACHE names.

    Raises:
        InputError: if there is neither, since the user has no home.
    """
    if chosen := os.environ.get("PINN_ODELORA_CACHE"):
        return Path(chosen)
    with suppress(RuntimeError):  # for a user without a home; older versions give "~/.cache"
        if (found := platformdirs.user_cache_path("pinn_odelora", appauthor=False)).is_absolute():
            return found
    raise InputError(
        "There is no home folder in which pretrained networks can be kept; set the environment variable "
        "PINN_ODELORA_CACHE to a folder."
    )


def place(chosen: Path | None, key: str) -> Path | None:
    """The folder for a network; None where nobody chose one, and the user's own cannot be written or does not exist.

    Args:
        chosen: the folder, by default that of ``folder``.
        key: of the network; a folder that holds it already may be read-only.
    """
    if chosen is not None or os.environ.get("PINN_ODELORA_CACHE"):
        return chosen or folder()
    with suppress(InputError):
        if _holds(found := folder(), key) or not _obstacle(found):
            return found
    return None


def holds(chosen: Path | None, key: str | None) -> bool:
    """Whether there is a network of this key, in the folder that was chosen or in the user's."""
    return key is not None and (kept := place(chosen, key)) is not None and _holds(kept, key)


def _holds(kept: Path, key: str) -> bool:
    return kept.is_dir() and any(kept.glob(f"*-{key}.safetensors"))


def _obstacle(kept: Path) -> str | None:
    """Why a folder cannot be made or written to; empty if it can."""
    try:
        kept.mkdir(parents=True, exist_ok=True)
        return "" if os.access(kept, os.W_OK | os.X_OK) else "no permission"
    except OSError as error:
        return error.strerror


def check_writable(chosen: Path | None, key: str | None) -> None:
    """Check, before a network is trained, that it can be kept; a folder that holds it already may be read-only.

    Args:
        chosen: the folder, by default the user's.
        key: of the network; None for one that is not kept.

    Raises:
        InputError: if a folder that was chosen cannot be made or written to.
    """
    if key is None or (kept := place(chosen, key)) is None or _holds(kept, key):
        return
    if reason := _obstacle(kept):
        raise InputError(
            f"Pretrained networks cannot be kept in {kept} ({reason}); set pretrain.cache or the environment variable "
            "PINN_ODELORA_CACHE to a folder that can be written."
        )


def key(problem: Problem, net: nn.Module, settings: Any) -> str | None:
    """The digest of all that determines a pretrained network, 16 hexadecimal digits.

    None if problem or network cannot be told exactly from another one; such a network must not be kept.

    Args:
        problem: at its source parameter.
        net: before pretraining.
        settings: the dataclass of pretraining's settings.
    """
    if not getattr(problem, "has_source", True):
        return None
    try:
        parts = [_exact(problem), _exact(net), _exact(settings)]
        files = [_digest(file_of(module).read_bytes()) for module in modules(problem, net, ())]
    except (_InexactError, OSError):
        return None
    return _digest(json.dumps([*parts, files, torch.__version__, np.__version__, package()]).encode())[:16]


class _InexactError(Exception):
    """A value that has no exact form."""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def package() -> list[tuple[str, str]]:
    """The Python files of this package by their names, with their digests (SHA-256)."""
    root = Path(pinn_odelora.__file__).parent
    return sorted((file.relative_to(root).as_posix(), _digest(file.read_bytes())) for file in root.rglob("*.py"))


def _exact(value: Any) -> Any:
    """A value as lists and strings that differ whenever two values do.

    Raises:
        _InexactError: if it has no such form.
    """
    kind = type(value).__qualname__
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes() | np.generic() | torch.dtype():
            return [kind, repr(value)]
        case Tensor():
            return [kind, *_tensor(value)]
        case np.ndarray() if not value.dtype.hasobject:
            return [kind, str(value.dtype), value.shape, _digest(np.ascontiguousarray(value).tobytes())]
        case list() | tuple():
            return [kind, [_exact(item) for item in value]]
        case Mapping():
            return [kind, sorted([json.dumps(_exact(name)), _exact(item)] for name, item in value.items())]
        case type() | FunctionType() | BuiltinFunctionType():
            return _named(value)
        case nn.Module():
            return [_lineage(value), _module(value)]
    if dataclasses.is_dataclass(value):
        return [_lineage(value), [(f.name, _exact(getattr(value, f.name))) for f in dataclasses.fields(value)]]
    raise _InexactError(value)


def _tensor(x: Tensor) -> list[Any]:
    if x.layout is not torch.strided:
        raise _InexactError(x)
    plain = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [str(x.dtype), x.requires_grad, list(x.shape), _digest(plain.numpy().tobytes())]


def _module(module: nn.Module) -> list[Any]:
    """Everything that a module holds; tensors that are one are named by their first place."""
    places: dict[int, str] = {}
    found = []
    for prefix, part in module.named_modules(remove_duplicate=False):
        own, usual = vars(part), vars(nn.Module())
        if any(own[name] for name in usual if "hooks" in name):
            raise _InexactError(part)
        for name, x in sorted({**own["_parameters"], **own["_buffers"]}.items()):
            place = places.setdefault(id(x), f"{prefix}.{name}") if x is not None else ""
            found.append([prefix, name, place, _exact(x)])
        rest = {name: x for name, x in own.items() if name not in usual} | {"training": part.training}
        found.append([prefix, places.setdefault(id(part), prefix), _lineage(part), _exact(rest)])
    return found


def _lineage(value: Any) -> list[Any]:
    """The class of a value with its bases, each with the file that defines it."""
    return [_named(cls) for cls in type(value).__mro__]


def _named(thing: Any) -> list[str]:
    """A class or function by its name and the file that defines it, if it can be found by that name."""
    module, name = thing.__module__ or "", thing.__qualname__
    package = module.partition(".")[0]
    if isinstance(thing, BuiltinFunctionType):
        if package not in APART:  # as x.sin, a method bound to a value, which is of no module
            raise _InexactError(thing)
        return [module, name]
    try:
        found = reduce(getattr, name.split("."), sys.modules[module])
        path = None if package in APART else inspect.getsourcefile(thing)
    except (KeyError, AttributeError, TypeError, OSError):
        raise _InexactError(thing) from None
    if found is not thing or (path is None and package not in APART):
        raise _InexactError(thing)
    return [module, name, _digest(Path(path).read_bytes()) if path else ""]

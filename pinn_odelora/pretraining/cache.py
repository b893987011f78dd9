"""Pretrained networks kept between runs, each under a key made of everything that determines it.

The key is a digest of the source problem with its source file, the network with its source file, the settings of
pretraining, the version of torch, and the code of this package that takes part.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pinn_odelora
from pinn_odelora.errors import InputError
from pinn_odelora.formulation import Problem

PARTS = (
    *("derivatives", "geometry", "matrices.py", "matrix_problem.py", "metrics.py", "nets", "optim/lbfgs.py"),
    *("points.py", "formulation.py", "reference.py", "system.py", "training/phases.py"),
)
IMPLICIT = (
    *("gradient.py", "linearisation", "optim/groups.py", "optim/implicit.py", "optim/variables.py"),
    *(f"integrators/{name}.py" for name in ("control", "damped", "implicit", "iterative", "plan", "solvers")),
    *(f"training/{name}.py" for name in ("data", "evaluation", "following", "growth", "rows")),
)
"""Further code that natural gradient runs."""


def folder() -> Path:
    """The user's cache folder, or what PINN_ODELORA_CACHE names."""
    if chosen := os.environ.get("PINN_ODELORA_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pinn_odelora"


def check_writable(chosen: Path | None, key: str | None) -> None:
    """Refuse, before a network is trained, a folder in which it could not be kept; one that holds it may be read-only.

    Raises:
        InputError: if the folder, by default the user's, cannot be made or written to.
    """
    if key is None:
        return
    kept = chosen or folder()
    if kept.is_dir() and any(kept.glob(f"*-{key}.safetensors")):
        return
    try:
        kept.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(kept, os.W_OK | os.X_OK) else "no permission"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise InputError(f"Pretrained networks cannot be kept in {kept} ({reason}); set pretrain.cache to a folder.")


def key(problem: Problem, net: nn.Module, settings: Any) -> str | None:
    """The digest of all that determines a pretrained network, 16 hexadecimal digits.

    None where problem or network are defined in no file, as in a notebook: two of them could not be told apart.
    """
    sources = {name: _source(type(part)) for name, part in (("problem", problem), ("net", net), ("by", settings))}
    if None in sources.values() or not problem.has_source:
        return None
    weights = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        weights.update(name.encode() + tensor.detach().cpu().double().numpy().tobytes())
    identity = {
        "problem": [type(problem).__qualname__, dataclasses.asdict(problem), sources["problem"]],
        "net": [repr(net), weights.hexdigest(), sources["net"]],
        "pretraining": [dataclasses.asdict(settings), sources["by"]],
        "torch": torch.__version__,
        "code": _code(PARTS if settings.finish == "lbfgs" else (*PARTS, *IMPLICIT)),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _source(cls: type) -> str | None:
    try:
        path = inspect.getsourcefile(cls)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
    except (OSError, TypeError):  # what Python raises for a class that was typed in
        return None


def _code(parts: Iterable[str]) -> str:
    root = Path(pinn_odelora.__file__).parent
    digest = hashlib.sha256()
    for part in parts:
        for file in sorted([root / part] if part.endswith(".py") else (root / part).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()

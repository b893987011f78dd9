"""Adapt a pretrained physics-informed network by training low-rank factors along an ODE.

``load(run)`` gives the adapted solution of a finished run; ``pinn_odelora.optim`` has the optimiser alone.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # torch and lightning take seconds to import; `python train.py --help` must not wait for them.
    if name == "load":
        from pinn_odelora.runs.load import load

        return load
    raise AttributeError(f"module 'pinn_odelora' has no attribute {name!r}")

"""Step-size control of embedded pairs (Hairer, Nørsett and Wanner, 1993, II.4; Gustafsson, 1991).

The error of a step is measured as  ‖e‖ = sqrt(mean_i (e_i / (atol + rtol · max(|y_i|, |y⁺_i|)))²)  and accepted when
it is at most 1. The next step is  h · 0.9 · ‖e‖^(-0.7 q) · ‖e_prev‖^(0.4 q), q = 1/(order + 1): the second factor damps
the oscillation of h that stiffness causes when h sits at the stability limit.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pinn_odelora.errors import InputError, unknown

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 5.0
PRECISIONS = ("float32", "float64")


def error_norm(error: list[Tensor], y: list[Tensor], new: list[Tensor], rtol: float, atol: float) -> float:
    """‖e‖ as above, infinite when an entry is not finite."""
    ratios = [
        (e / (atol + rtol * torch.maximum(a.abs(), b.abs()))).reshape(-1) for e, a, b in zip(error, y, new, strict=True)
    ]
    norm = float(torch.cat(ratios).double().square().mean().sqrt())
    return norm if math.isfinite(norm) else math.inf


def first_step(y: list[Tensor], velocity: list[Tensor], rtol: float, atol: float) -> float:
    """A cautious first h: one hundredth of the time in which the state would change by its own size."""
    size, speed = (error_norm(x, y, y, rtol, atol) for x in (y, velocity))
    return 0.01 * size / speed if speed > 0 and size > 0 else 1e-3


def next_step(h: float, error: float, previous: float, exponent: float) -> float:
    """The next h after a step with these errors; ``exponent`` is q."""
    if error == math.inf:
        return SMALLEST * h
    factor = SAFETY * max(error, 1e-10) ** (-0.7 * exponent) * previous ** (0.4 * exponent)
    return h * min(LARGEST, max(SMALLEST, factor))


def check_positive(integrator: Any, *names: str) -> None:
    """Raise ``InputError`` unless the named settings of an integrator are positive numbers, or None."""
    for name in names:
        value = getattr(integrator, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"integrator.{name} is {value!r}, but it must be a positive number.")


def check_precision(name: str) -> None:
    """Raise ``InputError`` unless it is that of a Gram matrix."""
    if name not in PRECISIONS:
        raise unknown("integrator.gram_dtype", name, PRECISIONS)

"""Step-size control by an error estimate (Hairer, Nørsett and Wanner, 1993, II.4; Gustafsson, 1991).

The error of a step is measured as  ‖e‖ = sqrt(mean_i (e_i / (atol + rtol · max(|y_i|, |y⁺_i|)))²)  and accepted when
it is at most 1. The next step is  h · 0.9 · ‖e‖^(-0.7 q) · ‖e_prev‖^(0.4 q), q = 1/(order + 1): the second factor damps
the oscillation of h that stiffness causes when h sits at the stability limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 5.0
TRIALS = 40
LEAST_ERROR = 1e-4
"""What is remembered of an error at least: a lucky step must not make the next one reckless."""

T = TypeVar("T")


class Accepted(NamedTuple, Generic[T]):
    """What the accepted trial gave, its h, the h suggested for the next step, its error, and how many were refused."""

    result: T
    h: float
    next_h: float
    error: float
    rejected: int


def controlled(
    attempt: Callable[[float], tuple[T, float]],
    h: float,
    previous: float,
    exponent: float,
    longest: float = math.inf,
) -> Accepted[T]:
    """Shrink h until the error of an attempt is at most 1.

    Args:
        attempt: h -> (result, error); it may raise ``FloatingPointError``, which counts as an infinite error.
        h: the first one to try.
        previous: error of the last accepted step.
        exponent: q.
        longest: h at most.

    Raises:
        FloatingPointError: if no h within ``TRIALS`` trials is accepted.
    """
    for rejected in range(TRIALS):
        h = min(h, longest)
        failure: FloatingPointError | None = None
        try:
            result, error = attempt(h)
        except FloatingPointError as caught:
            failure, error = caught, math.inf
        if error <= 1:
            return Accepted(result, h, next_step(h, error, previous, exponent), max(error, LEAST_ERROR), rejected)
        # An error that is NaN counts as infinite.
        h = min(next_step(h, error if error < math.inf else math.inf, 1.0, exponent), 0.9 * h)
    raise FloatingPointError(f"No step down to h = {h:.1e} meets the tolerance with finite numbers.") from failure


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

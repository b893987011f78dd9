"""Step-size control by an error estimate (Hairer, Nørsett and Wanner, 1993, II.4; Gustafsson, 1991).

A step is accepted if its error  ‖e‖ = sqrt(mean_i (e_i / (atol + rtol · max(|y_i|, |y⁺_i|)))²)  is at most 1. The next
step size is  h · 0.9 · ‖e‖^(-0.7 q) · ‖e_prev‖^(0.4 q), q = 1/(order + 1); the second factor damps the oscillations of
h that occur at the stability limit of a stiff flow.
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
"""Lower bound on the stored error, so that an exceptionally small one does not inflate the next step."""

T = TypeVar("T")


class Accepted(NamedTuple, Generic[T]):
    """An accepted trial: its result, its h, the h suggested for the next step, its error, and the rejected trials."""

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
    """Reduce h until the error of a trial step is at most 1.

    Args:
        attempt: h -> (result, error); it may raise ``FloatingPointError``, which counts as an infinite error.
        h: the first step size to try.
        previous: error of the last accepted step.
        exponent: q.
        longest: upper bound on h.

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
        # NaN counts as an infinite error. One that hardly depends on h is due to rounding, as it is at a minimum: there
        # the estimate becomes small only for an h far below, so that every further rejection shortens it more.
        h = min(next_step(h, error if error < math.inf else math.inf, 1.0, exponent), 0.9 ** max(1, rejected - 3) * h)
    raise FloatingPointError(f"No step down to h = {h:.1e} meets the tolerance with finite numbers.") from failure


def error_norm(error: list[Tensor], y: list[Tensor], new: list[Tensor], rtol: float, atol: float) -> float:
    """‖e‖ as above; infinite if an entry is NaN or infinite.

    Args:
        error, y, new: the error e, and the state before and after the step, as lists of tensors of equal shapes.
        rtol, atol: tolerances.
    """
    ratios = [
        (e / (atol + rtol * torch.maximum(a.abs(), b.abs()))).reshape(-1) for e, a, b in zip(error, y, new, strict=True)
    ]
    norm = float(torch.cat(ratios).double().square().mean().sqrt())
    return norm if math.isfinite(norm) else math.inf


def first_step(y: list[Tensor], velocity: list[Tensor], rtol: float, atol: float) -> float:
    """A conservative first h: one hundredth of the time in which y would change by its own norm.

    Args:
        y, velocity: lists of tensors of equal shapes.
        rtol, atol: tolerances.
    """
    size, speed = (error_norm(x, y, y, rtol, atol) for x in (y, velocity))
    return 0.01 * size / speed if speed > 0 and size > 0 else 1e-3


def next_step(h: float, error: float, previous: float, exponent: float) -> float:
    """The step size after a step of size h.

    Args:
        h: its size.
        error, previous: its error, and that of the last accepted step.
        exponent: q.
    """
    if error == math.inf:
        return SMALLEST * h
    if error == 0:  # at rest, where every h is as good, and a growing one would overflow in time
        return h
    factor = SAFETY * max(error, 1e-10) ** (-0.7 * exponent) * previous ** (0.4 * exponent)
    return h * min(LARGEST, max(SMALLEST, factor))

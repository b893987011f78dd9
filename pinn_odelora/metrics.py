"""Errors against a reference solution."""

from __future__ import annotations

import math

from torch import Tensor, linalg


def relative_l2(prediction: Tensor, reference: Tensor | None) -> float:
    """‖u − u*‖₂ / ‖u*‖₂ over all points and fields; NaN without a reference.

    Args:
        prediction: u, (N, fields).
        reference: u*, (N, fields), or None.
    """
    if reference is None:
        return math.nan
    return float(linalg.vector_norm(prediction - reference) / linalg.vector_norm(reference))


def known(x: float | None) -> float | None:
    """None for NaN, which stands for what is unknown; everything else as it is."""
    return None if x is None or math.isnan(x) else x


def max_error(prediction: Tensor, reference: Tensor | None) -> float:
    """max |u − u*| over all points and fields, in the units of u; NaN without a reference.

    Args:
        prediction: u, (N, fields).
        reference: u*, (N, fields), or None.
    """
    return math.nan if reference is None else float((prediction - reference).abs().max())

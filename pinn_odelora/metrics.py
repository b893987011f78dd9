"""Errors against a reference solution."""

from __future__ import annotations

from torch import Tensor, linalg


def relative_l2(prediction: Tensor, reference: Tensor) -> float:
    """‖u − u*‖₂ / ‖u*‖₂ over all points and fields together; both (N, fields)."""
    return float(linalg.vector_norm(prediction - reference) / linalg.vector_norm(reference))


def max_error(prediction: Tensor, reference: Tensor) -> float:
    """max |u − u*| over all points and fields, in the units of u."""
    return float((prediction - reference).abs().max())

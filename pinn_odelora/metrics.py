"""Errors against a reference; relative ones are of values in comparable units, see ``nets.scaled.in_field_units``."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def relative_l2_by_field(prediction: Tensor, reference: Tensor | None, fields: Sequence[str]) -> dict[str, float]:
    """‖u_j − u*_j‖₂ / ‖u*_j‖₂ over all points, by field; none without a reference, or with one field.

    Args:
        prediction: u, (N, fields).
        reference: u*, (N, fields), or None.
        fields: their names.
    """
    if reference is None or len(fields) == 1:
        return {}
    errors = linalg.vector_norm(prediction - reference, dim=0) / linalg.vector_norm(reference, dim=0)
    return dict(zip(fields, errors.tolist(), strict=True))


def max_error(prediction: Tensor, reference: Tensor | None) -> float:
    """max |u − u*| over all points and fields, in the units of u; NaN without a reference.

    Args:
        prediction: u, (N, fields).
        reference: u*, (N, fields), or None.
    """
    return math.nan if reference is None else float((prediction - reference).abs().max())

"""The history of a run in few numbers: thinned, in 32 bits, as base64.

Rows are put into groups of equal size, and of each group the first and the one with the largest loss are kept: a rise
of the loss, which is what stability is about, is never thinned away. The last row is kept in any case.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import numpy as np

from pinn_odelora.loop import Row

COLUMNS = {
    "step": "step",
    "evals": "cost/gradient_evals",
    "seconds": "cost/seconds",
    "rel_l2": "error/rel_l2",
    "loss": "loss",
    "heldout": "stability/heldout_loss",
    "iterate": "stability/iterate_loss",
    "balance": "lora/balance",
    "cond_A": "lora/cond_A",
    "cond_B": "lora/cond_B",
}
"""What the page draws, by its own names."""
BYTES = 1_400_000
"""Of all curves together; a third more as text."""
FEWEST, MOST = 16, 240
"""Rows of one run."""


def rows_each(runs: int) -> int:
    """How many rows of each run there is room for."""
    return max(FEWEST, min(MOST, BYTES // (4 * len(COLUMNS) * max(runs, 1))))


def thinned(rows: Sequence[Row], most: int) -> list[Row]:
    """At most ``most`` of the rows, the first, the last and the largest losses among them."""
    if len(rows) <= most:
        return list(rows)
    kept = {len(rows) - 1}
    for group in np.array_split(np.arange(len(rows) - 1), (most - 1) // 2):
        kept |= {int(group[0]), max(map(int, group), key=lambda k: _loss(rows[k]))}
    return [rows[k] for k in sorted(kept)]


def encoded(rows: Sequence[Row]) -> dict[str, str]:
    """Every column that has a value, as little-endian float32 in base64; NaN where a row has none."""
    found = {}
    for name, column in COLUMNS.items():
        values = np.array([row.get(column, math.nan) for row in rows], dtype=np.float64)
        if np.isfinite(values).any():
            with np.errstate(over="ignore"):  # infinite in 32 bits
                found[name] = base64.b64encode(values.astype("<f4").tobytes()).decode()
    return found


def _loss(row: Row) -> float:
    value = row.get("stability/iterate_loss", row.get("loss", math.nan))
    return math.inf if math.isnan(value) else value

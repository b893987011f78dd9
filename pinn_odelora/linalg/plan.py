"""The choice of a step's linear algebra, from its predicted operations and bytes, before anything is computed.

For R rows and P columns, in multiplications and in numbers stored at once:

    normal    R P² / 2 + P³ / 6     R P + 2 P²            J and its Gram matrix
    kernel    R² P / 2 + R³ / 6     R P + 2 R²            J and J Jᵀ
    pairs     C² R² S  + R³ / 6     C R S + 2 R²          J Jᵀ from C pairs of each layer, S = Σ (m + n); full weights
    cg        2 · 128 R P           C R S + 3 · 256 P     products only, for the sketch of ``conjugate_gradients``

The cheapest form that fits the memory is used. Conjugate gradients always fit, since blocks that do not are recomputed
for every product, but are used only if no other form does.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

BYTES = 8
SKETCH, LARGEST = 128, 256
"""Typical and largest number of columns of the sketch of conjugate gradients."""
CHANNELS = 4
"""Derivative channels C for a typical second-order equation."""

Form = Literal["normal", "kernel", "pairs", "cg"]
NAMES: dict[Form, str] = {
    "normal": "normal equations",
    "kernel": "kernel matrix",
    "pairs": "kernel matrix, Jacobian not formed",
    "cg": "conjugate gradients in chunks",
}


class Shape(NamedTuple):
    """The size of J: rows R, columns P, S = Σ (m + n) over the layers, and whether all weights are full matrices."""

    rows: int
    columns: int
    sides: int
    whole: bool


class Plan(NamedTuple):
    """The chosen form, and its bytes, those of evaluating the residuals not counted."""

    shape: Shape
    form: Form
    bytes: float

    @property
    def unusual(self) -> bool:
        """Whether J is not formed."""
        return self.form in ("pairs", "cg")

    def __str__(self) -> str:
        size = f"{self.shape.rows:,} rows x {self.shape.columns:,} columns"
        return f"{size}: {NAMES[self.form]}, about {self.bytes / 2**20:,.0f} MiB"


def plan(shape: Shape, memory: float) -> Plan:
    """The cheapest form within ``memory`` bytes, ``cg`` if none fits.

    Args:
        shape: the size of J.
        memory: in bytes.
    """
    costs = predicted(shape)
    fitting = [form for form in costs if costs[form].bytes <= memory and form != "cg"]
    form = min(fitting, key=lambda f: costs[f].operations) if fitting else "cg"
    return Plan(shape, form, min(costs[form].bytes, memory))


class Cost(NamedTuple):
    """Predicted multiplications and bytes."""

    operations: float
    bytes: float


def predicted(shape: Shape) -> dict[Form, Cost]:
    """The cost of every form available for a J of this size."""
    R, P, S = shape.rows, shape.columns, shape.sides
    pairs = CHANNELS * R * S
    costs: dict[Form, Cost] = {
        "normal": Cost(R * P**2 / 2 + P**3 / 6, BYTES * (R * P + 2 * P**2)),
        "kernel": Cost(R**2 * P / 2 + R**3 / 6, BYTES * (R * P + 2 * R**2)),
        "cg": Cost(2 * SKETCH * R * P, BYTES * (pairs + 3 * LARGEST * P)),
    }
    if shape.whole:
        costs["pairs"] = Cost(CHANNELS**2 * R**2 * S + R**3 / 6, BYTES * (2 * R**2 + pairs))
    return costs

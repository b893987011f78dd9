"""How collocation points are drawn, and how many a step takes."""

from __future__ import annotations

from dataclasses import dataclass

from pinn_odelora.errors import RefusedValueError
from pinn_odelora.rules import boolean, check, null, part, whole

FIXED = "where points are fixed: only fresh ones can"


@dataclass(frozen=True)
class Sampling:
    """The collocation points of a run; the defaults are those of ``points=residual``.

    Args:
        fresh: whether every step draws new points, or all steps share the first ones.
        interior: points drawn for each term of full dimension.
        boundary: points drawn for each of the other terms, initial and boundary conditions.
        residual: the fraction of the interior points drawn in proportion to the size of the residual (residual-based
            adaptive sampling, RAD; Wu, Zhu, Tan, Kartha and Lu, 2023, arXiv 2207.10289), from 0 to 1.
        batch_size: the largest batch, in residuals of all drawn points together; None is all of them.
        initial_batch_size: the batch of the first step, in residuals, which is doubled when the generalisation gap
            exceeds the progress left; None starts with the largest batch.
        best_iterate: whether the iterate with the smallest loss on a validation set is returned, or the last one.

    Raises:
        InputError: if a number is out of its range, or fixed points are to follow the residual or to grow in number.
    """

    fresh: bool = True
    interior: int = 4000
    boundary: int = 200
    residual: float = 0.3
    batch_size: int | None = 4000
    initial_batch_size: int | None = 250
    best_iterate: bool = True

    @classmethod
    def even(cls, interior: int = 1000, boundary: int = 200, best_iterate: bool = True) -> Sampling:
        """New points at every step, all of them evenly drawn: ``points=fresh``."""
        return cls(True, interior, boundary, 0.0, None, None, best_iterate)

    @classmethod
    def fixed(cls, interior: int = 1000, boundary: int = 200) -> Sampling:
        """The same points at every step: ``points=fixed``."""
        return cls(False, interior, boundary, 0.0, None, None, False)

    def __post_init__(self) -> None:
        check(self, fresh=boolean, interior=whole(1), boundary=whole(1), residual=part, best_iterate=boolean)
        check(self, batch_size=whole(1) | null, initial_batch_size=whole(1) | null)
        if self.residual and not self.fresh:
            raise RefusedValueError("residual", self.residual, f"0 {FIXED} follow the residual")
        if self.initial_batch_size is not None and not self.fresh:
            raise RefusedValueError("initial_batch_size", self.initial_batch_size, f"None {FIXED} grow in number")

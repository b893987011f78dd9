"""How many rows a step takes: few at first, more once a step fits its own points better than it fits others.

A step of few rows is cheap, and far from the solution they tell as well as many which way to go. Near it they do not:
the step brings down the loss on its own points and leaves it on all others. The next step's points show which it was,
and cost nothing, since its linearisation begins with their loss. With L_k the loss on the points of step k,

    q = L_{k+1}(y_{k+1}) / L_k(y_{k+1}) ,        R_{k+2} = R_{k+1}, or twice as many where q > 2 ,

up to all. Growing the sample by a test on the sample itself is known from stochastic optimisation (Byrd, Chin, Nocedal
and Wu, 2012, Math. Program. 134); this test is our own, since it needs a step that is judged on its own points.
"""

from __future__ import annotations

from torch.optim import Optimizer

LIMIT = 2.0
"""q above which rows are added."""
FACTOR = 2


def ended_at(optimizer: Optimizer) -> float | None:
    """The loss on a step's own points where it ended; None from an optimiser that does not look there."""
    return optimizer.param_groups[0].get("memory", {}).get("ended")


def grown(rows: int, most: int, began: float, ended_before: float | None, ended: float | None) -> int:
    """Rows for the step after one with so many.

    Args:
        rows: of the step.
        most: all rows there may be.
        began: the loss on the step's own points where it began.
        ended_before: the loss on the points of the step before, where that one ended; None where it is not known.
        ended: the same of the step itself; None where it is not known, and then there is nothing to wait for.
    """
    if ended is None:
        return most
    fits_its_own = ended_before is not None and began > LIMIT * ended_before
    return min(most, FACTOR * rows) if fits_its_own else rows

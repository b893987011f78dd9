"""How many rows a step takes: few at first, more once steps fit their own points better than others.

A step of few rows is cheap, and far from the solution they tell as well as many which way to go. Near it they do not:
the step brings down the loss on its own points and leaves it on all others. The next step's points show which it was,
and cost nothing, since its linearisation begins with their loss. With L_k the loss on the points of step k,

    q_k = L_{k+1}(y_{k+1}) / L_k(y_{k+1}) ,      g_k = (g_{k-1} + log q_k) / 2 ,      R doubles where g_k > log 1.5 ,

up to all rows; g starts at 0, and again at every doubling. A least-squares fit of P numbers to R rows that are mostly
noise has q = (R + P) / (R - P): it is 1.5 at R = 5 P.

Growing a sample by a test on the sample itself is known from stochastic optimisation (Byrd, Chin, Nocedal and Wu, 2012,
Math. Program. 134); this test is our own, since it needs a step that is judged on its own points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer

LIMIT = 1.5
FACTOR = 2


@dataclass
class Growth:
    """Rows of the next step, and what decides on them.

    Attributes:
        rows: R; 0 where no step has been configured yet.
        gap: g.
        ended: the loss on the points of the last step where it ended; None where that is not known.
    """

    rows: int = 0
    gap: float = 0.0
    ended: float | None = None

    def look_back(self, most: int, began: float, ended: float | None) -> None:
        """After a step.

        Args:
            most: all rows there may be.
            began: the loss on its own points where it began.
            ended: the same where it ended; None from a scheme that does not look there, which then has all rows.
        """
        if ended is None:
            self.rows = most
        elif self.ended and began > 0:
            self.gap = (self.gap + math.log(began / self.ended)) / 2
            if self.gap > math.log(LIMIT):
                self.rows, self.gap = min(most, FACTOR * self.rows), 0.0
        self.ended = ended


def ended_at(optimizer: Optimizer) -> float | None:
    """The loss on a step's own points where it ended; None from an optimiser that does not look there."""
    return optimizer.param_groups[0].get("memory", {}).get("ended")

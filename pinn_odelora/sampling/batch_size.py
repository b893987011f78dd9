"""How many rows a step takes: few at first, and twice as many whenever that pays.

A step of few rows is cheap, and far from the solution they tell as well as many which way to go. Near it they do not:
the step brings down the loss on its own points and leaves it on all others. The next step's points show which it was,
and cost nothing, since its linearisation begins with their loss. With L_k the loss on the points of step k,

    g = log L_{k+1}(y_{k+1}) / L_k(y_{k+1}) ,        the gap: how much of a step's gain is on its own points alone,
    f = log L_k(y_k) / L_{k+1}(y_{k+1}) ,            the fall that is left,

both averaged over steps, g with weights 2⁻¹, 2⁻², … from 0 on, f with ¼, ¼·¾, … from its first value on. A
least-squares fit of P numbers to R > P rows that are mostly noise has g = log (R + P)/(R - P), so that twice the rows
close about half of the gap; they cost c times as much, c = 4 where a kernel of the rows is factored and 2 otherwise.
They pay where (f + g/2)/c > f:

    R doubles where  g > 2 (c - 1) f  and  g > log 1.5 ,

up to all rows R_max, and g begins anew. Below log 1.5, which is R = 5 P, there is little to close. The first gap
after a doubling is still that of the fewer rows: where it is above 2 log 1.5, rows double twice. Where points follow
the residual, L is larger on the next points for that reason too, by up to log 1.1 to log 1.5 for three tenths of them.

Between P/2 and 2 P rows a step meets its own points nearly, whatever they are, and is at its worst on all others: the
peak of double descent (Belkin, Hsu, Ma and Mandal, 2019, arXiv 1812.11118). Below it every step meets its own points,
and what it knew of those before is in its momentum: the price of a step, R² P, decides then, not its gap. So rows rest
at as many as go with enough points, if these are at most P/2: fewer see too little of an equation by themselves, and
with more of them errors at equal seconds were larger.

Growing a sample by a test on the sample itself is known from stochastic optimisation (Byrd, Chin, Nocedal and Wu, 2012,
Math. Program. 134); this test is our own, since it needs a step that is judged on its own points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from torch.optim import Optimizer

FACTOR = 2
LEAST_GAP = math.log(1.5)


class Ended(NamedTuple):
    """What an optimiser says of its last step: the loss on the step's own points where it ended, c, and P.

    ``loss`` is None from an optimiser that does not look there.
    """

    loss: float | None
    price: float
    columns: int = 0


def ended(optimizer: Optimizer) -> Ended:
    memory = optimizer.param_groups[0].get("memory", {})
    price = 4.0 if memory.get("form") in ("kernel", "pairs") else 2.0
    return Ended(memory.get("ended"), price, memory.get("columns", 0))


def below_the_peak(rows: int, columns: int) -> bool:
    """Whether these rows lie below the peak of double descent."""
    return 2 * rows <= columns


def more(rows: int, most: int, enough: int, columns: int) -> int:
    """Twice the rows; or as many as are enough, and those that there are beyond that, where they are to rest."""
    twice, rest = min(most, FACTOR * rows), max(rows, enough)
    return rest if rest < twice and below_the_peak(rest, columns) else twice


def serve(columns: int, most: int, enough: int, each: float) -> bool:
    """Whether steps can do with so many columns: all rows are ``each`` for a column, or steps rest at ``enough`` rows
    with at most four columns for each of them.
    """
    rest = enough <= most and below_the_peak(enough, columns)
    return each * columns <= most or (rest and columns <= 4 * enough)


@dataclass
class Growth:
    """Rows of the next step, and what decides on them; plain numbers, so that it can be saved.

    Attributes:
        rows: R; 0 where no step has been configured yet.
        gap, fall: g and f; f is None before it has been seen.
        began, ended: of the last step, the loss on its own points at both ends; None where that is not known.
    """

    rows: int = 0
    gap: float = 0.0
    fall: float | None = None
    began: float | None = None
    ended: float | None = None

    def look_back(self, most: int, began: float, last: Ended, still: float = 0.0, enough: int = 0) -> None:
        """After a step that began with that loss on its own points; ``most`` are all rows there may be.

        ``still`` is the part of that loss at points that every step has, such as measured ones. The last step ended
        where this one began, so it ended with that part as well: g is taken without it, f with it. ``enough`` are the
        rows at which steps rest where these lie below the peak.

        A scheme that does not look where its steps end has all rows, since nothing can be seen of it.
        """
        if last.loss is None:
            self.rows = most
        elif self._tells(began, still):
            self.gap = (self.gap + math.log((began - still) / (self.ended - still))) / 2
            fall = math.log(self.began / began)
            self.fall = fall if self.fall is None else (3 * self.fall + fall) / 4
            pays = self.gap > max(LEAST_GAP, 2 * (last.price - 1) * self.fall)
            if pays and (rows := more(self.rows, most, enough, last.columns)) > self.rows:
                self.rows, self.gap = rows, 0.0
        self.began, self.ended = began, last.loss

    def _tells(self, began: float, still: float) -> bool:
        """Whether all three losses are known and have a logarithm, also without the part that stays."""
        known = self.began is not None and self.ended is not None
        return known and still < began < math.inf and still < self.ended < math.inf and 0 < self.began < math.inf

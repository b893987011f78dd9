"""Adaptive batch size: double the residuals when the generalisation gap exceeds the progress left.

A step on few residuals is cheap, and far from the solution as good a direction as any. Near it the step reduces the
loss on its own points and leaves it on all others. The next step's points show which it was, at no cost, since its
linearisation begins with their loss. With L_k the loss on the points of step k,

    g = log L_{k+1}(y_{k+1}) / L_k(y_{k+1}) ,        the generalisation gap of step k,
    f = log L_k(y_k) / L_{k+1}(y_{k+1}) ,            its progress,

both averaged over steps, g with weights 2⁻¹, 2⁻², … from 0 on, f with ¼, ¼·¾, … from its first value on. A
least-squares fit of P numbers to R > P residuals that are mostly noise has g = log (R + P)/(R - P), so that doubling R
closes about half of the gap; it costs c times as much, c = 4 where a kernel of the residuals is factored and 2
otherwise. It pays where (f + g/2)/c > f:

    R doubles where  g > 2 (c - 1) f  and  g > log 1.5 ,

up to the largest batch R_max, and g starts again from 0. Below log 1.5, which is R = 5 P, there is little to close. The
first gap after a doubling is still that of the smaller batch: where it is above 2 log 1.5, R doubles twice. Where
points follow the residual, L is larger on the next points for that reason too, by up to log 1.1 to log 1.5 for three
tenths of them.

On a plateau steps on few points undo each other: they hardly move, so that g stays small, and the loss does not fall.
So the batch is also enlarged where in 40 steps at one size the mean of log L over eight of them has not fallen by a
tenth of L.

Between P/2 and 2 P residuals a step interpolates its points nearly, whatever they are, and is at its worst on all
others: the peak of double descent (Belkin, Hsu, Ma and Mandal, 2019, arXiv 1812.11118). Below it every step
interpolates its points, and what it knew of those before is in its momentum: the price of a step, R² P, decides then,
not its gap. So the batch stays at the smallest sufficient size, that of 800 interior points, where this is at most P/2:
smaller batches see too little of an equation, and with larger ones errors at equal seconds were larger. The number 800
was chosen on the problems of the race (docs/results/defaults.md).

At such a batch two things hold the loss. One is what is left along soft directions, of which no single step takes
much, so that it hardly adds to g; it falls like a power of the number of steps. The other is noise: what the points of
a step do not determine, which that step removes at its own points and leaves at all others, a part 1 - e⁻ᵍ of the loss.
Let L fall like k⁻ˢ after k steps there, s = 2 if they are accelerated. At 8k it is at 8⁻ˢ of what it is now. A batch of
R⁺ ≥ 2 P residuals, or the largest, takes 7k/c steps in that time, with c = P R⁺/R² for a P × P matrix from R⁺ rows
where it was an R × R matrix from P columns, and of noise it leaves g⁺ = log (R⁺ + P)/(R⁺ - P), so that there L comes
to (1 + 7/c)⁻ˢ exp (g⁺ - g). Every 8 steps, from the second time on, the lower one decides:

    the batch leaves  where  g - g⁺ > s log (8 / (1 + 7/c)) ,

with s from the means of log L over the last two fifths of these steps and from 0.36 k to 0.6 k, g the mean over the
former, and 0 for s where the loss rises. Where noise is all there is, s tends to 0, as for a network that varies much
between the points that it interpolates, such as one on Fourier features. There is no way back: to return is to return
to the noise.

Sample sizes chosen by a test on the sample itself are known from stochastic optimisation (Byrd, Chin, Nocedal and Wu,
2012, Math. Program. 134); this test is our own, since it needs a step that is judged on its own points.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud

FACTOR = 2
LEAST_GAP = math.log(1.5)
SUFFICIENT = 800
"""Interior points of the smallest sufficient batch."""
TRIED = 8
"""Steps after each of which a batch stays, or does not."""
STILL, TENTH = 4, math.log(0.9)
"""A batch is enlarged where none of so many means of log L lies so far below the one before them."""
HORIZON = 8.0
"""After so many times as many steps both batches are compared."""
LOOK_BACK = 0.6
"""The fall of the loss is that from the steps between 0.36 k and 0.6 k to those after."""


def drawn_residuals(terms: Mapping[str, Term], components: Mapping[str, int], interior: int, boundary: int) -> int:
    """The residuals of all points that are drawn; measured points do not count, since every step has them.

    Args:
        terms: of the loss.
        components: of the residual of a term at a point, 1 where not given.
        interior, boundary: points for terms of full dimension, and for the others.
    """
    size = lambda term: interior if term.where.interior else boundary
    return sum(components.get(name, 1) * size(x) for name, x in terms.items() if not isinstance(x.where, Cloud))


def sufficient_size(residuals: int, interior: int) -> int:
    """The residuals that go with 800 interior points where all of them go with so many."""
    return math.ceil(SUFFICIENT * residuals / interior)


def under_determined(residuals: int, dimension: int) -> bool:
    """Whether a batch lies below the interpolation threshold of a step with so many coordinates, and off its peak."""
    return 2 * residuals <= dimension


def enlarged(size: int, largest: int, sufficient: int, dimension: int) -> int:
    """Twice the residuals; or the smallest sufficient batch, and no more than that while it is under-determined."""
    twice, smallest = min(largest, FACTOR * size), max(size, sufficient)
    return smallest if smallest < twice and under_determined(smallest, dimension) else twice


def noise_gap(size: int, dimension: int) -> float:
    """log (R + P)/(R - P), the gap of a least-squares fit of P numbers to R residuals of noise; infinite up to P."""
    return math.log((size + dimension) / (size - dimension)) if size > dimension else math.inf


def fall_exponent(levels: Sequence[float]) -> float:
    """s of a loss that falls like k⁻ˢ, from the means of its logarithm over equally many steps each; 0 if it rises.

    Args:
        levels: n ≥ 2 of them.
    """
    later = _recent(len(levels))
    earlier = min(round(LOOK_BACK * later), later - 1)
    antiderivative = lambda x: x * (math.log(x) - 1) if x else 0.0
    log_steps = [antiderivative(i + 1) - antiderivative(i) for i in range(len(levels))]
    rise = lambda values: statistics.fmean(values[later:]) - statistics.fmean(values[earlier:later])
    return max(0.0, -rise(levels) / rise(log_steps))


def _recent(n: int) -> int:
    """Where the last two fifths of n windows begin."""
    return min(round(LOOK_BACK * n), n - 1)


def beyond(size: int, largest: int, dimension: int) -> int:
    """The residuals doubled until a step with so many coordinates is past the peak, or the largest batch."""
    while size < min(2 * dimension, largest):
        size *= FACTOR
    return min(size, largest)


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved fields of an ``AdaptiveBatchSize``; steps that were counted otherwise count no more."""
    if "gaps" in saved:
        return dict(saved)
    begun = {"tried": 0, "excess": 0.0, "level": 0.0, "gaps": [], "levels": []}
    return {name: value for name, value in saved.items() if name != "former"} | begun


def serves(dimension: int, largest: int, sufficient: int, residuals_each: float) -> bool:
    """Whether batches suffice for steps with so many coordinates: the largest has ``residuals_each`` for each of them,
    or the smallest sufficient one is under-determined with at most four coordinates for each residual.
    """
    small = sufficient <= largest and under_determined(sufficient, dimension)
    return residuals_each * dimension <= largest or (small and dimension <= 4 * sufficient)


def price(form: str | None) -> float:
    """c, the price of a doubled batch, from how the last step solved its systems."""
    return 4.0 if form in ("kernel", "pairs") else 2.0


@dataclass
class AdaptiveBatchSize:
    """Residuals of the next step, and what decides on them; plain numbers, so that it can be saved.

    Attributes:
        size: R; 0 before it is set.
        gap, progress: g and f; f is None before the second step.
        began, ended: of the last step, the loss on its own points at both ends; None where it is not known.
        tried, excess, level: steps at this size, of the 8 under way and one before them, and the sums of g/8 and
            log L/8 over these.
        gaps, levels: their means over each 8 steps before.
    """

    size: int = 0
    gap: float = 0.0
    progress: float | None = None
    began: float | None = None
    ended: float | None = None
    tried: int = 0
    excess: float = 0.0
    level: float = 0.0
    gaps: list[float] = field(default_factory=list)
    levels: list[float] = field(default_factory=list)

    def update(
        self,
        began: float,
        ended: float | None,
        price: float,
        dimension: int,
        largest: int,
        measured: float = 0.0,
        sufficient: int = 0,
        compared: float | None = None,
    ) -> None:
        """After a step.

        Args:
            began, ended: the loss on the step's own points where it began and ended; a scheme that does not evaluate
                the latter takes the largest batch, since nothing can be seen of its gap.
            price: c.
            dimension: P, the coordinates that the step solved for.
            largest: R_max.
            measured: the part of ``began`` at points that every step has, such as measured ones. The last step ended
                where this one began, so it ended with that part as well: g is taken without it, f with it.
            sufficient: the smallest sufficient batch.
            compared: ``began`` with the multipliers of the terms that the step before had, as ``measured``; None where
                they are the same.
        """
        now, began = began, began if compared is None else compared
        if ended is None:
            self.size = largest
        elif self._known(began, measured):
            gap = math.log((began - measured) / (self.ended - measured))
            self.gap = (self.gap + gap) / 2
            progress = math.log(self.began / began)
            self.progress = progress if self.progress is None else (3 * self.progress + progress) / 4
            full = self.size < largest and self._count(gap, math.log(began))
            if not self.grows(largest, sufficient, dimension):
                larger = beyond(self.size, largest, dimension)
                if full and self._leaves(larger, dimension):
                    self._take(larger)
            elif self.gap > max(LEAST_GAP, 2 * (price - 1) * self.progress) or (full and self._stands_still()):
                self._take(enlarged(self.size, largest, sufficient, dimension))
        self.began, self.ended = now, ended

    def grows(self, largest: int, sufficient: int, dimension: int) -> bool:
        """Whether it is enlarged where the loss stands still. Arguments as for ``update``."""
        return self.size < enlarged(self.size, largest, sufficient, dimension)

    def _take(self, size: int) -> None:
        """Another size, at which steps are counted from the next one on: the first gap is still that of this one."""
        self.size, self.gap = size, 0.0
        self.tried, self.excess, self.level, self.gaps, self.levels = 0, 0.0, 0.0, [], []

    def _count(self, gap: float, log_loss: float) -> bool:
        """Count a step; whether another eight of this size are complete."""
        if self.tried:
            self.excess += gap / TRIED
            self.level += log_loss / TRIED
        self.tried += 1
        if self.tried <= TRIED:
            return False
        self.gaps.append(self.excess)
        self.levels.append(self.level)
        self.tried, self.excess, self.level = 1, 0.0, 0.0
        return True

    def _stands_still(self) -> bool:
        """Whether the loss has not fallen by a tenth for a while."""
        return len(self.levels) > STILL and min(self.levels[-STILL:]) > self.levels[-STILL - 1] + TENTH

    def _leaves(self, larger: int, dimension: int) -> bool:
        """Whether the steps so far, a multiple of 8, speak for a batch past the peak."""
        if len(self.levels) < 2:
            return False
        price = dimension * larger / self.size**2
        fewer = HORIZON / (1 + (HORIZON - 1) / price)
        gap = statistics.fmean(self.gaps[_recent(len(self.gaps)) :])
        return gap - noise_gap(larger, dimension) > fall_exponent(self.levels) * math.log(fewer)

    def _known(self, began: float, measured: float) -> bool:
        """Whether all three losses are known and have a logarithm, also without the part that stays."""
        known = self.began is not None and self.ended is not None
        return known and measured < began < math.inf and measured < self.ended < math.inf and 0 < self.began < math.inf

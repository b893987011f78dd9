"""Natural gradient, and L-BFGS in turns with it where that is faster.

Natural gradient trusts its linearisation as far as its damping says. From random weights that can be next to nowhere:
a wide network of low frequencies that has to form high ones gains next to nothing by any step, at many points or few,
where L-BFGS leaves the plateau by line searches along its steepest directions. In the valley it is the other way round.
Neither place is known beforehand, so both are tried, and compared by

    q = log (L before / L after) / seconds ,        L the loss at points that no step has.

Natural gradient has turns of 1/16 of the time, and goes on as long as each halves L. Else L-BFGS has a turn of the same
length; from then on natural gradient goes on as long as its q is above that of the last turn of L-BFGS, whose next turn
is twice as long. A turn of L-BFGS after which L is not smaller is undone: its points are fixed, and few beside the
weights of a large network. Where L falls by less than a tenth in a turn of each, training is over.

So a network that natural gradient trains all along has the same steps as without; one on which it stands still has them
for at most the first turn, and short ones between the turns of L-BFGS, whose lengths grow as 1, 2, 4, ….
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from pinn_odelora.budget import Budget
from pinn_odelora.pretraining import stages
from pinn_odelora.pretraining.stages import Message, Stage, Unseen
from pinn_odelora.system import System

PARTS, LEAST = 16, 1.0
"""Turns in the whole time, and the seconds of the shortest one."""
ENOUGH, NOTHING = math.log(2), -math.log(0.9)
"""The fall of log L in a turn at which natural gradient goes on, and below which there is no progress."""


class Turn(NamedTuple):
    """The fall of log L in a turn, and the seconds it took."""

    fall: float
    seconds: float

    @property
    def rate(self) -> float:
        """q, per second."""
        return self.fall / self.seconds if self.seconds > 0 else 0.0


def alternate(
    first: Callable[[float], Turn], second: Callable[[float], Turn], seconds: float, clock: Callable[[], float]
) -> None:
    """Give turns to the first, and to the second where that is faster, see the module's docstring.

    Args:
        first, second: take a turn of at most so many seconds.
        seconds: of all together.
        clock: seconds.
    """
    until = clock() + seconds
    length = longer = max(seconds / PARTS, LEAST)
    bar = ENOUGH / length
    while (left := until - clock()) > 0:
        turn = first(min(length, left))
        if turn.rate >= bar and turn.rate > 0:
            continue
        if (left := until - clock()) <= 0:
            return
        other = second(min(longer, left))
        if max(turn.fall, other.fall) < NOTHING:
            return
        bar, longer = max(other.rate, 0.0), 2 * longer


def train(
    system: System,
    natural: Stage,
    lbfgs: Callable[[], Stage],
    seconds: float,
    error: Callable[[], float],
    target: float,
    say: Message,
    unseen: Unseen,
) -> None:
    """Train the network of a system in place.

    Args:
        system: of the network.
        natural: the stage of natural gradient.
        lbfgs: a new stage of L-BFGS.
        seconds: of all turns together.
        error, target, say, unseen: as of ``stages.follow``.
    """

    def turn(stage: Stage, seconds: float, undone: bool) -> Turn:
        before, begun = unseen.loss(), time.perf_counter()
        kept = {name: x.clone() for name, x in system.solution.state_dict().items()} if undone else {}
        budget = Budget(seconds=stage.training.progress.seconds + seconds)
        stages.follow(stage, budget, stages.MANY, error, target, say, unseen)
        after = unseen.loss()
        if undone and not after < before:
            with torch.no_grad():
                system.solution.load_state_dict(kept)
        return Turn(_fall(before, after), time.perf_counter() - begun)

    first = lambda seconds: turn(natural, seconds, undone=False)
    second = lambda seconds: turn(lbfgs(), seconds, undone=True)
    alternate(first, second, seconds, time.perf_counter)


def _fall(before: float, after: float) -> float:
    """log before/after; -∞ where one has no logarithm."""
    return math.log(before / after) if 0 < before < math.inf and 0 < after < math.inf else -math.inf

"""The best point of a run so far, by points of its own: what the run ends with.

A scheme that chooses the size of a step by the step's own points goes as far as these allow. On all others the loss of
its iterates y_n scatters about a level that falls, and by how much the last one is off is chance. So the best of them
is kept, found in rounds of five steps on validation points that no step ever has. Within a round the iterates are
compared by few of them, and the best one, the challenger, is held against the best so far by all of them, V (measured
points, which every step has, are among both):

    y* = argmin L_few(y_n) over the round ,    x = y* if L_V(y*) < e^(-1/√N) L_V(x), else x ,    x = y_0 at first.

N is the number of points that carry L_V(y*), in the sense of ``following``, so that 1/√N is the relative standard error
of that loss: a smaller difference may be chance, and on other points is as often a rise. A step so costs a fifth of a
look at V and one at a tenth of it. With N < 100 the standard error itself is hardly known, since what weighs most may
not be among the points, and the best of many such losses is a lucky one. Then so many times as many points are asked,
V the first of them, that 100 carry the loss there: twice as many, or four times where that is not enough. By these it
has to be lower by five standard errors. The steps go on from y_n: to start them from x costs more of the fall than it
saves of the scatter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, linalg
from torch.optim import Optimizer

from pinn_odelora.lowrank.layer import Factors
from pinn_odelora.objective import Evaluator, Standing
from pinn_odelora.optim import ImplicitODELoRA
from pinn_odelora.points import Points
from pinn_odelora.sampling.residual_sampling import effective_number

ROUND = 5
"""Steps of a round."""
FEW = 10
"""V has so many times more points than the few."""
CARRIERS = 100
"""Fewer that carry a loss leave its standard error open, too."""
ENOUGH, BY_FAR = 1, 5
"""By so many standard errors the loss of a better point is lower; and by more points, where fewer carry it."""
MORE = (2, 4)
"""How many times more points may be asked."""


def scatters(optimizer: Optimizer) -> bool:
    """Whether it chooses the size of its steps by their own points. A fixed h is for the path itself, up to its end."""
    return isinstance(optimizer, ImplicitODELoRA) and optimizer.integrator.h is None


@dataclass(frozen=True)
class Candidate:
    """A point, and what it was judged by; plain enough to be saved.

    Attributes:
        parameters: all that is trained; empty where there is no point.
        starts: A₀ and B₀ of every adapted layer.
        loss: L_V of the best one, L_few of the challenger.
        sure: by so many times more points, where they have been asked, the loss, and how many carry it.
    """

    parameters: list[Tensor] = field(default_factory=list)
    starts: list[list[Tensor]] = field(default_factory=list)
    loss: float = math.inf
    sure: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def standing(self) -> Standing | None:
        return Standing(self.parameters, [Factors(*start) for start in self.starts]) if self.parameters else None


@dataclass
class Incumbent:
    """x, and the challenger of the round at hand. Every loss counts as an evaluation."""

    best: Candidate = field(default_factory=Candidate)
    challenger: Candidate = field(default_factory=Candidate)

    @classmethod
    def loaded(cls, saved: Mapping[str, Any]) -> Incumbent:
        """From what ``dataclasses.asdict`` made of one."""
        return cls(**{name: Candidate(**candidate) for name, candidate in saved.items()})

    @property
    def standing(self) -> Standing | None:
        return self.best.standing

    def look(self, evaluator: Evaluator, few: Mapping[str, Points]) -> None:
        """The network as it stands may be the challenger."""
        loss, _ = validation_loss(evaluator, few)
        if not self.challenger.parameters or loss < self.challenger.loss:
            parameters, starts = evaluator.standing()
            self.challenger = Candidate(parameters, [list(start) for start in starts], loss)

    def close(self, evaluator: Evaluator, V: Callable[[int], Mapping[str, Points]]) -> None:
        """End the round: the challenger is the best so far, or it is not. ``V(k)`` are k times as many points."""
        challenger, self.challenger = self.challenger, Candidate()
        if not challenger.parameters:
            return
        loss, carriers = _judged(challenger, evaluator, V(1))
        challenger = replace(challenger, loss=loss)
        if self.best.parameters:
            if not lower(challenger.loss, carriers, self.best.loss, ENOUGH):
                return
            if carriers < CARRIERS:
                times = more(carriers)
                self.best, challenger = (_asked(x, times, evaluator, V) for x in (self.best, challenger))
                if not lower(*challenger.sure[times], self.best.sure[times][0], BY_FAR):
                    return
        self.best = challenger


def lower(loss: float, carriers: float, other: float, errors: float) -> bool:
    """Whether a loss that so many points carry is lower than the other by so many standard errors; 0 always is."""
    return loss < other * (math.exp(-errors / math.sqrt(carriers)) if loss else 1.0)


def more(carriers: float) -> int:
    """How many times as many points are asked where so few carry the loss."""
    return next((times for times in MORE if times * carriers >= CARRIERS), MORE[-1])


def _asked(
    candidate: Candidate, times: int, evaluator: Evaluator, V: Callable[[int], Mapping[str, Points]]
) -> Candidate:
    """With its loss by so many times more points, if it is not known yet."""
    if times in candidate.sure:
        return candidate
    return replace(candidate, sure={**candidate.sure, times: _judged(candidate, evaluator, V(times))})


def _judged(candidate: Candidate, evaluator: Evaluator, V: Mapping[str, Points]) -> tuple[float, float]:
    with evaluator.standing_at(candidate.standing):
        return validation_loss(evaluator, V)


@torch.no_grad()
def validation_loss(evaluator: Evaluator, V: Mapping[str, Points]) -> tuple[float, float]:
    """L_V, counted, and how many points carry it; infinite where it is no number."""
    system, residuals = evaluator.system, evaluator.residuals(V)
    loss = float(system.loss_of(residuals).total)
    sizes = [linalg.vector_norm(system.weighted(name, r), dim=1) for name, r in residuals.items()]
    return (math.inf if math.isnan(loss) else loss), effective_number(torch.cat(sizes))

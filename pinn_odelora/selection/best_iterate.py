"""The best iterate of a run, found on a validation set: what the run returns.

A scheme that chooses the size of a step by the loss on the step's own points goes as far as these allow. On all others
the loss of its iterates y_n scatters about a level that falls. So the best one is kept, found in rounds of five steps
on validation points that no step ever has (measured points, which every step has, are among them). Within a round the
iterates are compared on a tenth of the validation set V, and the best of them, the candidate y*, is compared with the
best so far, x, on all of V:

    y* = argmin L_tenth(y_n) over the round ,    x = y* if L_V(y*) < e^(-1/√N) L_V(x), else x ,    x = y_0 at first.

N is the effective sample size of L_V(y*) (Kish, 1965; ``sampling.residual_sampling``), so that 1/√N is the relative
standard error of that loss: a smaller difference may be chance, and on other points is as often a rise. Per step this
costs a fifth of an evaluation on V and one on a tenth of it. With N < 100 the standard error itself is hardly known,
since the largest summands may not be among the points, and the lowest of many such losses is a lucky one. Then the
losses are taken on as many times more points, V the first of them, as bring N to 100: twice as many, or four times
where that is not enough; there y* must be lower by five standard errors. The steps go on from y_n: restarting from x
slows convergence more than it reduces variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.factors import Factors
from pinn_odelora.objective import Objective, Snapshot
from pinn_odelora.points import Points
from pinn_odelora.sampling.residual_sampling import effective_sample_size

ROUND = 5
"""Steps of a round."""
SMALL = 10
"""V has so many times more points than the set that compares iterates of a round."""
LEAST_EFFECTIVE = 100
"""A smaller effective sample size leaves the standard error unknown, too."""
USUAL, SAFE = 1, 5
"""By so many standard errors a better loss is lower; and on more points, where the effective sample size is small."""
MORE = (2, 4)
"""How many times more points may be taken."""


@dataclass(frozen=True)
class Iterate:
    """An iterate, and its validation losses; plain enough to be saved.

    Attributes:
        parameters: all that is trained; empty where there is no iterate.
        starts: A₀ and B₀ of every adapted layer.
        loss: L_V of the best one, L_tenth of the candidate.
        on_more: by how many times more points, where they have been taken, the loss and its effective sample size.
    """

    parameters: list[Tensor] = field(default_factory=list)
    starts: list[list[Tensor]] = field(default_factory=list)
    loss: float = math.inf
    on_more: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def snapshot(self) -> Snapshot | None:
        return Snapshot(self.parameters, [Factors(*start) for start in self.starts]) if self.parameters else None


@dataclass
class BestIterate:
    """x, and the candidate of the round at hand. Every loss counts as an evaluation."""

    best: Iterate = field(default_factory=Iterate)
    candidate: Iterate = field(default_factory=Iterate)

    @classmethod
    def loaded(cls, saved: Mapping[str, Any]) -> BestIterate:
        """From what ``dataclasses.asdict`` made of one."""
        return cls(**{name: Iterate(**iterate) for name, iterate in saved.items()})

    @property
    def snapshot(self) -> Snapshot | None:
        return self.best.snapshot

    def consider(self, objective: Objective, small: Mapping[str, Points]) -> None:
        """The network as it is may be the candidate of the round."""
        loss, _ = validation_loss(objective, small)
        if not self.candidate.parameters or loss < self.candidate.loss:
            parameters, starts = objective.snapshot()
            self.candidate = Iterate(parameters, [list(start) for start in starts], loss)

    def close(self, objective: Objective, V: Callable[[int], Mapping[str, Points]]) -> None:
        """End the round: the candidate is the best so far, or it is not. ``V(k)`` are k times as many points."""
        candidate, self.candidate = self.candidate, Iterate()
        if not candidate.parameters:
            return
        loss, effective = _loss_of(candidate, objective, V(1))
        candidate = replace(candidate, loss=loss)
        if self.best.parameters:
            if not lower(candidate.loss, effective, self.best.loss, USUAL):
                return
            if effective < LEAST_EFFECTIVE:
                times = more(effective)
                self.best, candidate = (_on_more(x, times, objective, V) for x in (self.best, candidate))
                if not lower(*candidate.on_more[times], self.best.on_more[times][0], SAFE):
                    return
        self.best = candidate


def lower(loss: float, effective: float, other: float, errors: float) -> bool:
    """Whether a loss is lower than another by so many of its standard errors 1/√N; a loss of 0 always is."""
    return loss < other * (math.exp(-errors / math.sqrt(effective)) if loss else 1.0)


def more(effective: float) -> int:
    """How many times as many points are taken where the effective sample size is so small."""
    return next((times for times in MORE if times * effective >= LEAST_EFFECTIVE), MORE[-1])


def _on_more(iterate: Iterate, times: int, objective: Objective, V: Callable[[int], Mapping[str, Points]]) -> Iterate:
    """With its loss on so many times more points, if it is not known yet."""
    if times in iterate.on_more:
        return iterate
    return replace(iterate, on_more={**iterate.on_more, times: _loss_of(iterate, objective, V(times))})


def _loss_of(iterate: Iterate, objective: Objective, V: Mapping[str, Points]) -> tuple[float, float]:
    with objective.restored(iterate.snapshot):
        return validation_loss(objective, V)


@torch.no_grad()
def validation_loss(objective: Objective, V: Mapping[str, Points]) -> tuple[float, float]:
    """L_V, counted, and its effective sample size; infinite where it is no number."""
    system, residuals = objective.system, objective.residuals_at(V)
    loss = float(system.loss_of(residuals).total)
    sizes = [linalg.vector_norm(system.weighted(name, r), dim=1) for name, r in residuals.items()]
    return (math.inf if math.isnan(loss) else loss), effective_sample_size(torch.cat(sizes))

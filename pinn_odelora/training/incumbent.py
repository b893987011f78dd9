"""The best point of a run so far, by points of its own: what the run ends with.

A scheme that chooses the size of a step by the step's own points goes as far as these allow. On all others the loss of
its iterates y_n scatters about a level that falls, and by how much the last one is off is chance. So the best of them
is kept: with L_V the loss on validation points V, which no step ever has,

    x_0 = y_0 ,    x_n = y_n if L_V(y_n) < L_V(x_{n-1}), else x_{n-1} .

The steps go on from y_n: to start them from x_n costs more of the fall than it saves of the scatter. V grows with the
points of a step, and L_V(x_{n-1}) is taken anew then; one look costs about a tenth of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.lowrank.layer import Factors
from pinn_odelora.optim import ImplicitODELoRA
from pinn_odelora.points import Points
from pinn_odelora.training.evaluation import Evaluator, Standing


def scatters(optimizer: Optimizer) -> bool:
    """Whether it chooses the size of its steps by their own points. A fixed h is for the path itself, up to its end."""
    return isinstance(optimizer, ImplicitODELoRA) and optimizer.integrator.h is None


@dataclass
class Incumbent:
    """x_n, and what it was judged by; plain enough to be saved.

    Attributes:
        parameters: all that is trained; empty before the first look.
        starts: A₀ and B₀ of every adapted layer.
        loss: L_V.
        number: of the points in V, all terms together.
    """

    parameters: list[Tensor] = field(default_factory=list)
    starts: list[list[Tensor]] = field(default_factory=list)
    loss: float = math.inf
    number: int = 0

    @property
    def standing(self) -> Standing | None:
        return Standing(self.parameters, [Factors(*start) for start in self.starts]) if self.parameters else None

    def look(self, evaluator: Evaluator, V: Mapping[str, Points]) -> None:
        """Keep the network as it stands if it is the best so far. Every loss counts as an evaluation."""
        number = sum(p.number for p in V.values())
        if (best := self.standing) is not None and number != self.number:
            with evaluator.standing_at(best):
                self.loss = validation_loss(evaluator, V)
        self.number = number
        here = validation_loss(evaluator, V)
        if best is None or here < self.loss:
            self.parameters, starts = evaluator.standing()
            self.starts, self.loss = [list(start) for start in starts], here


def validation_loss(evaluator: Evaluator, V: Mapping[str, Points]) -> float:
    """L_V, counted; infinite where it is no number."""
    loss = float(evaluator.system.loss_of(evaluator.residuals(V)).total.detach())
    return math.inf if math.isnan(loss) else loss

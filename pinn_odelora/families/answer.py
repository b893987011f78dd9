"""One member of a family as the function that it is."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.families.parametric import Parametric
from pinn_odelora.result import Adapter

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem


class Answer:
    """A member: ``u(x, t)`` evaluates it.

    Attributes:
        values: the parameters of the equation.
        weights: what is trained, by the names of the network's parameters.
        error: the estimate of its relative L2 error.
        loss: on the points on which it was found.
        steps: Gauss–Newton steps in the span of the stations.
        corrections: steps on the low-rank manifold, where the span did not suffice for a tolerance.
        seconds: time that it took.
    """

    def __init__(
        self,
        parametric: Parametric,
        values: dict[str, float],
        weights: dict[str, Tensor],
        error: float,
        loss: float,
        steps: int,
        corrections: int,
        seconds: float,
    ) -> None:
        self.values, self.weights, self.error, self.loss = values, weights, error, loss
        self.steps, self.corrections, self.seconds = steps, corrections, seconds
        self._parametric = parametric

    def __repr__(self) -> str:
        at = ", ".join(f"{name}={value:.6g}" for name, value in self.values.items())
        return f"<member at {at}: relative L2 error about {self.error:.1e}, {1e3 * self.seconds:.0f} ms>"

    @cached_property
    def problem(self) -> Problem:
        """The equation at these parameters."""
        return self._parametric.problem_at(self.values)

    @cached_property
    def net(self) -> nn.Module:
        """The adapted network, a copy of its own."""
        self._parametric.place(self.weights)
        return copy.deepcopy(self._parametric.net)

    @cached_property
    def solution(self) -> AdaptedSolution:
        """The solution as a function of the coordinates."""
        return AdaptedSolution(self.problem, self.net)

    @cached_property
    def adapter(self) -> Adapter:
        """The low-rank change of the network, ``adapter.save(folder)`` for PEFT."""
        return Adapter(self.net)

    def __call__(self, *coordinates: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """The values at points, as ``AdaptedSolution``."""
        return self.solution(*coordinates)

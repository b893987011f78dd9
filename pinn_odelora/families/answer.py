"""One member of a family as the function that it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pinn_odelora.adapted_solution import AdaptedSolution
from pinn_odelora.result import Adapter

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem


class Answer:
    """A member: ``u(x, t)`` evaluates it.

    Attributes:
        values: the parameters of the equation.
        form: ``combination`` of the stations' solutions, or ``adapter``.
        error: the estimate of its relative L2 error.
        loss: ½‖r‖² on the points on which it was found.
        steps: Gauss–Newton steps.
        corrections: steps on the low-rank manifold that a tolerance called for.
        seconds: time that it took; of several answers together, an equal share.
    """

    def __init__(
        self,
        posed: Problem,
        values: dict[str, float],
        form: str,
        error: float,
        loss: float,
        steps: int,
        corrections: int,
        seconds: float,
        network: Callable[[], nn.Module],
        adapted: Callable[[], Answer] | None = None,
    ) -> None:
        self.values, self.form, self.error, self.loss = values, form, error, loss
        self.steps, self.corrections, self.seconds = steps, corrections, seconds
        self._posed, self._network, self._adapted = posed, network, adapted

    def __repr__(self) -> str:
        at = ", ".join(f"{name}={value:.6g}" for name, value in self.values.items())
        return f"<member at {at}: relative L2 error about {self.error:.1e}, {1e3 * self.seconds:.0f} ms>"

    @cached_property
    def problem(self) -> Problem:
        """The equation at these parameters."""
        return dataclasses.replace(self._posed, **self.values)

    @cached_property
    def net(self) -> nn.Module:
        """The network N of the ansatz: the adapted one, or the sum of those of the stations."""
        return self._network()

    @cached_property
    def adapted(self) -> Answer:
        """The member as one adapter, with an estimate of its own: itself, or solved for when it is first asked for."""
        return self if self._adapted is None else self._adapted()

    @cached_property
    def solution(self) -> AdaptedSolution:
        """The solution as a function of the coordinates."""
        return AdaptedSolution(self.problem, self.net)

    @cached_property
    def adapter(self) -> Adapter:
        """The low-rank change of the network of ``adapted``; ``adapter.save(folder)`` for PEFT."""
        return Adapter(self.adapted.net)

    def __call__(self, *coordinates: ArrayLike | Tensor) -> np.ndarray | Tensor:
        """The values at points, as ``AdaptedSolution``."""
        return self.solution(*coordinates)

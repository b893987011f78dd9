"""What optimisers on the manifold ask of a loss, beyond what torch's closures give."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pinn_odelora.linearisation import Linearisation


class Surroundings(Protocol):
    """A loss ½‖r‖² at the parameters as they are when it is asked; a training run's evaluator is one."""

    def weight_gradients(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and by name G = ∂L/∂W (m, n) for the effective weight of every pair, ∂L/∂x for other tensors."""

    def linearise(self, memory: float) -> Linearisation:
        """r and its Jacobian with respect to the effective weight of every pair and to every other tensor, by name.

        Args:
            memory: bytes that the linearisation may take.
        """

    def rows(self) -> Tensor:
        """r alone, (R,)."""

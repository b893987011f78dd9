"""A flow with its damping: ``Damped(scaled_flow, 1e-6)`` is called as every other flow is.

A damping δ is added to the Gram matrices S_A = AAᵀ and S_B = BᵀB before they are inverted, so that the velocity is
bounded where a factor loses rank; the product then follows its path up to terms of size δ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pinn_odelora.manifolds.factors import Factors


@dataclass(frozen=True)
class Damped:
    """The flow ``flow(y, g, scale, damping)`` at one damping.

    Args:
        flow: ``balanced_flow`` or ``scaled_flow``.
        damping: δ ≥ 0.
    """

    flow: Callable[..., Factors]
    damping: float

    def __str__(self) -> str:
        return f"{self.flow.__name__} with a damping of {self.damping:g}"

    def __call__(self, y: Factors, g: Factors, scale: float) -> Factors:
        """The velocity at factors ``y`` with gradients ``g``."""
        return self.flow(y, g, scale, damping=self.damping)

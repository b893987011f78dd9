"""Flows on the LoRA factors: pure functions from factors and gradients to velocities."""

from pinn_odelora.flows.balanced import balanced_flow
from pinn_odelora.flows.damped import Damped
from pinn_odelora.flows.gradient import gradient_flow
from pinn_odelora.flows.scaled import scaled_flow

__all__ = ["Damped", "balanced_flow", "gradient_flow", "scaled_flow"]

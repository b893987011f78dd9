"""Networks."""

from pinn_odelora.nets.mlp import MLP

__all__ = ["MLP"]

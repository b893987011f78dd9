"""Derivatives of a solution, asked for by name."""

from pinn_odelora.derivatives.autograd import AutogradField
from pinn_odelora.derivatives.field import Field

__all__ = ["AutogradField", "Field"]

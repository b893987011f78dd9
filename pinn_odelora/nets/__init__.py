"""Networks."""

from pinn_odelora.nets.check import check_network
from pinn_odelora.nets.functional import MatrixFunctional
from pinn_odelora.nets.mlp import MLP
from pinn_odelora.nets.scaled import Scaled, in_declared_units, in_units, in_units_of

__all__ = ["MLP", "MatrixFunctional", "Scaled", "check_network", "in_declared_units", "in_units", "in_units_of"]

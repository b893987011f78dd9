"""Networks."""

from pinn_odelora.nets.check import check_network, few_inputs
from pinn_odelora.nets.functional import MatrixFunctional
from pinn_odelora.nets.mlp import MLP

__all__ = ["MLP", "MatrixFunctional", "check_network", "few_inputs"]

"""Networks."""

from pinn_odelora.nets.check import check_network, few_inputs
from pinn_odelora.nets.functional import MatrixFunctional
from pinn_odelora.nets.mlp import MLP
from pinn_odelora.nets.weight_norm import copied

__all__ = ["MLP", "MatrixFunctional", "check_network", "copied", "few_inputs"]

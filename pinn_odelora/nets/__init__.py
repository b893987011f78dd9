"""Networks, a file each; the linear layers of all of them can be adapted."""

from pinn_odelora.nets.adaptive import AdaptiveMLP
from pinn_odelora.nets.check import check_network, few_inputs
from pinn_odelora.nets.factorised import FactorisedMLP
from pinn_odelora.nets.fourier import FourierFeatures, FourierMLP
from pinn_odelora.nets.functional import MatrixFunctional
from pinn_odelora.nets.kan import KAN
from pinn_odelora.nets.layer_norm import LayerNormMLP
from pinn_odelora.nets.mlp import MLP
from pinn_odelora.nets.modified_mlp import ModifiedMLP
from pinn_odelora.nets.per_field import PerField
from pinn_odelora.nets.pfnn import PFNN
from pinn_odelora.nets.piratenet import PirateNet
from pinn_odelora.nets.resnet import ResNet
from pinn_odelora.nets.scaled import Scaled, in_declared_units, in_units, in_units_of
from pinn_odelora.nets.siren import SIREN
from pinn_odelora.nets.weight_norm import copied

__all__ = [
    "KAN",
    "MLP",
    "PFNN",
    "SIREN",
    "AdaptiveMLP",
    "FactorisedMLP",
    "FourierFeatures",
    "FourierMLP",
    "LayerNormMLP",
    "MatrixFunctional",
    "ModifiedMLP",
    "PerField",
    "PirateNet",
    "ResNet",
    "Scaled",
    "check_network",
    "copied",
    "few_inputs",
    "in_declared_units",
    "in_units",
    "in_units_of",
]

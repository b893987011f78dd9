"""Optimisers for LoRA factors, usable with any torch model that has LoRA pairs."""

from pinn_odelora.optim.flow import ODELoRA, factor_pairs
from pinn_odelora.optim.implicit import ImplicitODELoRA
from pinn_odelora.optim.projected import ProjectedODELoRA

__all__ = ["ImplicitODELoRA", "ODELoRA", "ProjectedODELoRA", "factor_pairs"]

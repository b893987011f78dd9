"""Optimisers for LoRA factors, usable with any torch model that has LoRA pairs, and the methods of a comparison."""

from pinn_odelora.lowrank.pairs import factor_pairs
from pinn_odelora.optim.methods import Method
from pinn_odelora.optim.odelora import ODELoRA

__all__ = ["Method", "ODELoRA", "factor_pairs"]

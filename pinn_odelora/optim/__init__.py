"""Optimisers for LoRA factors, usable with any torch model that has LoRA pairs."""

from pinn_odelora.optim.flow import ODELoRA, factor_pairs

__all__ = ["ODELoRA", "factor_pairs"]

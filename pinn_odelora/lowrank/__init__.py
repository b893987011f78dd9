"""Low-rank adapters: the layer, its starts, and putting it into a network."""

from pinn_odelora.lowrank.layer import Factors, LowRankLinear, adapters, weight_gradients

__all__ = ["Factors", "LowRankLinear", "adapters", "weight_gradients"]

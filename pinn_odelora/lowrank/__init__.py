"""Low-rank adapters: the layer, its starts, and putting it into a network."""

from pinn_odelora.lowrank.layer import Factors, LowRankLinear, adapters, formed_weights

__all__ = ["Factors", "LowRankLinear", "adapters", "formed_weights"]

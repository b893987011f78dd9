"""Low-rank adapters: the adapted layer, its initial factors, and its place in a network."""

from pinn_odelora.lowrank.layer import Factors, LowRankLinear, adapters, formed_weights

__all__ = ["Factors", "LowRankLinear", "adapters", "formed_weights"]

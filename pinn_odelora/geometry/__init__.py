"""Regions and the points drawn in them."""

from pinn_odelora.geometry.regions import Box, Cloud, Region, Uniform, Union
from pinn_odelora.geometry.sobol import sobol, stream

__all__ = ["Box", "Cloud", "Region", "Uniform", "Union", "sobol", "stream"]

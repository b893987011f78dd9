"""Regions and the points drawn in them."""

from pinn_odelora.geometry.meshes import Mesh
from pinn_odelora.geometry.regions import Box, Cloud, Region, Union
from pinn_odelora.geometry.sobol import sobol, stream
from pinn_odelora.geometry.solids import Ball
from pinn_odelora.geometry.spatial import Uniform

__all__ = ["Ball", "Box", "Cloud", "Mesh", "Region", "Uniform", "Union", "sobol", "stream"]

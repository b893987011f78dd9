"""The residual system around the present weights: rows, Jacobian, products, columns, Gram matrix, kernel."""

from pinn_odelora.linearisation.coordinates import Coordinates
from pinn_odelora.linearisation.linearisation import Linearisation
from pinn_odelora.linearisation.sweep import Sweep

__all__ = ["Coordinates", "Linearisation", "Sweep"]

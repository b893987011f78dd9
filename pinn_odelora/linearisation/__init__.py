"""The residual system linearised at the current weights: residuals, Jacobian, products, Gram matrix, kernel."""

from pinn_odelora.linearisation.coordinates import Coordinates
from pinn_odelora.linearisation.linearisation import Linearisation
from pinn_odelora.linearisation.sweep import Sweep

__all__ = ["Coordinates", "Linearisation", "Sweep"]

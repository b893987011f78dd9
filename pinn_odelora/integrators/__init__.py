"""Time discretisations of a flow."""

from pinn_odelora.integrators.explicit import RungeKutta, rk_step
from pinn_odelora.integrators.implicit import LinearlyImplicit
from pinn_odelora.integrators.tableau import Tableau

__all__ = ["LinearlyImplicit", "RungeKutta", "Tableau", "rk_step"]

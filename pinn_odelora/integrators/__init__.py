"""Time discretisations of a flow."""

from pinn_odelora.integrators.chebyshev import Chebyshev
from pinn_odelora.integrators.explicit import RungeKutta, rk_step
from pinn_odelora.integrators.implicit import LinearlyImplicit
from pinn_odelora.integrators.rosenbrock import ROS2
from pinn_odelora.integrators.tableau import Tableau

__all__ = ["ROS2", "Chebyshev", "LinearlyImplicit", "RungeKutta", "Tableau", "rk_step"]

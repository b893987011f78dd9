"""Time discretisations of a flow."""

from pinn_odelora.integrators.base import Field, Flow, Integrator, Local, Report, ResidualFlow, Step, Velocity
from pinn_odelora.integrators.linearly_implicit import LinearlyImplicit
from pinn_odelora.integrators.rkc import RKC
from pinn_odelora.integrators.ros2 import ROS2
from pinn_odelora.integrators.runge_kutta import RungeKutta, rk_step
from pinn_odelora.integrators.tableau import Tableau

__all__ = [
    "RKC",
    "ROS2",
    "Field",
    "Flow",
    "Integrator",
    "LinearlyImplicit",
    "Local",
    "Report",
    "ResidualFlow",
    "RungeKutta",
    "Step",
    "Tableau",
    "Velocity",
    "rk_step",
]

"""The names of objects in summaries, folders and configurations."""

from __future__ import annotations

import re

from pinn_odelora.integrators import Integrator, tableau


def snake_case(cls: type) -> str:
    """AllenCahn is allen_cahn, and ROS2 is ros2."""
    name = cls.__name__
    return name.lower() if name.isupper() else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def integrator_name(integrator: Integrator) -> str:
    """The scheme's name: rk4, dormand_prince, rkc2, linearly_implicit."""
    scheme = getattr(integrator, "tableau", None)
    known = (name.lower() for name, value in vars(tableau).items() if value is scheme and scheme is not None)
    order = getattr(integrator, "order", "")
    return next(known, f"{snake_case(type(integrator))}{order}")

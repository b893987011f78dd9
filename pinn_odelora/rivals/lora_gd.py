"""Plain LoRA by gradient descent, or by any other discretisation of the gradient flow of its factors."""

from __future__ import annotations

from pinn_odelora.flows import gradient_flow
from pinn_odelora.integrators import Integrator
from pinn_odelora.optim.methods import Method
from pinn_odelora.optim.odelora import ODELoRA


def lora_gd(integrator: Integrator) -> Method:
    """The flow of plain LoRA; gradient descent on the factors by Euler's scheme (Hu et al., 2022, arXiv 2106.09685).

    Args:
        integrator: the time discretisation; one that linearises works in the metric of the factors.
    """
    return Method(
        "lora_gd",
        "factors",
        lambda groups: ODELoRA(groups, integrator=integrator, flow=gradient_flow, retract=False),
        integrator,
    )

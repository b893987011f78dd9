"""Scaled gradient descent: an explicit discretisation of the flow of ``flows.scaled``."""

from __future__ import annotations

from pinn_odelora.flows import Damped, scaled_flow
from pinn_odelora.integrators import Integrator
from pinn_odelora.optim.methods import Method, probe
from pinn_odelora.optim.odelora import ODELoRA
from pinn_odelora.rivals.base import NOT_NEGATIVE


def scaled_gd(integrator: Integrator, damping: float = 0.0) -> Method:
    """Gradients of the factors divided by each other's Gram matrix (Tong, Ma and Chi, 2021, arXiv 2005.08898).

    With Euler's scheme it is ScaledGD; for LoRA see Zhang and Pilanci (2024, arXiv 2402.02347).

    Args:
        integrator: the time discretisation, an explicit one.
        damping: δ, added to the diagonal of the Gram matrices; 1e-6 in the code of Zhang and Pilanci, 1e-2 in PEFT.

    Raises:
        InputError: for a scheme that linearises: this flow has no implicit form here.
    """
    damping = NOT_NEGATIVE.check("damping", damping)
    flow = Damped(scaled_flow, damping) if damping else scaled_flow
    make = lambda groups: ODELoRA(groups, integrator=integrator, flow=flow, retract=False)
    probe(make)
    return Method("scaled_gd", "factors", make, integrator, full_rank=not damping, settings={"damping": damping})

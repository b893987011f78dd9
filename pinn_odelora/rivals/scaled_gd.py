"""Scaled gradient descent: an explicit discretisation of the flow of ``flows.scaled``."""

from __future__ import annotations

from pinn_odelora.flows import scaled_flow
from pinn_odelora.integrators import Integrator
from pinn_odelora.optim.methods import Method, probe
from pinn_odelora.optim.odelora import ODELoRA


def scaled_gd(integrator: Integrator) -> Method:
    """Gradients of the factors divided by each other's Gram matrix (Tong, Ma and Chi, 2021, arXiv 2005.08898).

    With Euler's scheme it is ScaledGD; for LoRA see Zhang and Pilanci (2024, arXiv 2402.02347).

    Args:
        integrator: the time discretisation, an explicit one.

    Raises:
        InputError: for a scheme that linearises: this flow has no implicit form here.
    """
    make = lambda groups: ODELoRA(groups, integrator=integrator, flow=scaled_flow, retract=False)
    probe(make)
    return Method("scaled_gd", "factors", make, integrator, full_rank=True)

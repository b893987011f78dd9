"""Natural gradient descent on all weights, without what this package adds to it: momentum and the choice of points.

J. Müller and M. Zeinhofer, 2023, arXiv 2302.13163; in kernel form A. Jnini and F. Vella, 2025, arXiv 2505.21404. The
step (JᵀJ + μ) d = −Jᵀr is that of ``full_implicit``, with its control of μ instead of the authors' line search.
"""

from __future__ import annotations

from dataclasses import replace

from pinn_odelora.integrators import Integrator
from pinn_odelora.optim.methods import Method, full_implicit


def full_natural(integrator: Integrator) -> Method:
    """Natural gradient descent on all weights, without momentum (Müller and Zeinhofer, 2023, arXiv 2302.13163).

    Args:
        integrator: the time discretisation, one that linearises; ``linearly_implicit`` has no momentum unless it is
            set.

    Raises:
        InputError: for a scheme that does not linearise.
    """
    if getattr(integrator, "momentum", 0.0) is None:
        integrator = replace(integrator, momentum=0.0)
    return replace(full_implicit(integrator), name="full_natural")

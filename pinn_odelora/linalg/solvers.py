"""The solver of the damped systems of a step, by how its Jacobian is given."""

from __future__ import annotations

from torch import Tensor

from pinn_odelora.linalg.conjugate_gradients import ConjugateGradients
from pinn_odelora.linalg.damped import Damped, Operator, Solver


def solver_for(J: Tensor | Operator, single: bool = True) -> Solver:
    """``Damped`` for a matrix and for an operator with a kernel, conjugate gradients for one without.

    ``single``: whether float32 may be used where it is safe.
    """
    if isinstance(J, Tensor) or J.has_kernel:
        return Damped(J, single)
    return ConjugateGradients(J)

"""The solver of a step's damped systems, chosen by the representation of its Jacobian."""

from __future__ import annotations

from torch import Tensor

from pinn_odelora.linalg.conjugate_gradients import ConjugateGradients
from pinn_odelora.linalg.damped import Damped, Operator, Solver


def solver_for(J: Tensor | Operator, single: bool = True) -> Solver:
    """``Damped`` for a matrix or an operator with a kernel, else ``ConjugateGradients``.

    Args:
        J: (R, P).
        single: whether float32 may be used if it is accurate enough.
    """
    if isinstance(J, Tensor) or J.has_kernel:
        return Damped(J, single)
    return ConjugateGradients(J)

"""A residual that has no value where the solution has one: the root or logarithm of a negative u, a quotient by zero.

The smooth function that problems are checked with is positive, so that this shows only while a network is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pinn_odelora.checks.evaluation import Asked, first_not_finite, place, spoken
from pinn_odelora.derivatives.autograd import AutogradField

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem, Term
    from pinn_odelora.points import Points

ADVICE = "Give it values there too, as u.clamp(min=1e-6).sqrt() has, or solve for v with u = v² or u = exp v"


@torch.enable_grad()
def outside_domain(problem: Problem, name: str, term: Term, solution: Callable[[Points], Tensor], p: Points) -> str:
    """What is said of a term that is not finite at some point though all that it asks of the solution is; else nothing.

    Args:
        problem: names what a residual may read.
        name: of the term.
        term: of the loss.
        solution: Points -> (N, what can be read).
        p: its points.
    """
    field = Asked(AutogradField(solution, p, problem.readable, problem.coords))
    row = first_not_finite(r := term.rows(field))
    read = {key: float(x[row].detach()) for key, x in field.everything()} if row is not None else {}
    if not read or not all(bool(x[row].isfinite().all()) for _, x in field.everything()):
        return ""
    values = ", ".join(f"{key} = {x:.3g}" for key, x in read.items())
    return (
        f"The residual of {name} is {spoken(r[row])} at {place(field, row)}, though what it asks for is finite there "
        f"({values}): it divides by zero, or leaves a function's domain. {ADVICE}."
    )

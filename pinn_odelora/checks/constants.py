"""Fields that a problem determines only up to a constant, since all of its terms read their derivatives alone.

So do Neumann conditions on the whole boundary with a potential, or walls all around with the pressure of a flow. Adding
a constant to one output of the network then changes the solution, and no term.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pinn_odelora.checks.evaluation import Trial, some
from pinn_odelora.geometry import Cloud

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem, Term
    from pinn_odelora.points import Points

EQUAL = 1e-9
"""Changes that are rounding, relative to the constant plus the size of a component; 100 ε of the precision if that is
more."""
CONSTANTS = (1.0, 1e9, 1e18)
"""What is added: beside a density of 10¹⁷ one is rounding."""


def free_constants(
    problem: Problem, terms: Mapping[str, Term] | None = None, like: Tensor | None = None
) -> tuple[str, ...]:
    """The fields to which a constant can be added.

    Args:
        problem: with its conditions.
        terms: of the loss; those of the problem if not given.
        like: a tensor of the dtype and on the device of the solution; float64 on the CPU if not given.
    """
    terms = problem.loss_terms() if terms is None else terms
    free = lambda j: all(_is_free(problem, terms, j, constant, like) for constant in CONSTANTS)
    return tuple(name for j, name in enumerate(problem.fields) if free(j))


def said(fields: Sequence[str]) -> str:
    """One sentence on them, without a full stop."""
    names, them, their = " and ".join(fields), "it", "its value"
    if len(fields) > 1:
        them, their = "them", "their values"
    return (
        f"{names} {'are' if len(fields) > 1 else 'is'} determined up to a constant only, since no term changes when "
        f"one is added to {them}: add a condition on {their}, on a part of the boundary or at one point, a po.Cloud"
    )


def _is_free(problem: Problem, terms: Mapping[str, Term], j: int, constant: float, like: Tensor | None) -> bool:
    here = some(problem.region, like=like)
    if not _differ(*(trial(here) for trial in _pair(problem, here, j, constant)), constant):
        return False  # the ansatz takes a constant off again, as one of mean zero
    for term in terms.values():
        # Of measurements every one, since each may be of another field.
        p = some(term.where, sys.maxsize, like) if isinstance(term.where, Cloud) else some(term.where, like=like)
        with torch.enable_grad():
            rows = [term.rows(trial.field(p)) for trial in _pair(problem, p, j, constant)]
        if _differ(*rows, constant):
            return False
    return True


def _pair(problem: Problem, p: Points, j: int, constant: float) -> tuple[Trial, Trial]:
    """A solution, and that of the network with a constant added to its output number j."""
    like = p[problem.coords[0]]
    shift = torch.zeros(len(problem.fields)).to(like)
    shift[j] = constant
    return Trial(problem, like), Trial(problem, like, shift=shift)


def _differ(a: Tensor, b: Tensor, constant: float) -> bool:
    # Each column by itself: beside a traction in pascals the displacement of a wall is rounding.
    tolerance = max(EQUAL, 100 * torch.finfo(a.dtype).eps)
    return not bool(((a - b).abs() <= tolerance * (constant + a.abs().amax(dim=0))).all())  # so that NaN differs

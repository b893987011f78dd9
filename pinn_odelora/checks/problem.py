"""Everything that a few points show of a problem under its conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pinn_odelora.checks.ansatz import check_ansatz, check_enforced, check_seams
from pinn_odelora.checks.evaluation import check_functions, some

if TYPE_CHECKING:
    from pinn_odelora.formulation import Problem, Term


def check_problem(problem: Problem, terms: Mapping[str, Term] | None = None, like: Tensor | None = None) -> None:
    """Evaluate ansatz, enforced terms and the residuals of the loss.

    Args:
        problem: with its conditions.
        terms: of the loss; those of the problem if not given.
        like: a tensor of the dtype and on the device of the solution; float64 on the CPU if not given.

    Raises:
        InputError: for the first thing that is wrong.
    """
    if problem.conditions == "hard":
        check_ansatz(problem, like)
        every = problem.terms()
        for name in problem.enforced:
            check_enforced(problem, name, every[name], some(every[name].where, like=like))
    terms = problem.loss_terms() if terms is None else terms
    along = check_functions(problem, terms, {name: some(term.where, like=like) for name, term in terms.items()})
    if problem.conditions == "hard":
        check_seams(problem, along, like)

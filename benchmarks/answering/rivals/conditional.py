"""One network for the whole family, with the parameter as a further input,  N(x, t, q),  trained by natural gradient.

q from 0 to 1 is the coordinate of the family's scale, and is drawn like the others. An answer is an evaluation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

import pinn_odelora as po
from answering.cases import Case
from answering.rivals.training import Seen, train
from answering.trace import Function
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.geometry import Box, Region, Union
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System


def varying(case: Case, column: Tensor) -> Problem:
    """The problem with another value of the parameter at every point, (N, 1)."""
    problem = copy.copy(case.at(case.source))
    object.__setattr__(problem, case.parameter, column)
    return problem


def widened(region: Region) -> Region:
    """The region for every parameter."""
    if isinstance(region, Union):
        return Union(*(widened(part) for part in region.parts))
    if not isinstance(region, Box):
        raise NotImplementedError("the regions of all cases are made of boxes")
    return Box(**region.bounds, q=(0, 1))


def widened_problem(case: Case) -> Problem:
    """The family as one problem with the further coordinate q."""
    source = case.at(case.source)
    at = lambda p: varying(case, case.value(p.q))

    def term(name: str, given: Term) -> Term:
        residual = lambda f: at(f).terms()[name].residual(Seen(f, source))
        return Term(widened(given.where), residual, given.weight)

    hard = source.conditions == "hard"
    conditions = {"ansatz": lambda p: at(p).ansatz(p), "enforced": source.enforced} if hard else {}
    return po.problem(
        name="Conditional",
        coords=(*source.coords, "q"),
        fields=source.fields,
        region=widened(source.region),
        periods=source.periods,
        **conditions,
        **{name: term(name, given) for name, given in source.terms().items()},
    )


def conditional(case: Case, seed: int, seconds: float) -> Callable[[float], Function]:
    """Train for so many CPU seconds; the answers."""
    problem = widened_problem(case)
    solution = Solution(problem, case.net(seed, inputs=problem.inputs))
    train(System(problem, solution), seconds, seed)

    def answer(value: float) -> Function:
        q = case.unit(value)
        return lambda p: solution(Points({**p, "q": torch.full_like(next(iter(p.values())), q)}))

    return answer

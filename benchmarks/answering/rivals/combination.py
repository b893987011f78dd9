"""A linear combination of the stations' solutions,  u = Σ c_j u_j,  in the manner of GPT-PINN.

There (Chen and Koohy, 2024, arXiv 2303.14878) pretrained networks at greedily chosen parameters are the neurons of one
hidden layer, and the coefficients are trained for every target by gradient descent on the residual; here by
Gauss–Newton, which finds the best ones. The stations are the family's, so that offline time is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from answering.cases import Case
from answering.rivals.span import Span
from answering.trace import Function
from pinn_odelora.points import Points


def combination(case: Case, values: Sequence[float], solutions: Sequence[Function]) -> Callable[[float], Function]:
    """The answers from solutions at these values."""
    source = case.at(case.source)

    def basis(p: Points, field: str) -> Tensor:
        i = source.fields.index(field)
        return torch.cat([u(p)[:, i : i + 1] for u in solutions], dim=1)

    span = Span(source, basis, len(solutions), conditions=False)
    units = torch.tensor([case.unit(value) for value in values], dtype=torch.float64)

    def answer(value: float) -> Function:
        problem = case.at(value)
        start = torch.zeros(len(units), dtype=torch.float64)
        start[(units - case.unit(value)).abs().argmin()] = 1
        return span.solution(problem, span.solve(problem, start))

    return answer

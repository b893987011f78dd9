"""One-shot transfer: the hidden layers stay, and the last one is solved for every target.

``multi_head``: the hidden layers are trained on several parameters at once, a head for each (Zou and Karniadakis, 2023,
arXiv 2301.02152; Desai et al., 2022, arXiv 2110.11286). ``one_head``: they are those of the pretrained network.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import pinn_odelora as po
from answering.cases import Case
from answering.rivals.span import Span
from answering.rivals.training import Seen, train
from answering.trace import Function
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.nets import MLP
from pinn_odelora.nets.mlp import ACTIVATIONS
from pinn_odelora.points import Points
from pinn_odelora.system import Solution, System

HEADS = 8


def hidden(net: MLP, x: Tensor) -> Tensor:
    """The last hidden layer and a constant, (N, width + 1)."""
    for linear in net.linears[:-1]:
        x = ACTIVATIONS[net.activation](linear(x))
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def last_layer(case: Case, net: MLP) -> Callable[[float], Function]:
    """Answers by its hidden layers; the cut-off of the ansatz is that at the source, which serves all parameters."""
    source = case.at(case.source)
    fields, size = source.fields, case.width + 1

    def basis(p: Points, field: str) -> Tensor:
        h = hidden(net, source.embed(p))
        if source.conditions == "hard":
            h = source.ansatz(p)[1] * h
        i = fields.index(field)
        return torch.cat([h if j == i else torch.zeros_like(h) for j in range(len(fields))], dim=1)

    span = Span(source, basis, size * len(fields), conditions=True)
    start = torch.zeros(size * len(fields), dtype=torch.float64)

    def answer(value: float) -> Function:
        problem = case.at(value)
        return span.solution(problem, span.solve(problem, start))

    return answer


def joint_problem(case: Case, number: int = HEADS) -> Problem:
    """The problems at several parameters as one, each with components of its own."""
    problems = {str(k): case.at(case.value(k / (number - 1))) for k in range(number)}
    first = problems["0"]

    def term(suffix: str, problem: Problem, given: Term) -> Term:
        return Term(given.where, lambda f: given.residual(Seen(f, problem, suffix)), given.weight)

    def ansatz(p: Points) -> tuple[Tensor, Tensor]:
        parts = [problem.ansatz(p) for problem in problems.values()]
        whole = lambda x: x if x.shape[1] == len(first.fields) else torch.cat([x] * len(first.fields), dim=1)
        return torch.cat([whole(g) for g, _ in parts], dim=1), torch.cat([whole(m) for _, m in parts], dim=1)

    terms = {
        f"{name}{suffix}": term(suffix, problem, given)
        for suffix, problem in problems.items()
        for name, given in problem.terms().items()
    }
    enforced = [f"{name}{suffix}" for suffix in problems for name in first.enforced]
    return po.problem(
        name="Joint",
        coords=first.coords,
        fields=[field + suffix for suffix in problems for field in first.fields],
        region=first.region,
        periods=first.periods,
        **({"ansatz": ansatz, "enforced": enforced} if first.conditions == "hard" else {}),
        **terms,
    )


def multi_head(case: Case, seed: int, seconds: float) -> Callable[[float], Function]:
    """Train for so many CPU seconds; the answers."""
    problem = joint_problem(case)
    net = case.net(seed, outputs=len(problem.fields))
    train(System(problem, Solution(problem, net)), seconds, seed)
    return last_layer(case, net)

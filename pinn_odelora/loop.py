"""One step of a run, and what is asked around it, whoever counts and times it.

look        is the network as it stands the best so far? (``incumbent``; ``close`` at the end)
advance     points are chosen, the optimiser steps, the ranks follow the gradient there (``lowrank.adaptive``)
look_back   how many rows does the next step have? (``growth``)
"""

from __future__ import annotations

from torch.optim import Optimizer

from pinn_odelora.objective import Draw, Evaluator
from pinn_odelora.optim.implicit import ImplicitODELoRA
from pinn_odelora.points import Points
from pinn_odelora.sampling.batch_size import Growth, ended, serve
from pinn_odelora.sampling.sampler import PointStream
from pinn_odelora.selection.best_iterate import FEW, ROUND, Incumbent, scatters
from pinn_odelora.selection.rank import Ranks


def looks(optimizer: Optimizer, stream: PointStream) -> bool:
    """Whether scheme and points are such that a run ends with the best point it has seen."""
    return stream.validates and scatters(optimizer)


def look(incumbent: Incumbent, evaluator: Evaluator, stream: PointStream, number: int) -> None:
    """Before that step: the network as it stands may be the best so far."""
    incumbent.look(evaluator, _validation(evaluator, stream, stream.total // FEW))
    if number % ROUND == 0:
        close(incumbent, evaluator, stream)


def close(incumbent: Incumbent, evaluator: Evaluator, stream: PointStream) -> None:
    """End the round of steps at hand."""
    incumbent.close(evaluator, lambda times: _validation(evaluator, stream, times * stream.total))


def _validation(evaluator: Evaluator, stream: PointStream, rows: int) -> dict[str, Points]:
    return stream.validation(rows, evaluator.parameters[0].device)


def advance(
    evaluator: Evaluator, optimizer: Optimizer, stream: PointStream, candidates: Draw, ranks: Ranks | None
) -> None:
    """A step with points of ``candidates``, and the ranks that the next one has.

    Raises:
        NonFiniteError: where loss or gradient have no value; the network is left where it was asked.
    """
    evaluator.begin(stream.chosen(candidates, evaluator.residuals))
    optimizer.step(evaluator)
    if ranks is None:
        return
    solves = isinstance(optimizer, ImplicitODELoRA)
    serves = lambda columns: not solves or serve(columns, stream.all, stream.enough, ranks.rule.rows)
    if ranks.look_back(evaluator.first.weights, serves):
        optimizer.rank_changed()


def look_back(growth: Growth, evaluator: Evaluator, optimizer: Optimizer, stream: PointStream) -> None:
    """After a step: the rows of the next one."""
    first = evaluator.first
    still = sum(float(first.terms[name]) for name in stream.still)
    growth.look_back(stream.most, float(first.total), ended(optimizer), still, stream.enough)

"""The best solution in the span of given functions,  u = g + Σ_j c_j φ_j,  by Gauss–Newton on the residual.

The functions do not change, so that their derivatives at fixed points are taken once, before anything is asked for;
an answer then needs products of matrices with c alone, and the Jacobian by c is exact. For a linear equation one step
is the solution. Whoever has φ_j = m h_j with the last hidden layer h of a network and the cut-off m of its ansatz
solves for the last layer (Desai et al., 2022, arXiv 2110.11286); with solutions at other parameters for φ_j one has
the combination of GPT-PINN (Chen and Koohy, 2024, arXiv 2303.14878).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from answering.trace import Function
from pinn_odelora.derivatives.field import Field
from pinn_odelora.formulation import Problem, Term
from pinn_odelora.points import Points
from pinn_odelora.system import draw_points

INTERIOR, BOUNDARY = 1000, 200
STEPS, ENOUGH, SMALLEST = 12, 1e-2, 1e-13
"""Steps at most; relative fall of ‖r‖² below which they end; smallest singular value that counts, of the largest."""
Basis = Callable[[Points, str], Tensor]
"""Values of all functions for one field at points, (N, K)."""


def along(function: Function, p: Points, word: str) -> Tensor:
    """∂^k function / ∂word₁ … ∂word_k of every column, by forward mode; row i depends on point i alone."""
    if not word:
        return function(p)
    c, rest = word[0], word[1:]
    moved = lambda x: along(function, Points({**p, c: x}), rest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of the jit that it loads at the first call
        return torch.func.jvp(moved, (p[c],), (torch.ones_like(p[c]),))[1]


class Combined(Field):
    """u = g + Σ c_j φ_j from the derivatives of its parts."""

    def __init__(self, problem: Problem, points: Points, parts: Callable[[str, str], Tensor]) -> None:
        super().__init__(points, problem.fields, problem.coords)
        self.parts = parts

    def derivative(self, field: str, along: str) -> Tensor:
        return self.parts(field, "".join(sorted(along)))

    def at(self, **columns: Tensor) -> Field:
        raise NotImplementedError("no case evaluates its solution at moved points")


class Span:
    """Functions with their derivatives at fixed points.

    Args:
        problem: any of the family, for its points and what is asked of a field.
        basis: the functions.
        number: K.
        conditions: whether the functions satisfy the enforced terms by themselves, or these are to be fitted as well.
        seed: of the points.
    """

    def __init__(self, problem: Problem, basis: Basis, number: int, *, conditions: bool, seed: int = 0) -> None:
        self.basis, self.number, self.conditions = basis, number, conditions
        self.points = draw_points(self._terms(problem), INTERIOR, BOUNDARY, seed, purpose="span")
        self._tables: dict[tuple[str, str, str], Tensor] = {}
        self._rows(problem, torch.zeros(number, dtype=torch.float64))

    def _terms(self, problem: Problem) -> Mapping[str, Term]:
        return problem.loss_terms() if self.conditions else problem.terms()

    def _table(self, name: str, field: str, word: str) -> Tensor:
        key = name, field, word
        if key not in self._tables:
            with torch.no_grad():
                self._tables[key] = along(lambda p: self.basis(p, field), self.points[name], word)
        return self._tables[key]

    def _rows(self, problem: Problem, c: Tensor, shifts: dict | None = None) -> Tensor:
        """r with L = ½‖r‖² as ``System`` has it, (R,)."""
        found, shifts = [], {} if shifts is None else shifts
        for name, term in self._terms(problem).items():
            p = self.points[name]

            def parts(field: str, word: str, name: str = name, p: Points = p) -> Tensor:
                key = name, field, word
                if key not in shifts:
                    shifts[key] = self._shift(problem, p, field, word)
                return shifts[key] + (self._table(*key) @ c)[:, None]

            r = term.rows(Combined(problem, p, parts))
            found.append((2 * term.weight / len(r)) ** 0.5 * r.mT.flatten())
        return torch.cat(found)

    def _shift(self, problem: Problem, p: Points, field: str, word: str) -> Tensor:
        """g and its derivatives; zero where the conditions are not enforced."""
        if not self.conditions or problem.conditions == "soft":
            return torch.zeros_like(p[problem.coords[0]])
        i = problem.fields.index(field)
        with torch.no_grad():
            g = along(lambda p: problem.ansatz(p)[0], p, word)
        return g[:, i : i + 1] if g.shape[1] > 1 else g

    def solve(self, problem: Problem, start: Tensor) -> Tensor:
        """c, (K,), from a first guess."""
        shifts: dict = {}
        rows = lambda c: self._rows(problem, c, shifts)
        c, r = start, rows(start)
        for _ in range(STEPS):
            J = torch.func.jacfwd(rows)(c)
            scale = J.norm(dim=0).clamp_min(1e-300)
            d = torch.linalg.lstsq(J / scale, -r[:, None], rcond=SMALLEST, driver="gelsd").solution[:, 0] / scale
            for halvings in range(6):
                there = c + d / 2**halvings
                new = rows(there)
                if new @ new < r @ r:
                    break
            else:
                return c
            fall = 1 - float(new @ new / (r @ r))
            c, r = there, new
            if fall < ENOUGH:
                return c
        return c

    def solution(self, problem: Problem, c: Tensor) -> Function:
        """u as a function of points."""

        def u(p: Points) -> Tensor:
            columns = [self.basis(p, field) @ c + self._shift(problem, p, field, "")[:, 0] for field in problem.fields]
            return torch.stack(columns, dim=1)

        return u

"""The common base of problems whose unknown is a low-rank matrix instead of a function.

A network whose only weight is W learns the functional  u(M) = ⟨M, W⟩  of m × n matrices. Its target is

    W* = U diag(σ) V ,   σ_1 = ‖W*‖₂, …, σ_r = σ_1/κ  in geometric progression,

with orthonormal factors drawn from the seed. The source problem has another seed, and a smaller, perfectly conditioned
solution, σ = (0.1, …, 0.1). From a small start the factors first align with the leading singular vectors of the
gradient, and then grow (Stöger and Soltanolkotabi, 2021, arXiv 2106.15013); from a start as large as the target,
weighted problems may end in a local minimum.

An adapter leaves the function of a network unchanged at the start, so that W = W0 − s B0A0 + s BA. Factors of rank r
can therefore represent a target of rank r exactly only if W0 − s B0A0 = 0, that is, if the rank of W0 is at most that
of the factors and their start is its best approximation (Meng et al., 2024, arXiv 2404.02948). Training all weights on
5 r (m + n − r) measurements, fewer than the m·n unknowns, would not find such a W0. The network is therefore
constructed at the source matrix, without pretraining, and the source matrix has the rank of the factors, independently
of the rank of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pinn_odelora.errors import RefusedValueError
from pinn_odelora.formulation import Problem, parameter
from pinn_odelora.geometry import Region
from pinn_odelora.matrices import ENTRIES, UnitMatrices, entry_names, low_rank_matrix, spectrum
from pinn_odelora.points import Points
from pinn_odelora.rules import check, number, whole


def plain(value: float | Tensor) -> float:
    """The number behind a parameter, which is a tensor if it is unknown; no residual depends on it."""
    return value.item() if isinstance(value, Tensor) else float(value)


@dataclass(frozen=True, kw_only=True)
class MatrixProblem(Problem):
    """⟨M, W⟩ = ⟨M, W*⟩ for matrices M chosen by a subclass.

    Args:
        seed: of the target and all other random numbers of the problem.
        rank: r of the target; in the source problem that of the factors.
        condition: κ, the ratio of its largest to its smallest singular value.
        size: its largest singular value, σ_1.
        rows, columns: m, n.

    Raises:
        InputError: if a size is not a positive number, or too large; if the rank exceeds min(m, n); if κ < 1.
    """

    supports: ClassVar = ("soft",)
    scales: ClassVar = {}

    seed: int = parameter(0, 1, above=-1, integer=True)
    rank: int = parameter(3, 3, above=0, integer=True)
    condition: float = parameter(1.0, 100.0, above=0)
    size: float = parameter(0.1, 1.0, above=0)
    rows: int = 20
    columns: int = 20

    def __post_init__(self) -> None:
        self._check_target()
        super().__post_init__()

    def _check_target(self) -> None:
        """Check the parameters before ``terms`` draws the target."""
        for name, declared in self.parameters().items():
            declared.check(name, getattr(self, name))
        check(self, rows=whole(1), columns=whole(1))
        m, n = self.rows, self.columns
        if m * n > ENTRIES:
            allowed = f"at most {ENTRIES // n} with {n} columns: a matrix has {ENTRIES} entries at most"
            raise RefusedValueError("rows", m, allowed)
        if self.rank > min(m, n):
            raise RefusedValueError("rank", self.rank, f"at most {min(m, n)} for a {m} × {n} matrix")
        number(least=1).check("condition", plain(self.condition))

    @property
    def coords(self) -> tuple[str, ...]:
        """The m·n entries of a matrix, row by row."""
        return entry_names(self.rows, self.columns)

    @property
    def region(self) -> Region:
        """All unit matrices."""
        return UnitMatrices(self.rows, self.columns)

    @property
    def generator(self) -> torch.Generator:
        """A new generator with the problem's seed, from which the target is drawn first."""
        return torch.Generator().manual_seed(int(self.seed))

    def drawn(self, generator: torch.Generator) -> Tensor:
        """The target W*, (m, n), from a new ``generator``."""
        sigma = plain(self.size) * spectrum(int(self.rank), plain(self.condition))
        return low_rank_matrix(self.rows, self.columns, sigma, generator)

    @property
    def matrix(self) -> Tensor:
        """W*, (m, n), float64."""
        return self.drawn(self.generator)

    def reference(self, p: Points) -> Tensor:
        M = p.rows(self.coords)
        return M @ self.matrix.to(M).flatten()[:, None]

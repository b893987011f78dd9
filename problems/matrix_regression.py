"""Matrix regression: low-rank approximation in a weighted norm, a strongly convex loss with known curvature.

The eigenvalues of the Hessian of  L = ½ Σ_kl w_kl (W − W*)_kl²  are the weights w_kl. As a function of all entries of W
it is a separable quadratic with condition number max w / min w. Over matrices of rank r it is weighted low-rank
approximation, which has no closed-form solution and may have local minima (Srebro and Jaakkola, 2003, ICML).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.matrices import matrix_points
from pinn_odelora.matrix_problem import MatrixProblem
from pinn_odelora.points import Points
from pinn_odelora.rules import number


@dataclass(frozen=True, kw_only=True)
class MatrixRegression(MatrixProblem):
    """√w_kl W_kl = √w_kl W*_kl for k = 1, …, m and l = 1, …, n;  W* of rank r.

    L = ½ Σ_kl w_kl (W − W*)_kl²: the points are the matrices √w_kl E_kl, and the weight of the term is m n / 2.

    Args:
        curvature: max w / min w; the weights are a geometric progression from 1 to this value, in random order.

    Raises:
        InputError: as ``MatrixProblem``, and if the curvature is less than 1.
    """

    curvature: float = 100.0

    def __post_init__(self) -> None:
        number(least=1).check("curvature", self.curvature)
        super().__post_init__()

    def entry_weights(self) -> Tensor:
        """w_kl, (m, n)."""
        generator = self.generator
        W = self.drawn(generator)
        w = torch.as_tensor(self.curvature, dtype=W.dtype) ** torch.linspace(0, 1, W.numel(), dtype=W.dtype)
        return w[torch.randperm(W.numel(), generator=generator)].reshape(W.shape)

    def weighted_entries(self) -> Points:
        """The m·n matrices √w_kl E_kl, with the values b = √w_kl W*_kl as a further column, (m·n, 1)."""
        root = self.entry_weights().sqrt()
        M = torch.diag(root.flatten()).unflatten(1, root.shape)
        return Points(matrix_points(M) | {"b": (root * self.matrix).reshape(-1, 1)})

    def terms(self) -> dict[str, Term]:
        where = Cloud(self.weighted_entries())
        return {"measured": Term(where, lambda f: f.u - f.b, weight=self.rows * self.columns / 2)}

"""Matrix sensing: recover a low-rank matrix from few Gaussian measurements.

R measurements  b_i = ⟨M_i, W*⟩ + e_i, with independent standard normal entries of M_i, determine W* among all matrices
of its rank r if R is a small multiple of r (m + n − r), the dimension of their manifold, because the measurement map is
then nearly an isometry on these matrices (Recht, Fazel and Parrilo, 2010, SIAM Rev. 52, arXiv 0706.4138; Candès and
Plan, 2011, IEEE Trans. Inf. Theory 57, arXiv 1001.0339).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pinn_odelora.formulation import Term
from pinn_odelora.geometry import Cloud
from pinn_odelora.matrices import GaussianMatrices, matrix_points
from pinn_odelora.matrix_problem import MatrixProblem
from pinn_odelora.points import Points
from pinn_odelora.rules import number, whole


@dataclass(frozen=True, kw_only=True)
class MatrixSensing(MatrixProblem):
    """⟨M_i, W⟩ = b_i for Gaussian M_i and i = 1, …, R;  b_i = ⟨M_i, W*⟩ + e_i, W* of rank r.

    L = mean_i (⟨M_i, W⟩ − b_i)², always over the same measurements; held-out measurements are new and noise-free.

    Args:
        measurements: R; None for 5 r (m + n − r).
        noise: root mean square of e_i, relative to that of ⟨M_i, W*⟩.

    Raises:
        InputError: as ``MatrixProblem``, and if there is no measurement or the noise is negative.
    """

    measurements: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.measurements is not None:
            whole(1).check("measurements", self.measurements)
        number(least=0).check("noise", self.noise)
        super().__post_init__()

    @property
    def number(self) -> int:
        """R."""
        r = int(self.rank)
        return 5 * r * (self.rows + self.columns - r) if self.measurements is None else self.measurements

    def measured(self) -> Points:
        """The matrices M_i, with the values b_i as a further column, (R, 1)."""
        generator = self.generator
        W = self.drawn(generator)
        M = torch.randn(self.number, *W.shape, generator=generator, dtype=W.dtype)
        exact = M.flatten(1) @ W.flatten()[:, None]
        e = torch.randn(self.number, 1, generator=generator, dtype=W.dtype)
        # Rescaled, so that the given noise holds exactly for any R.
        e *= self.noise * exact.norm() / e.norm()
        return Points(matrix_points(M) | {"b": exact + e})

    def terms(self) -> dict[str, Term]:
        return {
            "measured": Term(
                Cloud(self.measured()), lambda f: f.u - f.b, heldout=GaussianMatrices(self.matrix, interior=True)
            )
        }

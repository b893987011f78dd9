"""The adapted layer of DoRA: a direction and a magnitude of each row of the weight, one for each output.

    W = diag(μ / ‖V‖) V ,    V = W0 + s·(B A − B₀ A₀) ,    ‖V‖ the norms of the rows of V,

with A, B and μ (m,) trained; μ starts at ‖W0‖, so that the function is unchanged at first. μ is the paper's m, and ‖V‖
is a constant of the gradient, as it proposes (Liu et al., 2024, arXiv 2402.09353, section 4.3). The stationary points
are those of the loss itself: where ∂L/∂μ = 0, the gradient has no part along V.

W − W0 is no product s·B A. So no adapter holds it, nothing linearises it, and its pairs are not those of
``factor_pairs``; ``merged_state_dict`` gives the whole weights.
"""

from __future__ import annotations

from torch import Tensor, linalg, nn

from pinn_odelora.errors import InputError
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.manifolds.factors import Factors


class MagnitudeLinear(LowRankLinear):
    """A ``LowRankLinear`` whose rows have trained norms.

    Args:
        base: the pretrained layer, weight (m, n), frozen and kept as ``base_layer``.
        start: initial factors A₀ (r, n) and B₀ (m, r).
        scale: s.
        subtracted: whether their product is subtracted.

    Raises:
        InputError: if a row of the weight is zero, which has no direction.
    """

    is_product = False

    def __init__(self, base: nn.Linear, start: Factors, scale: float, subtracted: bool = True) -> None:
        norms = linalg.vector_norm(base.weight.detach(), dim=1)
        if not bool(norms.all()):
            raise InputError("a row of a weight to adapt is zero, but DoRA needs a direction of every row.")
        super().__init__(base, start, scale, subtracted)
        self.magnitude = nn.Parameter(norms)

    @property
    def direction(self) -> Tensor:
        """V, (m, n), whose rows have any norm."""
        return self.base_layer.weight + self.update()

    @property
    def weight(self) -> Tensor:
        """The effective weight W, (m, n); inside ``formed_weights`` always the same tensor."""
        if self._formed is not None:
            return self._formed
        V = self.direction
        return (self.magnitude / linalg.vector_norm(V.detach(), dim=1))[:, None] * V

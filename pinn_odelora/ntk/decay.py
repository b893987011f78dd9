"""Weight decay on the factors,  (λ/2) Σ_l (‖A_l‖² + ‖B_l‖²),  as a further term of the loss.

In the factors its gradient is λA and λB. A balanced pair with s·B A = U Σ Vᵀ has decay (λ/s) tr Σ: on the manifold of
products it is the nuclear norm, whose gradient there is (λ/s) U Vᵀ. The two agree on balanced pairs,
s Bᵀ (λ/s) U Vᵀ = λA. A scheme that linearises is given one more residual for each layer,

    ρ_l = √(2 (λ/s) ‖δ_l‖_*) ,    ½ρ_l² = (λ/s) ‖δ_l‖_* ,    ∂ρ_l/∂δ_l = (λ/s) U Vᵀ / ρ_l ,

so that loss and gradient are exact; of the curvature it sees the part ∂ρ ∂ρᵀ.

Where the rank exceeds that of the minimiser, the gradient flow of the factors shrinks the singular values that are too
many exponentially. The flow on products moves them at a speed that does not depend on their size, dσ/dt = −λ/s − uᵀGv,
and would have them at zero in finite time, where it is singular: steps of size h leave them at O(h).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pinn_odelora.linearisation import Linearisation
from pinn_odelora.linearisation.blocks import Formed, Group
from pinn_odelora.lowrank.layer import LowRankLinear
from pinn_odelora.manifolds.fixed_rank import LowRank, low_rank
from pinn_odelora.objective import Evaluation, Objective

TERM = "decay"


class DecayedObjective(Objective):
    """An objective with weight decay on the factors of its adapted layers, counted and reported as the term ``decay``.

    Args:
        decay: λ ≥ 0; the others are those of ``Objective``.
    """

    def __init__(self, *args: object, decay: float) -> None:
        super().__init__(*args)
        self.decay = decay
        plain = self._residual_vector
        self._residual_vector = lambda points: torch.cat([plain(points), self._rows()])

    @property
    def _pairs(self) -> dict[str, LowRankLinear]:
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, LowRankLinear)}

    def _products(self) -> dict[str, LowRank]:
        return {name: low_rank(layer.factors, layer.scale) for name, layer in self._pairs.items()}

    def penalty(self) -> Tensor:
        """(λ/2) Σ_l (‖A_l‖² + ‖B_l‖²) at the factors as they are."""
        return self.decay / 2 * sum(x.detach().square().sum() for y in self._pairs.values() for x in y.factors)

    def _evaluate(self) -> Evaluation:
        found, penalty = super()._evaluate(), self.penalty()
        factors = {id(x) for layer in self._pairs.values() for x in layer.factors}
        decayed = lambda p, g: g + self.decay * p.detach() if id(p) in factors else g
        weights = dict(found.weights)
        for name, y in self._products().items():
            weights[name] = weights[name] + self.decay / self._pairs[name].scale * y.U @ y.V
        return found._replace(
            total=found.total + penalty,
            terms={**found.terms, TERM: penalty},
            gradients=[decayed(p, g) for p, g in zip(self.parameters, found.gradients, strict=True)],
            weights=weights,
        )

    def linearise(self, memory: float = 2.0**30) -> Linearisation:
        around = Linearisation(self.sweep, self.batch.points, memory=memory, further=[self._group()])
        evaluation = self._described(around)
        self.count += 1
        if self.first is None:
            self._began(evaluation)
        return around

    def _rows(self) -> Tensor:
        """ρ_l of every layer, (L,)."""
        weights = [2 * self.decay / layer.scale for layer in self._pairs.values()]
        return torch.stack([w * y.sigma.sum() for w, y in zip(weights, self._products().values(), strict=True)]).sqrt()

    def _group(self) -> Group:
        """ρ with its Jacobian by layer."""
        rho, layers = self._rows(), self.variables.layers
        blocks = {name: Formed(rho.new_zeros(len(rho), *layer.weight.shape)) for name, layer in layers.items()}
        for l, (name, y) in enumerate(self._products().items()):
            if rho[l] > 0:
                blocks[name].J[l] = self.decay / self._pairs[name].scale * (y.U @ y.V) / rho[l]
        columns = {name: rho.new_zeros(len(rho), x.numel()) for name, x in self.variables.others.items()}
        return Group(TERM, slice(0, len(rho)), rho, blocks, columns)

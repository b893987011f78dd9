"""The linearised model: outputs that are affine in a change δ of the weights, and a convex loss of them.

    f(δ) = f(W0) + J δ ,    J δ = Σ_l ⟨∂f/∂W_l, δ_l⟩ ,    F(δ) = φ(f(δ)) + μ Σ_l ‖δ_l‖_*

with one matrix δ_l (m, n) for each adapted layer, the nuclear norm ‖·‖_*, and a convex loss φ: the regime of the neural
tangent kernel (Jacot, Gabriel and Hongler, 2018, arXiv 1806.07572), in which Jang, Lee and Ryu (2024, arXiv 2402.11867)
study LoRA. Several layers are one block-diagonal unknown: its nuclear norm is the sum.

With factors δ_l = s·B_l A_l and weight decay λ on both, (λ/2)(‖A_l‖² + ‖B_l‖²) is at least (λ/s)‖δ_l‖_*, with equality
for balanced factors, because ‖X‖_* = min {½(‖A‖² + ‖B‖²) : B A = X} (Srebro, Rennie and Jaakkola, 2005). Both ways of
training therefore have the same minimum for μ = λ/s, if the rank of the factors is at least that of a minimiser.

A row is one scalar output: a weighted residual of an equation at a point, or one of K outputs for an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, linalg

from pinn_odelora.linearisation.blocks import Group
from pinn_odelora.ntk.losses import ConvexLoss

Delta = dict[str, Tensor]
"""δ by layer, each (m, n)."""


@dataclass(frozen=True)
class Linearised:
    """Outputs f(δ) = f(W0) + J δ of R rows, and their loss.

    Args:
        start: f(W0), (R,), float64.
        groups: the rows of J, with the Jacobian by layer.
        shapes: (m, n) of every layer.
        loss: φ.
        terms: rows by term of the loss.
        outputs: K, the outputs for each example; 1 for the residuals of an equation.
        slower: terms whose Jacobian was formed row by row, since one reverse sweep does not give it.
    """

    start: Tensor
    groups: Sequence[Group]
    shapes: Mapping[str, tuple[int, int]]
    loss: ConvexLoss
    terms: Mapping[str, slice]
    outputs: int = 1
    slower: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """R = K·N, the number of scalar equations."""
        return len(self.start)

    def zero(self) -> Delta:
        """δ = 0."""
        return {name: self.start.new_zeros(shape) for name, shape in self.shapes.items()}

    def apply(self, delta: Mapping[str, Tensor]) -> Tensor:
        """J δ, (R,), differentiable in δ; layers left out do not move."""
        out = torch.zeros_like(self.start)
        for group in self.groups:
            parts = [block.apply(delta[name]) for name, block in group.blocks.items() if name in delta]
            if parts:
                total = sum(parts[1:], parts[0])
                if len(total) == self.rows:
                    return total
                out = out.index_add(0, torch.arange(group.rows.start, group.rows.stop), total)
        return out

    def adjoint(self, w: Tensor) -> Delta:
        """Jᵀ w by layer; w (R,)."""
        total = self.zero()
        for group in self.groups:
            for name, block in group.blocks.items():
                total[name] += block.adjoint(w[group.rows])
        return total

    def values(self, delta: Mapping[str, Tensor]) -> Tensor:
        """f(δ), (R,)."""
        return self.start + self.apply(delta)

    def value(self, delta: Mapping[str, Tensor]) -> Tensor:
        """φ(f(δ)), without regularisation."""
        return self.loss.value(self.values(delta))

    def gradient(self, delta: Mapping[str, Tensor]) -> Delta:
        """∂φ/∂δ_l = Jᵀ ∇φ by layer."""
        return self.adjoint(self.loss.gradient(self.values(delta)))

    def penalised(self, delta: Mapping[str, Tensor], weight: float) -> Tensor:
        """F(δ) = φ(f(δ)) + μ Σ_l ‖δ_l‖_* for the weight μ."""
        return self.value(delta) + weight * nuclear_norm(delta)

    def matrix(self) -> Tensor:
        """J as an array, (R, Σ m·n), layer by layer."""
        J = self.start.new_empty(self.rows, sum(m * n for m, n in self.shapes.values()))
        for group in self.groups:
            J[group.rows] = torch.cat([group.blocks[name].formed().flatten(1) for name in self.shapes], dim=1)
        return J

    def kernel(self) -> Tensor:
        """The neural tangent kernel J Jᵀ of the adapted weights, (R, R)."""
        K = self.start.new_empty(self.rows, self.rows)
        for a in self.groups:
            for b in self.groups:
                K[a.rows, b.rows] = sum(block.kernel(b.blocks[name]) for name, block in a.blocks.items())
        return K

    def largest_weight(self) -> float:
        """The smallest μ for which δ = 0 is a minimiser: max_l ‖∂φ/∂δ_l(0)‖₂."""
        return spectral_norm(self.gradient(self.zero()))


def nuclear_norm(delta: Mapping[str, Tensor]) -> Tensor:
    """Σ_l ‖δ_l‖_*, differentiable; matrices δ_l (m, n) by layer."""
    return sum(linalg.svdvals(x).sum() for x in delta.values())


def spectral_norm(delta: Mapping[str, Tensor]) -> float:
    """max_l ‖δ_l‖₂, the dual norm."""
    return max(float(linalg.matrix_norm(x, 2)) for x in delta.values())


def ranks(delta: Mapping[str, Tensor], tolerance: float = 1e-7) -> dict[str, int]:
    """The rank of every δ_l: singular values above a part of the largest of all layers.

    Args:
        delta: δ by layer, (m, n).
        tolerance: that part.
    """
    sigma = {name: linalg.svdvals(x) for name, x in delta.items()}
    bound = tolerance * max(float(x[0]) for x in sigma.values())
    return {name: int((x > bound).sum()) if bound > 0 else 0 for name, x in sigma.items()}

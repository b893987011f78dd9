"""The Jacobian of N residuals with respect to one weight matrix, (N, m, n), formed or not.

A layer that maps channels H_c (N, n) to Z_c = H_c Wᵀ (N, m) contributes

    ∂r_i/∂W = Σ_c G_c[i] ⊗ H_c[i] ,        G_c = ∂(Σ_i r_i)/∂Z_c ,

if residual i depends on evaluation i alone. ``Outer`` stores the pairs (G_c, H_c) and computes everything from them;
``Formed`` stores the array, for residuals without pairs. Restricting W to L X R, X (k, l), preserves the form: the
pairs become (G_c L, H_c Rᵀ).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """G (N, m) and H (N, n), the summand G[i] ⊗ H[i] of row i."""

    G: Tensor
    H: Tensor


@dataclass(frozen=True)
class Outer:
    """Rows of the Jacobian as sums of outer products.

    Args:
        pairs: at least one, G (N, m) and H (N, n).
    """

    pairs: Sequence[Pair]

    @property
    def bytes(self) -> int:
        """Memory of the pairs."""
        return sum(x.numel() * x.element_size() for pair in self.pairs for x in pair)

    def __getitem__(self, rows: slice) -> Outer:
        """Some of the rows."""
        return Outer([Pair(G[rows], H[rows]) for G, H in self.pairs])

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Outer:
        """With every tensor replaced by a function of it."""
        return Outer([Pair(*map(function, pair)) for pair in self.pairs])

    def scaled(self, c: float) -> Outer:
        """Every row times c."""
        return Outer([Pair(c * G, H) for G, H in self.pairs])

    def apply(self, D: Tensor) -> Tensor:
        """⟨∂r_i/∂W, D⟩ for every row, (N,); D (m, n)."""
        return sum((G @ D * H).sum(dim=1) for G, H in self.pairs)

    def adjoint(self, w: Tensor) -> Tensor:
        """Σ_i w_i ∂r_i/∂W, (m, n); w (N,)."""
        return sum((w[:, None] * G).mT @ H for G, H in self.pairs)

    def restrict(self, L: Tensor | None = None, R: Tensor | None = None) -> Outer:
        """The Jacobian with respect to X in W = L X R, with L (m, k) and R (l, n); None stands for the identity."""
        left = lambda G: G if L is None else (L.mT @ G.mT).mT
        right = lambda H: H if R is None else (R @ H.mT).mT
        return Outer([Pair(left(G), right(H)) for G, H in self.pairs])

    def transposed(self) -> Outer:
        """The Jacobian with respect to Wᵀ."""
        return Outer([Pair(H, G) for G, H in self.pairs])

    def write(self, out: Tensor) -> None:
        """Form the array in ``out``, (m, n, N); this order, with the points innermost, is the fastest."""
        (G, H), *rest = ((G.mT.contiguous(), H.mT.contiguous()) for G, H in self.pairs)
        torch.mul(G[:, None], H[None], out=out)
        for G, H in rest:
            out.addcmul_(G[:, None], H[None])

    def formed(self) -> Tensor:
        """The array, (N, m, n)."""
        G, H = self.pairs[0]
        out = G.new_empty(G.shape[1], H.shape[1], len(G))
        self.write(out)
        return out.permute(2, 0, 1)

    def kernel(self, other: Outer | Formed) -> Tensor:
        """⟨∂r_i/∂W, ∂r'_j/∂W⟩, (N, N'), without forming either factor if both are pairs."""
        if isinstance(other, Formed):
            return Formed(self.formed()).kernel(other)
        total = self.pairs[0].G.new_zeros(len(self.pairs[0].G), len(other.pairs[0].G))
        for G, H in self.pairs:
            for G2, H2 in other.pairs:
                total.addcmul_(G @ G2.mT, H @ H2.mT)
        return total

    def squares(self) -> Tensor:
        """‖∂r_i/∂W‖² for every row, (N,)."""
        return sum((G * G2).sum(dim=1) * (H * H2).sum(dim=1) for G, H in self.pairs for G2, H2 in self.pairs)

    def column_squares(self) -> Tensor:
        """Σ_i (∂r_i/∂W_ab)² for every entry of W, (m, n)."""
        return sum((G * G2).mT @ (H * H2) for G, H in self.pairs for G2, H2 in self.pairs)


@dataclass(frozen=True)
class Formed:
    """Rows of the Jacobian as the array J (N, m, n); methods as those of ``Outer``."""

    J: Tensor

    @property
    def bytes(self) -> int:
        """Memory of the array."""
        return self.J.numel() * self.J.element_size()

    def __getitem__(self, rows: slice) -> Formed:
        return Formed(self.J[rows])

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Formed:
        return Formed(function(self.J))

    def scaled(self, c: float) -> Formed:
        return Formed(c * self.J)

    def apply(self, D: Tensor) -> Tensor:
        return self.J.flatten(1) @ D.flatten()

    def adjoint(self, w: Tensor) -> Tensor:
        return (w @ self.J.flatten(1)).view(self.J.shape[1:])

    def restrict(self, L: Tensor | None = None, R: Tensor | None = None) -> Formed:
        J = self.J if L is None else L.mT @ self.J
        return Formed(J if R is None else J @ R.mT)

    def transposed(self) -> Formed:
        return Formed(self.J.mT)

    def write(self, out: Tensor) -> None:
        out.copy_(self.J.permute(1, 2, 0))

    def formed(self) -> Tensor:
        return self.J

    def kernel(self, other: Outer | Formed) -> Tensor:
        return self.J.flatten(1) @ other.formed().flatten(1).mT

    def squares(self) -> Tensor:
        return self.J.flatten(1).square().sum(dim=1)

    def column_squares(self) -> Tensor:
        return self.J.square().sum(dim=0)


Block = Outer | Formed


@dataclass(frozen=True)
class Group:
    """The residuals of one component of one term at N of its points, with their Jacobian.

    Args:
        term: name of the term.
        rows: their indices in the residual vector.
        r: their values, (N,).
        blocks: the Jacobian with respect to the weight of every layer, by name.
        columns: the Jacobian with respect to every other tensor x, (N, x.numel()), by name.
    """

    term: str
    rows: slice
    r: Tensor
    blocks: dict[str, Block]
    columns: dict[str, Tensor]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Group:
        """With every tensor, each a row for each residual, replaced by a function of it."""
        blocks = {name: block.mapped(function) for name, block in self.blocks.items()}
        columns = {name: function(x) for name, x in self.columns.items()}
        return replace(self, r=function(self.r), blocks=blocks, columns=columns)

    def scaled(self, c: float) -> Group:
        """Residuals and Jacobian times c."""
        blocks = {name: block.scaled(c) for name, block in self.blocks.items()}
        columns = {name: c * x for name, x in self.columns.items()}
        return replace(self, r=c * self.r, blocks=blocks, columns=columns)

    @property
    def bytes(self) -> int:
        """Memory of the Jacobian."""
        blocks = sum(block.bytes for block in self.blocks.values())
        return blocks + sum(x.numel() * x.element_size() for x in self.columns.values())

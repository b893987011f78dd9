"""Coordinates of the tangent space of the matrices of rank r, at Y = U Σ V with orthonormal U (m, r) and V (r, n).

A tangent vector is  D = U X + U⊥ K V  with X (r, n), K (m - r, r) and U⊥ an orthonormal complement of U. The
coordinates z = (X, Kᵀ) are orthonormal in the metric of full fine-tuning, ‖D‖_F = ‖z‖, without redundancy: their number
is the dimension r (m + n - r). Neither Σ nor a Gram matrix of the factors is inverted (Koch and Lubich, 2007). The
scale s and the gauge of the factors drop out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, linalg

from pinn_odelora.manifolds.factors import Factors


class Restriction(NamedTuple):
    """A part of the coordinates: X in W = L X R, or Xᵀ if ``transposed``; None stands for the identity."""

    L: Tensor | None
    R: Tensor | None
    transposed: bool = False


class Frame(NamedTuple):
    """U (m, r), its complement U⊥ (m, m - r) and V (r, n), all orthonormal."""

    U: Tensor
    complement: Tensor
    V: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return len(self.V)

    @property
    def restrictions(self) -> list[Restriction]:
        """The coordinates X and Kᵀ as restrictions of W."""
        return [Restriction(self.U, None), Restriction(self.complement, self.V, transposed=True)]

    def to(self, *args: object) -> Frame:
        """``Tensor.to`` on all three."""
        return Frame(*(x.to(*args) for x in self))

    @property
    def dimension(self) -> int:
        """r (m + n - r)."""
        return self.rank * (self.complement.shape[1] + self.V.shape[1])

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """X (r, n) and K (m - r, r) of coordinates z (dimension,)."""
        (r, n) = self.V.shape
        return z[: r * n].view(r, n), z[r * n :].view(r, -1).mT

    def vector(self, z: Tensor) -> Tensor:
        """The tangent vector D (m, n) of coordinates z."""
        X, K = self.split(z)
        return self.U @ X + self.complement @ (K @ self.V)

    def coordinates(self, D: Tensor) -> Tensor:
        """The coordinates (dimension,) of the orthogonal projection of any D (m, n)."""
        K = self.complement.mT @ (D @ self.V.mT)
        return torch.cat([(self.U.mT @ D).flatten(), K.mT.flatten()])


class FactorFrame(NamedTuple):
    """The coordinates z = (dA, dB) of plain LoRA at factors y, dW = s (B dA + dB A), with the metric of the factors."""

    y: Factors
    scale: float

    @property
    def dimension(self) -> int:
        """r (m + n)."""
        return self.y.A.numel() + self.y.B.numel()

    @property
    def restrictions(self) -> list[Restriction]:
        """The coordinates dA and dB as restrictions of W."""
        return [Restriction(self.scale * self.y.B, None), Restriction(None, self.scale * self.y.A)]

    def to(self, *args: object) -> FactorFrame:
        """``Tensor.to`` on both factors."""
        return FactorFrame(Factors(*(x.to(*args) for x in self.y)), self.scale)

    def moved(self, z: Tensor) -> Factors:
        """The factors y + z, for z (dimension,)."""
        dA, dB = z.split([self.y.A.numel(), self.y.B.numel()])
        return Factors(self.y.A + dA.view_as(self.y.A), self.y.B + dB.view_as(self.y.B))


class Stretch(NamedTuple):
    """Coordinates dx = size · dz of a variable x other than a layer; ``size`` has the shape of x."""

    size: Tensor


def complement(U: Tensor) -> Tensor:
    """An orthonormal basis U⊥ (m, m - r) of the orthogonal complement of the columns of U (m, r)."""
    return linalg.qr(U, mode="complete").Q[:, U.shape[1] :]

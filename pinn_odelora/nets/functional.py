"""A linear functional of matrices as a network:  N(M) = ⟨M, W⟩ = tr M Wᵀ  with one weight W (m, n)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from pinn_odelora.errors import InputError


class Solved(Protocol):
    """A problem whose solution is a matrix."""

    @property
    def matrix(self) -> Tensor:
        """W*, (m, n)."""


class MatrixFunctional(nn.Module):
    """(N, m·n) -> (N, 1): apply the linear layer ``W`` to the rows of each matrix M, and sum the diagonal.

    W is the weight of a linear layer, so that it can be adapted as in any other network.

    Args:
        source: a problem whose solution, a matrix (m, n), is the initial value of W.

    Raises:
        InputError: if its solution is not a matrix.
    """

    def __init__(self, source: Solved) -> None:
        super().__init__()
        W = getattr(source, "matrix", None)
        if W is None:
            raise InputError(
                f"net=matrix is for problems whose solution is a matrix, but {type(source).__name__} has none."
            )
        with torch.random.fork_rng(devices=()):  # torch initialises the weight first, from the global generator
            self.W = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
        with torch.no_grad():
            self.W.weight.copy_(W)

    def forward(self, x: Tensor) -> Tensor:
        """⟨M_i, W⟩ for the matrices in the rows of x, (N, m·n) -> (N, 1)."""
        m, n = self.W.weight.shape
        Z = self.W(x.unflatten(-1, (m, n)))  # (N, m, m): row k of M_i through W
        return Z.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)

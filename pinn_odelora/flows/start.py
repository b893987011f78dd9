"""The first step from a zero adapter, B A = 0, where the balanced flow is singular.

LoRA usually starts at B = 0 with a random A (Hu et al., 2022, arXiv 2106.09685). There S_B = BᵀB is singular, but
g_A = s BᵀG vanishes too. With the pseudo-inverse in place of the inverse the flow (``flows.balanced``) is

    dA/dt = 0 ,    dB/dt = -s⁻² g_B S_A⁻¹ ,    so that    s d(BA)/dt = -G P_A :

the component of the gradient flow of full fine-tuning in the row space of A. An Euler step along it gives a pair of
full rank, which a retraction then balances. For A = 0 the roles of A and B are exchanged. If the product is zero but
neither factor is, as in PEFT's orthogonal start with rank r/2 in each factor, the same pseudo-inverses give
s d(BA)/dt = -(P_B G + G P_A - P_B G P_A), with projections of lower rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pinn_odelora.errors import InputError
from pinn_odelora.flows.gram import SINGULAR, gram_spectrum, spectrum
from pinn_odelora.manifolds.factors import Factors


def is_zero(y: Factors, eps: float) -> Tensor:
    """Whether B A vanishes up to rounding, ‖B A‖ ≤ 4 eps ‖A‖ ‖B‖, for each pair of a batch, (…,).

    Args:
        y: A (…, r, n) and B (…, m, r).
        eps: relative precision of the factors.
    """
    A, B = y.A.double(), y.B.double()
    S_A, S_B = A @ A.mT, B.mT @ B
    trace = lambda S: S.diagonal(dim1=-2, dim2=-1).sum(-1)
    return (S_A * S_B).sum((-2, -1)) <= max(SINGULAR, (4 * eps) ** 2) * trace(S_A) * trace(S_B)


def zero_flow(y: Factors, g: Factors, scale: float, eps: float) -> Factors:
    """The velocity above, at one pair.

    Args:
        y: A (r, n) and B (m, r) with B A = 0.
        g: gradients of the loss with respect to A and B, same shapes.
        scale: s > 0.
        eps: relative precision of the factors; singular values below it count as zero.

    Raises:
        InputError: if both factors are zero, a stationary saddle point, or if one is and the other does not have full
            rank.
    """
    A, B, g_A, g_B = (x.double() for x in (*y, *g))
    if not bool(A.any()) and not bool(B.any()):
        raise InputError("both factors are zero, a stationary saddle point of the loss; start from a random A")
    if not bool(B.any()):
        a, U = gram_spectrum(A, "A")
        return Factors(torch.zeros_like(y.A), (-(g_B @ U) / a @ U.mT / scale**2).to(y.B))
    if not bool(A.any()):
        b, U = gram_spectrum(B.mT, "B")
        return Factors((-U @ ((U.mT @ g_A) / b[:, None]) / scale**2).to(y.A), torch.zeros_like(y.B))
    dA, dB = _orthogonal(Factors(A, B), Factors(g_A, g_B), scale, max(SINGULAR, (2 * eps) ** 2))
    return Factors(dA.to(y.A), dB.to(y.B))


def _orthogonal(y: Factors, g: Factors, scale: float, least: float) -> Factors:
    """Equations (1), (2) of ``flows.balanced`` with pseudo-inverses.

    Eigenvalues of S_A and S_B below ``least`` times the largest one count as zero.
    """
    a, U_A = spectrum(y.A, "A")
    b, U_B = spectrum(y.B.mT, "B")
    a, b = (torch.where(x > least * x[-1], x, 0.0) for x in (a, b))
    inverse = lambda x: torch.where(x > 0, 1 / x, 0.0)
    inverse_A, inverse_B = U_A * inverse(a) @ U_A.mT, U_B * inverse(b) @ U_B.mT
    dA = inverse_B @ g.A / scale**2
    dB = g.B @ inverse_A / scale**2
    dB = dB - y.B @ (inverse_B @ (y.B.mT @ dB))
    X = U_B @ (U_B.mT @ (dA @ y.A.mT) @ U_A * inverse(b[:, None] + a)) @ U_A.mT
    return Factors(X @ y.A - dA, -dB - y.B @ X)

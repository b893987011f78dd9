"""The first step from a zero adapter, B = 0 or A = 0, where the balanced flow is singular.

LoRA usually starts at B = 0 with a random A (Hu et al., 2022, arXiv 2106.09685). There S_B = BᵀB is singular, but
g_A = s BᵀG vanishes too. With the pseudo-inverse in place of the inverse the flow is

    dA/dt = 0 ,    dB/dt = -s⁻² g_B S_A⁻¹ ,    so that    s d(BA)/dt = -G P_A :

the component of the gradient flow of full fine-tuning in the row space of A. An Euler step along it gives a pair of
full rank, which a retraction then balances. For A = 0 the roles of A and B are exchanged.
"""

from __future__ import annotations

from pinn_odelora.errors import InputError
from pinn_odelora.flows.gram import gram_spectrum
from pinn_odelora.manifolds.factors import Factors


def is_zero(y: Factors) -> bool:
    """Whether one of the factors vanishes."""
    return not bool(y.A.any()) or not bool(y.B.any())


def zero_flow(y: Factors, g: Factors, scale: float) -> Factors:
    """The velocity above, at a pair with one zero factor.

    Args:
        y: A (r, n) and B (m, r).
        g: gradients of the loss with respect to A and B, same shapes.
        scale: s > 0.

    Raises:
        InputError: if both factors are zero, a stationary saddle point, or the other one does not have full rank.
    """
    if not bool(y.A.any()) and not bool(y.B.any()):
        raise InputError("both factors are zero, a stationary saddle point of the loss; start from a random A")
    if bool(y.A.any()):
        a, U = gram_spectrum(y.A.double(), "A")
        dB = -(g.B.double() @ U) / a @ U.mT / scale**2
        return Factors(y.A.new_zeros(y.A.shape), dB.to(y.B))
    b, U = gram_spectrum(y.B.double().mT, "B")
    dA = -U @ ((U.mT @ g.A.double()) / b[:, None]) / scale**2
    return Factors(dA.to(y.A), y.B.new_zeros(y.B.shape))

"""The flow of scaled gradient descent: each factor's gradient divided by the Gram matrix of the other factor.

    dA/dt = -s⁻² S_B⁻¹ g_A ,        dB/dt = -s⁻² g_B S_A⁻¹

Its Euler step is ScaledGD (Tong, Ma and Chi, 2021, arXiv 2005.08898), as a method for LoRA the Riemannian
preconditioned one (Zhang and Pilanci, 2024, arXiv 2402.02347), here without damping. The product follows

    s d(BA)/dt = -(P_B G + G P_A) ,

which counts the part P_B G P_A twice that the projection P_T(G) counts once. An Euler step of the product depends on
the product alone, not on how it is split into factors; s⁻² makes it independent of the scale too.
"""

from __future__ import annotations

from pinn_odelora.flows.gram import gram_spectrum
from pinn_odelora.manifolds.factors import Factors


def scaled_flow(y: Factors, g: Factors, scale: float) -> Factors:
    """The velocity at factors ``y`` with gradients ``g``.

    Args:
        y: A (…, r, n) and B (…, m, r), both of full rank r; leading dimensions are a batch of layers.
        g: gradients of the loss with respect to A and B, same shapes.
        scale: s.

    Returns:
        (dA/dt, dB/dt) in the dtype of ``y``; the r × r algebra is done in float64 whatever that is.

    Raises:
        InputError: where A or B has lost rank, in particular at the zero adapter B = 0.
    """
    A, B, g_A, g_B = (x.double() for x in (*y, *g))
    a, U_A = gram_spectrum(A, "A")
    b, U_B = gram_spectrum(B.mT, "B")
    dA = U_B @ ((U_B.mT @ g_A) / b[..., :, None]) / scale**2
    dB = (g_B @ U_A) / a[..., None, :] @ U_A.mT / scale**2
    return Factors((-dA).to(y.A), (-dB).to(y.B))

"""The flow of scaled gradient descent: each factor's gradient divided by the Gram matrix of the other factor.

    dA/dt = -s⁻² S_B⁻¹ g_A ,        dB/dt = -s⁻² g_B S_A⁻¹

Its Euler step is ScaledGD (Tong, Ma and Chi, 2021, arXiv 2005.08898), known for LoRA as Riemannian preconditioned LoRA
(Zhang and Pilanci, 2024, arXiv 2402.02347). With a damping δ, S_A + δI and S_B + δI stand for S_A and S_B; the code of
Zhang and Pilanci has 1e-6, PEFT 1e-2. Without damping the product follows

    s d(BA)/dt = -(P_B G + G P_A) ,

which counts P_B G P_A twice, whereas the projection P_T(G) counts it once. The Euler step of the product depends on the
product alone, not on its factorisation; s⁻² makes it independent of the scale as well.
"""

from __future__ import annotations

from pinn_odelora.flows.gram import gram_spectrum, spectrum
from pinn_odelora.manifolds.factors import Factors


def scaled_flow(y: Factors, g: Factors, scale: float, damping: float = 0.0) -> Factors:
    """The velocity at factors ``y`` with gradients ``g``.

    Args:
        y: A (…, r, n) and B (…, m, r), without damping both of full rank r; leading dimensions are a batch of layers.
        g: gradients of the loss with respect to A and B, same shapes.
        scale: s > 0.
        damping: δ ≥ 0.

    Returns:
        (dA/dt, dB/dt) in the dtype of ``y``, computed in float64.

    Raises:
        InputError: without damping, if A or B does not have full rank, in particular at the zero adapter B = 0.
        FloatingPointError: if a factor is not finite.
    """
    A, B, g_A, g_B = (x.double() for x in (*y, *g))
    spectrum_of = spectrum if damping else gram_spectrum
    a, U_A = spectrum_of(A, "A")
    b, U_B = spectrum_of(B.mT, "B")
    dA = U_B @ ((U_B.mT @ g_A) / (b + damping)[..., :, None]) / scale**2
    dB = (g_B @ U_A) / (a + damping)[..., None, :] @ U_A.mT / scale**2
    return Factors((-dA).to(y.A), (-dB).to(y.B))

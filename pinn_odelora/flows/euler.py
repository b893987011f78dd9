"""Euler's step of the balanced flow and the retraction after it, in closed form from Gram matrices of size 2r.

Velocities (``flows.balanced``) are combinations of factors and gradients: of Z_A = (A, g_A), of shape (2r, n), and
Z_B = (Bᵀ, g_Bᵀ), of shape (2r, m). After an Euler step of size h

    A₁ = C_A Z_A ,     C_A = ( I + h X ,  -h s⁻² S_B⁻¹ ) ,     S_B X + X S_A = s⁻² S_B⁻¹ g_A Aᵀ
    B₁ᵀ = C_B Z_B ,    C_B = ( I + h Yᵀ , -h s⁻² S_A⁻¹ ) ,     Y = s⁻² S_B⁻¹ Bᵀg_B S_A⁻¹ - X

so that every scalar product that the retraction needs follows from Γ = Z Zᵀ. With the Cholesky factorisations
A₁A₁ᵀ = R_A R_Aᵀ and B₁ᵀB₁ = R_B R_Bᵀ and the singular value decomposition R_Bᵀ R_A = u σ v, the balanced pair with
the product B₁A₁ that is closest to (A, B) is

    A₊ = Qᵀ M_A A₁ ,     M_A = σ^(-½) uᵀ R_Bᵀ
    B₊ᵀ = Qᵀ M_B B₁ᵀ ,   M_B = σ^(-½) v R_Aᵀ ,     Q = argmax tr Qᵀ (M_A A₁Aᵀ + M_B B₁ᵀB)

(``manifolds.factors``). Long matrices are multiplied twice, for Γ and at the end, and never decomposed; what is in
between has 2r rows, and is done by the host for all layers at once, whatever the device.

A Gram matrix that is formed keeps of its smallest eigenvalue what is above the rounding of the largest one. Where the
ratio of the two is below ``SAFE``, before the step or after it, nothing is returned, and the careful way is to be
taken: ``balanced_flow`` and ``rebalance``, which decompose the factors themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pinn_odelora.manifolds.factors import Factors

SAFE = 1e-4
"""Smallest over largest eigenvalue of the Gram matrices; errors are below the rounding of float64 over it, 1e-12."""

HOSTS, WIDE = ("cpu",), (torch.float32, torch.float64)
"""Where NumPy multiplies the long matrices, too: a call costs less than torch's, and AAᵀ half the products. Its threads
are those of ``OMP_NUM_THREADS``."""


def euler_step(pairs: Sequence[Factors], gradients: Sequence[Factors], scale: float, h: float) -> list[Factors] | None:
    """The balanced pairs after a step, in their dtype, computed in float64; None where one of them is too
    ill-conditioned or not finite.

    Args:
        pairs: A (r, n) and B (m, r) of layers of one shape, on one device.
        gradients: of the loss with respect to them, same shapes.
        scale: s > 0.
        h: the step size.
    """
    Z_A = torch.cat([x.A for pair in zip(pairs, gradients, strict=True) for x in pair])
    Z_B = torch.cat([x.B for pair in zip(pairs, gradients, strict=True) for x in pair], dim=1)
    here = Z_A.device.type in HOSTS and Z_A.dtype in WIDE
    return (_by_host if here else _by_device)(Z_A, Z_B, len(pairs), h / scale**2)


def _by_device(Z_A: Tensor, Z_B: Tensor, layers: int, h: float) -> list[Factors] | None:
    """The pairs after the step from Z_A (2r L, n) and Z_Bᵀ (m, 2r L)."""
    dtype, r = Z_A.dtype, len(Z_A) // (2 * layers)
    Z_A = Z_A.double().view(layers, 2 * r, -1)
    Z_B = Z_B.double().view(-1, layers, 2 * r).permute(1, 2, 0)
    gram = torch.stack([torch.bmm(Z, Z.mT) for Z in (Z_A, Z_B)])
    found = combinations(gram.cpu().numpy(), h)
    if found is None:
        return None
    F = torch.from_numpy(found).to(Z_A.device)
    A, B = (torch.bmm(*pair).to(dtype) for pair in zip(F, (Z_A, Z_B), strict=True))
    # What is finite in float64 may not be in the dtype of the pairs.
    if dtype != torch.float64 and not bool(torch.isfinite(A.sum() + B.sum())):
        return None
    return [Factors(*pair) for pair in zip(A.unbind(), B.mT.unbind(), strict=True)]


def _by_host(Z_A: Tensor, Z_B: Tensor, layers: int, h: float) -> list[Factors] | None:
    """The same by NumPy."""
    A, B = Z_A.numpy(), Z_B.numpy()
    dtype = A.dtype
    A = A.astype(np.float64, copy=False).reshape(layers, -1, A.shape[-1])
    B = B.astype(np.float64, copy=False).reshape(len(B), layers, -1).swapaxes(0, 1)
    gram = np.empty((2, layers, A.shape[1], A.shape[1]))
    np.matmul(A, _t(A), out=gram[0])
    np.matmul(_t(B), B, out=gram[1])
    found = combinations(gram, h)
    if found is None:
        return None
    A, B = found[0] @ A, B @ _t(found[1])
    if dtype != np.float64:
        if not max(np.abs(A).max(), np.abs(B).max()) < np.finfo(dtype).max:
            return None
        A, B = A.astype(dtype), B.astype(dtype)
    return [Factors(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(A, B, strict=True)]


def combinations(gram: np.ndarray, h: float) -> np.ndarray | None:
    """The matrices F (2, L, r, 2r) with A₊ = F[0] Z_A and B₊ᵀ = F[1] Z_B, at scale 1; None as for ``euler_step``.

    Args:
        gram: Γ of A and of B for L layers, (2, L, 2r, 2r).
        h: the step size over s².
    """
    try:
        with np.errstate(all="ignore"):
            moved = _moved(gram, h)
            return None if moved is None else _balanced(gram, moved)
    except np.linalg.LinAlgError:
        return None


def _moved(gram: np.ndarray, h: float) -> np.ndarray | None:
    """C (2, L, r, 2r) of both factors."""
    r = gram.shape[-1] // 2
    values, U = np.linalg.eigh(gram[..., :r, :r])
    if not (values[..., 0] > SAFE * values[..., -1]).all():
        return None
    # Of the other factor: S_B for A, S_A for B.
    V, across = U[::-1], values[::-1, ..., None]
    inverse = _t(V) / across
    # The gauge: X, and Yᵀ in its place for B.
    gauge = inverse @ gram[..., r:, :r] @ U
    gauge[0] /= across[0] + values[0][..., None, :]
    gauge[1] /= values[1][..., None, :]
    gauge[1] -= _t(gauge[0])
    C = np.empty((*gram.shape[:-2], r, 2 * r))
    np.matmul(V @ (h * gauge), _t(U), out=C[..., :r])
    np.matmul(V, (-h) * inverse, out=C[..., r:])
    C.reshape(-1, 2 * r * r)[:, :: 2 * r + 1] += 1
    return C


def _balanced(gram: np.ndarray, C: np.ndarray) -> np.ndarray | None:
    """F from C."""
    r = C.shape[-2]
    cross = C @ gram
    R = np.linalg.cholesky(cross @ _t(C))
    u, sigma, v = np.linalg.svd(_t(R[1]) @ R[0])
    # What A₁ and B₁ are the sums of, which may cancel.
    sizes = np.einsum("k...ij,k...ij,k...jj->k...", C, C, gram)
    if not (sigma[..., -1] > SAFE * np.sqrt(sizes[0] * sizes[1])).all():
        return None
    M = np.empty_like(R)
    root = np.sqrt(sigma)[..., None]
    np.matmul(_t(u) / root, _t(R[1]), out=M[0])
    np.matmul(v / root, _t(R[0]), out=M[1])
    N = M @ cross[..., :r]
    P, _, Q = np.linalg.svd(N[0] + N[1])
    return _t(P @ Q) @ M @ C


def _t(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(-1, -2)

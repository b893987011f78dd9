"""Building blocks of reference solutions: quadrature rules and differentiable spectral solutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def gauss_hermite(n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes z_j and logarithms of the weights w_j of ∫ exp(-z²) f(z) dz ≈ Σ w_j f(z_j), each (n,).

    Both have the dtype and device of ``like``. The logarithm of a weight that underflows is -inf.
    """
    nodes, weights = np.polynomial.hermite.hermgauss(n)
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    return torch.as_tensor(nodes).to(like), torch.as_tensor(log_weights).to(like)


def etdrk4(
    L: NDArray, N: Callable[[NDArray], NDArray], v: NDArray, h: float, steps: int, every: int = 1
) -> NDArray[np.complex128]:
    """v' = L v + N(v) with diagonal L, by the fourth-order exponential Runge–Kutta scheme ETDRK4.

    The coefficients are functions of z = hL with cancellation near 0, so they are computed as averages over a circle
    of radius 1 around each z (Cox and Matthews, 2002, eq. 26–29; Kassam and Trefethen, 2005).

    Args:
        L: diagonal of the stiff linear part, (K,).
        N: the remaining part, (K,) -> (K,).
        v: initial value, (K,).
        h: step size.
        steps: number of steps.
        every: number of steps between two returned values; it divides ``steps``.

    Returns:
        v at the times 0, every·h, …, steps·h, (steps/every + 1, K).
    """
    circle = np.exp(2j * np.pi * (np.arange(32) + 0.5) / 32)
    z = h * L[:, None] + circle
    e = np.exp(z)
    Q, f1, f2, f3 = (
        h * phi.mean(axis=1)
        for phi in (
            (np.exp(z / 2) - 1) / z,
            (-4 - z + e * (4 - 3 * z + z**2)) / z**3,
            (2 + z + e * (z - 2)) / z**3,
            (-4 - 3 * z - z**2 + e * (4 - z)) / z**3,
        )
    )
    E, E2 = np.exp(h * L), np.exp(h * L / 2)
    kept = [v]
    for step in range(1, steps + 1):
        Nv = N(v)
        a = E2 * v + Q * Nv
        Na = N(a)
        b = E2 * v + Q * Na
        Nb = N(b)
        c = E2 * a + Q * (2 * Nb - Nv)
        v = E * v + f1 * Nv + 2 * f2 * (Na + Nb) + f3 * N(c)
        if step % every == 0:
            kept.append(v)
    return np.stack(kept)


@dataclass(frozen=True)
class PeriodicSolution:
    """u(x, t), periodic in x, interpolated from values on a uniform grid; differentiable by autograd.

    The interpolant is the Lagrange polynomial through the nearest 16 × 8 values. On a grid twice as fine as the Fourier
    modes require, it is as accurate as the trigonometric interpolant, at a cost independent of the number of modes.

    Args:
        values: u at times from 0 to ``end`` and at n positions in [start, start + period), (times, n).
        start: the first position.
        period: period in x.
        end: the last time.
    """

    values: Tensor
    start: float
    period: float
    end: float

    @classmethod
    def from_modes(cls, modes: NDArray, start: float, period: float, end: float) -> PeriodicSolution:
        """From the ``rfft`` of u at uniform times, (times, n/2 + 1), by trigonometric interpolation on 2n positions.

        Args:
            modes: the ``rfft`` in x of n values of u, one row per time.
            start, period, end: as for the class.
        """
        n = 2 * (modes.shape[1] - 1)
        return cls(torch.from_numpy(2 * np.fft.irfft(modes, 2 * n)), start, period, end)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """u at N points; x, t and the result are (N, 1), computed in float64."""
        times, n = self.values.shape
        columns, in_x = _lagrange((x.double() - self.start) * (n / self.period), 16)
        rows, in_t = _lagrange(t.double() * ((times - 1) / self.end), 8, times)
        values = self.values.to(x.device)[rows[:, :, None], columns[:, None, :] % n]
        return torch.einsum("ni,nij,nj->n", in_t, values, in_x)[:, None].to(x.dtype)


def _lagrange(s: Tensor, nodes: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The integers nearest to s (N, 1) and their Lagrange weights Π_{i≠j} (s - i)/(j - i), each (N, nodes).

    With a ``count`` the integers stay in 0 … count - 1, so that interpolation is one-sided near the ends.
    """
    first = torch.floor(s.detach()).long() - nodes // 2 + 1
    if count is not None:
        first = first.clamp(0, count - nodes)
    j = torch.arange(nodes, device=s.device)
    own = torch.eye(nodes, dtype=torch.bool, device=s.device)
    factors = (s - first - j)[:, None, :] / torch.where(own, 1, j[:, None] - j)
    return first + j, torch.where(own, 1.0, factors).prod(dim=2)

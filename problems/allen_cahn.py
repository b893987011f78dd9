"""Allen–Cahn equation, with a Fourier spectral reference solution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pinn_odelora.derivatives import Field
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.points import Points
from pinn_odelora.reference import PeriodicSolution, etdrk4

REACH, NODES = 6.2, 48
"""Of the quadrature for the solution of the heat equation: where the Gaussian ends, and nodes between two kinks."""


@dataclass(frozen=True, kw_only=True)
class AllenCahn(Problem):
    """u_t = d u_xx + 5 (u - u³) on [-1, 1] × [0, 1], periodic in x;  u(x, 0) = x² cos πx.

    Ansatz: near x = ±1 the periodic extension of the initial state is 2|s| - 1, with s the distance from there, a kink
    that a smooth network cannot remove. For v = u + 1 the equation linearised about u = -1 is v_t = d v_xx - 10 v,
    which evolves 2|s| into 2 exp(-10 t) E(s, t), where E solves the heat equation with initial value |s|, and is smooth
    for t > 0:

        E(s, t) = s erf(s/w) + w exp(-s²/w²) / √π ,   w = √(4 d t) .

    The network is therefore added to  u(x, 0) + 2 c (exp(-10 t) E - s),  with s = (2/π) cos(πx/2), which is smooth up
    to the same kink, and the cut-off c = sin⁸(πx/2), which is 1 at the kink.

    Residual: weighted by exp(-5t/2). Near u = 0, where 5 (u - u³) ≈ 5 u, an error at time t grows by exp(5 (1 - t)) up
    to t = 1, whereas the residual is largest in the fronts at late times, where errors have no time to grow. Without a
    weight the fronts dominate both loss and residual sampling. The full weight exp(-5t) would neglect the regions with
    u ≈ ±1, where errors decay; the exponent 5/2 was chosen by experiment (``docs/results/defaults.md``). Emphasis on
    early times is due to Wang, Sankaran and Perdikaris (2022, arXiv 2203.07404), whose weights depend on the loss.

    Reference: the same linearisation for the whole state, -1 + exp(-10 t) (1 + m) with m the solution of the heat
    equation for u(x, 0), has all of the kink. It is computed by quadrature. What is left, which begins with 0 and
    without a kink, is interpolated from Fourier modes of u by ETDRK4. The relative error is below 2e-9 over the region,
    most of it before t = 0.02, and below 1e-10 from t = 0.2 on, where the reference is tested in the equation.
    """

    coords = ("x", "t")
    region = Box(x=(-1, 1), t=(0, 1))
    periods: ClassVar = {"x": 2.0}
    supports = ("hard",)
    enforced = ("ic",)
    accuracy = 2e-9
    regular = Box(x=(-1, 1), t=(0.2, 1))

    d: float = parameter(1e-3, 2e-4, above=0)

    def terms(self) -> dict[str, Term]:
        return {
            "pde": Term(self.region, lambda f: self.weight(f.t) * self.equation(f)),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - self.initial(f.x)),
        }

    def equation(self, f: Field) -> Tensor:
        """u_t - d u_xx - 5 (u - u³), (N, 1)."""
        return f.op("u", {"t": 1, "xx": -self.d}) - 5 * (f.u - f.u**3)

    @staticmethod
    def weight(t: Tensor) -> Tensor:
        """exp(-5t/2), (N, 1)."""
        return torch.exp(-5 * t / 2)

    @staticmethod
    def initial(x: Tensor) -> Tensor:
        """u(x, 0), (N, 1)."""
        return x**2 * torch.cos(math.pi * x)

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        kink = 2 * torch.sin(math.pi * p.x / 2) ** 8
        distance = 2 / math.pi * torch.cos(math.pi * p.x / 2)
        return self.initial(p.x) + kink * (torch.exp(-10 * p.t) * self.smoothed(distance, p.t) - distance), p.t

    def smoothed(self, s: Tensor, t: Tensor) -> Tensor:
        """E(s, t) for s ≥ 0, (N, 1); t is shifted by a tiny amount, so that the derivatives exist at t = 0."""
        w = torch.sqrt(4 * self.d * t + 1e-16)
        return s * torch.erf(s / w) + w / math.sqrt(math.pi) * torch.exp(-((s / w) ** 2))

    def reference(self, p: Points) -> Tensor:
        return torch.where(p.t == 0, self.initial(p.x), solution(self.d, p.x, p.t))


def solution(d: float, x: Tensor, t: Tensor, refinement: int = 1) -> Tensor:
    """The reference solution at N points; x, t and the result are (N, 1).

    Args:
        d: diffusion coefficient.
        x, t: the points.
        refinement: of the modes and steps, to measure the accuracy.
    """
    decaying = torch.exp(-10 * t.double()) * (1 + diffused(d, x.double(), t.double()))
    return (decaying - 1 + remainder(d, refinement)(x.double(), t.double())).to(x.dtype)


def diffused(d: float, x: Tensor, t: Tensor) -> Tensor:
    """m(x, t) = ∫ exp(-z²) u₀(x - w z) dz / √π, w = √(4 d t), with the periodic initial state u₀, (N, 1).

    By Gauss–Legendre quadrature between the kinks of u₀, for abs(z) < 6.2: what is beyond is below 1e-17.
    """
    w = torch.sqrt(4 * d * t).clamp(min=1e-30)
    most = math.ceil((REACH * math.sqrt(4 * d) + 1) / 2)
    kinks = torch.arange(2 * most + 1, -2 * most - 2, -2).to(x)
    edge = torch.full_like(x, REACH)
    ends = torch.cat([-edge, ((x - kinks) / w).clamp(-REACH, REACH), edge], dim=1)
    nodes, weights = (torch.from_numpy(array).to(x) for array in np.polynomial.legendre.leggauss(NODES))
    found = torch.zeros_like(x)
    for low, high in pairwise(ends.split(1, dim=1)):
        middle, half = (low + high) / 2, (high - low) / 2
        z = middle + half * nodes
        period = 2 * torch.round((x - w * middle) / 2)
        summands = weights * torch.exp(-(z**2)) * AllenCahn.initial(x - w * z - period)
        found = found + half * summands.sum(dim=1, keepdim=True)
    return found / math.sqrt(math.pi)


@lru_cache(maxsize=8)
def remainder(d: float, refinement: int) -> PeriodicSolution:
    """The reference solution without -1 + exp(-10 t) (1 + m), for layers of width √d.

    The modes of the initial state are computed on a grid 16 times as fine, to reduce the aliasing of its kink.
    """
    n = refinement * 1024 * 2 ** max(0, math.ceil(math.log2(1e-2 / math.sqrt(d))))
    steps, every = refinement * 1024, 8
    x = torch.arange(16 * n, dtype=torch.float64) / (8 * n) - 1
    modes = np.fft.rfft(AllenCahn.initial(x).numpy())[: n // 2 + 1] / 16
    k = math.pi * np.arange(n // 2 + 1)
    cubic = lambda v: -5 * np.fft.rfft(np.fft.irfft(v) ** 3)
    u = etdrk4(5 - d * k**2, cubic, modes, 1 / steps, steps, every)
    one = n * (k == 0)
    t = np.arange(len(u))[:, None] * every / steps
    return PeriodicSolution.from_modes(u + one - np.exp((-10 - d * k**2) * t) * (modes + one), -1.0, 2.0, 1.0)

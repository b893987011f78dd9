"""Allen–Cahn equation, solved by a Fourier method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pinn_odelora.derivatives import Field
from pinn_odelora.formulation import Problem, Term, parameter
from pinn_odelora.geometry import Box
from pinn_odelora.points import Points
from pinn_odelora.reference import PeriodicSolution, etdrk4


@dataclass(frozen=True, kw_only=True)
class AllenCahn(Problem):
    """u_t = d u_xx + 5 (u - u³) on [-1, 1] × [0, 1], periodic in x;  u(x, 0) = x² cos πx.

    Ansatz: continued periodically the initial state is 2|s| - 1 near x = ±1, s the distance from there, a kink that no
    smooth network can take out again. Near u = -1 the equation is v_t = d v_xx - 10 v for v = u + 1, to first order,
    and turns 2|s| into 2 exp(-10 t) E(s, t), E the heat equation's solution from |s|, which is smooth for t > 0:

        E(s, t) = s erf(s/w) + w exp(-s²/w²) / √π ,   w = √(4 d t) .

    So the network is added to  u(x, 0) + 2 c (exp(-10 t) E - s)  with s = (2/π) cos(πx/2), which is smooth but for the
    same kink, and c = sin⁸(πx/2), which is 1 there and holds this to its neighbourhood.

    Residual: weighted by exp(-5t/2). What is left of the equation near u = 0, to which 5 (u - u³) is 5 u, grows by
    exp(5 (1 - t)) until the end, while it is largest in the fronts at the end, where it has no time to. Without a
    weight points and loss are all for these. All of the growth, exp(-5t), would leave nothing for where u = ±1, where
    errors decay: a half of it does better on the default jump and as well on the sharper one
    (``docs/results/defaults.md``). That early times come first is the idea of Wang, Sankaran and Perdikaris (2022,
    arXiv 2203.07404), there by weights that follow the loss.

    Reference: ETDRK4 on Fourier modes, interpolated. No finite number of modes resolves the kink at once: the error is
    below 1e-6 of the solution over the whole region, 2e-5 before t = 0.01 and 1e-9 from t = 0.2 on, where the equation
    itself is tested.
    """

    coords = ("x", "t")
    region = Box(x=(-1, 1), t=(0, 1))
    periods: ClassVar = {"x": 2.0}
    supports = ("hard",)
    enforced = ("ic",)
    accuracy = 1e-6
    regular = Box(x=(-1, 1), t=(0.2, 1))

    d: float = parameter(1e-3, 2e-4, above=0)

    def terms(self) -> dict[str, Term]:
        return {
            "pde": Term(self.region, lambda f: self.weight(f.t) * self.equation(f)),
            "ic": Term(self.region.face(t=0.0), lambda f: f.u - self.initial(f.x)),
        }

    def equation(self, f: Field) -> Tensor:
        return f.op("u", {"t": 1, "xx": -self.d}) - 5 * (f.u - f.u**3)

    @staticmethod
    def weight(t: Tensor) -> Tensor:
        return torch.exp(-5 * t / 2)

    @staticmethod
    def initial(x: Tensor) -> Tensor:
        return x**2 * torch.cos(math.pi * x)

    def ansatz(self, p: Points) -> tuple[Tensor, Tensor]:
        kink = 2 * torch.sin(math.pi * p.x / 2) ** 8
        distance = 2 / math.pi * torch.cos(math.pi * p.x / 2)
        return self.initial(p.x) + kink * (torch.exp(-10 * p.t) * self.smoothed(distance, p.t) - distance), p.t

    def smoothed(self, s: Tensor, t: Tensor) -> Tensor:
        """E, s ≥ 0; a tiny time after t, so that it has derivatives at t = 0 as well."""
        w = torch.sqrt(4 * self.d * t + 1e-16)
        return s * torch.erf(s / w) + w / math.sqrt(math.pi) * torch.exp(-((s / w) ** 2))

    def reference(self, p: Points) -> Tensor:
        return torch.where(p.t == 0, self.initial(p.x), solve(self.d)(p.x, p.t))


@lru_cache(maxsize=8)
def solve(d: float, refinement: int = 1) -> PeriodicSolution:
    """The reference for one d; ``refinement`` multiplies the modes and divides the step, to measure its accuracy.

    Layers are √d wide. The modes of the initial state come from 16 times as many places, so that its kink does not
    alias into them.
    """
    n = refinement * 1024 * 2 ** max(0, math.ceil(math.log2(1e-2 / math.sqrt(d))))
    steps = refinement * 1024
    x = torch.arange(16 * n, dtype=torch.float64) / (8 * n) - 1
    modes = np.fft.rfft(AllenCahn.initial(x).numpy())[: n // 2 + 1] / 16
    k = math.pi * np.arange(n // 2 + 1)
    cubic = lambda v: -5 * np.fft.rfft(np.fft.irfft(v) ** 3)
    return PeriodicSolution.from_modes(etdrk4(5 - d * k**2, cubic, modes, 1 / steps, steps, every=8), -1.0, 2.0, 1.0)

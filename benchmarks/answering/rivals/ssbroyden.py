"""Self-scaled Broyden on all weights (Urbán, Stefanou and Pons, 2025, J. Comput. Phys. 523, arXiv 2405.04230).

With s the step, y the change of the gradient, H the inverse Hessian, α the step size along p = -Hg, and

    h = yᵀHy / yᵀs ,   b = -α sᵀg / yᵀs ,   a = hb - 1 ,   ρ = min(1, h (1 - √(a / (1 + a)))) ,
    θ = max((ρ - 1)/a, min(1/ρ, (1 - b)/b)) ,   σ = 1 + aθ ,   φ = (1 - θ)/σ ,   v = s/yᵀs - Hy/yᵀHy ,
    τ = min(1, 1/b) · min(σ^(1/(1-n)), 1/θ)  if θ > 0,  else  min(min(1, 1/b) σ^(1/(1-n)), σ) ,

    H ← (H - Hy yᵀH / yᵀHy + φ yᵀHy vvᵀ) / τ + ssᵀ / yᵀs .

The scaling is that of Al-Baali, Spedicato and Maggioni (2014), here second-hand: from programs that follow the paper.
Line searches are SciPy's strong Wolfe. H is dense, 8n² bytes, so that wide networks are out of reach.
"""

from __future__ import annotations

import math
import warnings

import torch
from scipy.optimize import line_search
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from answering.cases import Case
from answering.rivals.scratch import FIRST, POINTS, started
from answering.trace import Trace
from pinn_odelora.system import System, draw_points

LARGEST = 12_000
"""Numbers that are trained at most: a dense H of one gigabyte."""
SCALE = 1e8
"""Of the loss, so that tolerances that line searches have do not matter; the method itself does not depend on it."""


class Loss:
    """The loss at fixed points, and its gradient, as functions of one vector (n,)."""

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.points = draw_points(system.terms, *POINTS, seed)
        self.parameters = [p for p in system.solution.parameters() if p.requires_grad]

    @property
    def here(self) -> Tensor:
        return parameters_to_vector(self.parameters).detach().clone()

    def __call__(self, x: Tensor) -> tuple[float, Tensor]:
        vector_to_parameters(x, self.parameters)
        loss = SCALE * self.system.loss(self.points).total
        g = torch.autograd.grad(loss, self.parameters)
        return float(loss.detach()), parameters_to_vector(g)


def update(H: Tensor, s: Tensor, y: Tensor, g: Tensor, alpha: float) -> None:
    """H in place; g where the step began, and yᵀs > 0."""
    ys, Hy = float(y @ s), H @ y
    yHy = float(y @ Hy)
    h, b = yHy / ys, -alpha * float(s @ g) / ys
    a = h * b - 1  # not negative by the inequality of Cauchy and Schwarz, but for rounding
    if a < 1e-12:
        theta, sigma = 1.0, 1.0
    else:
        rho = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
        theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
        sigma = 1 + a * theta
    root, most = abs(sigma) ** (1 / (1 - len(s))), min(1.0, 1 / b)
    tau = most * min(root, 1 / theta) if theta > 0 else min(most * root, sigma)
    phi, v = (1 - theta) / sigma, s / ys - Hy / yHy
    left = torch.stack([-Hy / (yHy * tau), phi * yHy / tau * v, s / ys], dim=1)
    H.addmm_(left, torch.stack([Hy, v, s]), beta=1 / tau)


def minimise(loss: Loss, trace: Trace) -> None:
    """Steps until the run is over, or a line search fails along the gradient itself."""
    x = loss.here
    f, g = loss(x)
    H, fresh, before = torch.eye(len(x), dtype=x.dtype), True, None
    known: dict[bytes, tuple[float, Tensor]] = {}

    def at(z):
        key = z.tobytes()
        if key not in known:
            known.clear()
            known[key] = loss(torch.as_tensor(z))
        return known[key]

    while True:
        p = -(H @ g)
        if fresh:
            p = p / p.norm()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a search that fails, which is seen by its step
            alpha, *_ = line_search(
                lambda z: at(z)[0], lambda z: at(z)[1].numpy(), x.numpy(), p.numpy(), g.numpy(), f, before, maxiter=30
            )
        if alpha is None:
            if fresh:
                return
            H, fresh, before = torch.eye(len(x), dtype=x.dtype), True, None
            continue
        s = alpha * p
        there = x + s
        before, (f, new) = f, at(there.numpy())
        y = new - g
        if float(y @ s) > 0:
            update(H if not fresh else H.mul_(float(y @ s) / float(y @ y)), s, y, g, alpha)
            fresh = False
        x, g = there, new
        vector_to_parameters(x, loss.parameters)
        if trace.look():
            return


def ssbroyden(case: Case, value: float, seed: int, target: float, cap: float) -> Trace:
    """After 500 steps of Adam."""
    system, trace = started(case, value, seed, target, cap, FIRST)
    if not trace.look():
        minimise(Loss(system, seed), trace)
    return trace

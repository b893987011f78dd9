"""Self-scaled Broyden with a strong Wolfe line search, on the factors or on all weights (SSBroyden).

J. F. Urbán, P. Stefanou and J. A. Pons, 2025, J. Comput. Phys. 523, arXiv 2405.04230; E. Kiyani, K. Shukla,
J. F. Urbán, J. Darbon and G. E. Karniadakis, 2025, arXiv 2501.16371. The choice of θ and τ is that of M. Al-Baali,
E. Spedicato and F. Maggioni, 2014, Optim. Methods Softw. 29. The formulas below are those of the first authors' code,
where they are called SSBroyden2.

With x in Rⁿ everything that is trained, g = ∂L/∂x, H the inverse Hessian, p = -Hg, α the step size of the line search,
s = αp and y the change of g over the step,

    h = yᵀHy / yᵀs ,    b = -α sᵀg / yᵀs ,    a = hb - 1 ,
    ρ = min(1, h (1 - √(a / (1 + a)))) ,    θ = max((ρ - 1)/a, min(1/ρ, (1 - b)/b)) ,    σ = 1 + aθ ,
    τ = min(1, 1/b) · min(σ^(1/(1-n)), 1/θ)  if θ > 0 ,   min(min(1, 1/b) · σ^(1/(1-n)), σ)  if θ ≤ 0 ,
    φ = (1 - θ)/σ ,    v = s/yᵀs - Hy/yᵀHy ,

    H ← (H - Hy yᵀH / yᵀHy + φ yᵀHy vvᵀ) / τ + ssᵀ / yᵀs ,

so that Hy = s; φ = 1 with τ = 1 is BFGS, φ = 0 with τ = 1 is DFP. a ≥ 0 by the inequality of Cauchy and Schwarz, and
h, b > 0 while H is positive definite and the line search ends with yᵀs > 0, which its second condition implies. The
bound (ρ - 1)/a is taken for its limit where a is 0 up to rounding.

H starts as the identity. With ``initial_scale`` the first update has τ = h/σ, which is close to the scaling of H by
yᵀs/yᵀy before it. The line search is that of Nocedal and Wright (Numerical Optimization, algorithms 3.5 and 3.6) as
SciPy has it, with its first trial min(1, 2.02 (L - L_before)/gᵀp), for which L_before is L + ‖g‖/2 in the first step;
its constants are c₁ = 1e-4 and c₂ = 0.9. The authors first try another search with the same conditions.

After a line search that fails, the authors' code ends; here H becomes the identity again.

H is dense, 8n² bytes in float64, so that wide networks are out of reach.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from pinn_odelora.errors import InputError
from pinn_odelora.integrators import Report
from pinn_odelora.optim.groups import Group, completed, parameters, unchanged_on_failure
from pinn_odelora.optim.methods import Method
from pinn_odelora.rules import boolean

LARGEST = 12_000
"""Numbers that are trained at most: H of about a gigabyte."""
C1, C2 = 1e-4, 0.9
"""Sufficient decrease and curvature condition of the line search."""
TRIALS = 30
"""Steps of the line search before it has an interval to zoom into."""


def lora_ssbroyden(initial_scale: bool = False) -> Method:
    """Self-scaled Broyden on the factors (Urbán, Stefanou and Pons, 2025, arXiv 2405.04230), one iteration a step.

    Args:
        initial_scale: whether the first update scales the identity, too.
    """
    return _method("lora_ssbroyden", "factors", initial_scale)


def full_ssbroyden(initial_scale: bool = False) -> Method:
    """Self-scaled Broyden on all weights (Urbán, Stefanou and Pons, 2025, arXiv 2405.04230), one iteration a step.

    Args:
        initial_scale: whether the first update scales the identity, too.
    """
    return _method("full_ssbroyden", "weights", initial_scale)


def _method(name: str, trains: Literal["factors", "weights"], initial_scale: bool) -> Method:
    settings = {"initial_scale": boolean.check("initial_scale", initial_scale)}
    make = lambda groups: SSBroyden(groups, **settings)
    return Method(name, trains, make, settings=settings, one_loss=True)


def scaling(h: float, b: float, n: int) -> tuple[float, float, float]:
    """(θ, σ, τ) of Al-Baali, Spedicato and Maggioni, from h = yᵀHy / yᵀs and b = sᵀH⁻¹s / yᵀs, both above 0."""
    a = max(h * b - 1, 0.0)
    # 1 - √(a / (1 + a)) without a difference of nearly equal numbers
    rho = min(1.0, h / ((1 + a) * (1 + math.sqrt(a / (1 + a)))))
    lowest = (rho - 1) / a if a > 0 else -math.inf if rho < 1 else 0.0
    theta = max(lowest, min(1 / rho, (1 - b) / b))
    sigma = max(1 + a * theta, rho)  # the same but for rounding, since θ is at least (ρ - 1)/a
    most, root = min(1.0, 1 / b), sigma ** (1 / (1 - n)) if n > 1 else 1.0
    return theta, sigma, most * min(root, 1 / theta) if theta > 0 else min(most * root, sigma)


def broyden_update(H: Tensor, s: Tensor, y: Tensor, phi: float, tau: float, Hy: Tensor | None = None) -> None:
    """The update of Broyden's class with its first part divided by τ, in place.

    Args:
        H: inverse Hessian, (n, n), symmetric.
        s: step, (n,).
        y: change of the gradient, (n,), with yᵀs > 0.
        phi: φ; 1 is BFGS.
        tau: τ; 1 is no scaling.
        Hy: (n,), where it is known.
    """
    Hy = H @ y if Hy is None else Hy
    ys, yHy = y @ s, y @ Hy
    v = s / ys - Hy / yHy
    left = torch.stack([-Hy / (tau * yHy), phi * yHy / tau * v, s / ys], dim=1)
    H.addmm_(left, torch.stack([Hy, v, s]), beta=1 / tau)  # one pass over H, which is what an update costs


def self_scaled_update(H: Tensor, s: Tensor, y: Tensor, g: Tensor, alpha: float, first: bool = False) -> None:
    """The update of SSBroyden, in place.

    Args:
        H: inverse Hessian, (n, n), positive definite.
        s: step -αHg, (n,).
        y: change of the gradient, (n,), with yᵀs > 0.
        g: gradient where the step began, (n,).
        alpha: α.
        first: take τ = h/σ.
    """
    ys, Hy = float(y @ s), H @ y
    h, b = float(y @ Hy) / ys, -alpha * float(s @ g) / ys
    theta, sigma, tau = scaling(h, b, len(s))
    broyden_update(H, s, y, (1 - theta) / sigma, h / sigma if first else tau, Hy)


@dataclass
class Line:
    """The loss along x + tq, t > 0, with what has been evaluated; points where it is not finite are infinitely high.

    Args:
        evaluate: the loss and its gradient at a point, both (n,) but for the loss.
        x, q: start and direction, (n,).
    """

    evaluate: Callable[[Tensor], tuple[float, Tensor]]
    x: Tensor
    q: Tensor
    known: dict[float, tuple[float, Tensor]] = field(default_factory=dict)

    def at(self, t: float) -> tuple[float, Tensor]:
        if t not in self.known:
            try:
                self.known[t] = self.evaluate(self.x + t * self.q)
            except FloatingPointError:
                self.known[t] = math.inf, torch.full_like(self.x, math.nan)
        return self.known[t]

    def value(self, t: np.ndarray) -> float:
        return self.at(float(t[0]))[0]

    def slope(self, t: np.ndarray) -> np.ndarray:
        return np.array([float(self.at(float(t[0]))[1] @ self.q)])


def strong_wolfe(line: Line, former: float) -> float | None:
    """t with L(t) ≤ L(0) + c₁ t L'(0) and abs(L'(t)) ≤ c₂ abs(L'(0)); None if none was found.

    Args:
        line: with L(0) known.
        former: the loss one step before, for the first trial.
    """
    from scipy.optimize import line_search  # takes long to import

    zero, one = np.zeros(1), np.ones(1)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of a search that fails, which is told by its result
        t, *_ = line_search(
            line.value, line.slope, zero, one, line.slope(zero), line.value(zero), former, c1=C1, c2=C2, maxiter=TRIALS
        )
    return None if t is None or not math.isfinite(line.at(float(t))[0]) else float(t)


class SSBroyden(Optimizer):
    """Self-scaled Broyden over all tensors of all groups, one iteration with its line search a ``step(closure)``.

    The loss must be the same in all steps. A step that finds nothing better along the gradient itself changes nothing,
    nor do those after it until the loss is another one. H, the last loss and whether H is the identity are in the state
    of the first tensor. ``report.h`` is the step size of the last step.

    Args:
        groups: tensors, or parameter groups, those of ``factor_pairs`` for instance.
        lr: the step size that the line search tries first, in units of the quasi-Newton step.
        initial_scale: whether the first update scales the identity, too.

    Raises:
        InputError: for more than ``LARGEST`` numbers.
    """

    report: Report | None = None

    def __init__(
        self,
        groups: Iterable[Tensor] | Sequence[Group],
        lr: float = 1.0,
        initial_scale: bool = False,
    ) -> None:
        groups = [completed(x if isinstance(x, dict) else {"params": x}, i) for i, x in enumerate(groups)]
        for group in groups:
            group.pop("layer", None)  # a module, which a state_dict must not hold
        size = sum(p.numel() for p in parameters(groups))
        if size > LARGEST:
            raise InputError(
                f"{size} numbers are trained, but SSBroyden keeps a square matrix of them and takes at most {LARGEST}: "
                "lower the rank, train factors, or choose L-BFGS."
            )
        super().__init__(groups, {"lr": lr, "initial_scale": initial_scale})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:
        if closure is None:
            raise InputError("SSBroyden searches along a line: step needs a closure that evaluates loss and gradient.")
        with unchanged_on_failure(self.param_groups):
            return self._step(lambda: _evaluated(closure))

    def _step(self, closure: Callable[[], Tensor]) -> Tensor:
        tensors, settings = parameters(self.param_groups), self.param_groups[0]
        loss = closure()
        f, x, g = float(loss), _vector(tensors), _vector([_gradient(p) for p in tensors])
        state = self._state(f, x, g)
        if state["failed"] == f:
            return loss

        def evaluate(there: Tensor) -> tuple[float, Tensor]:
            _put(tensors, there)
            return float(closure()), _vector([_gradient(p) for p in tensors])

        line = Line(evaluate, x, -settings["lr"] * (state["H"] @ g), {0.0: (f, g)})
        t = strong_wolfe(line, state["former"]) if line.slope(np.zeros(1)) < 0 else None
        self.report = Report((t or 0.0) * settings["lr"], f)
        if t is None:
            _put(tensors, x)
            self._forget(state, f, g)
            return loss
        _put(tensors, x + t * line.q)
        s, y = t * line.q, line.at(t)[1] - g
        if float(y @ s) > 0:
            first = state["fresh"] and settings["initial_scale"]
            self_scaled_update(state["H"], s, y, g, t * settings["lr"], first)
            state["fresh"] = False
        state["former"] = f
        return loss

    def _state(self, f: float, x: Tensor, g: Tensor) -> dict[str, Any]:
        state = self.state[self.param_groups[0]["params"][0]]
        if not state:
            identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
            state.update(H=identity, fresh=True, former=f + float(g.norm()) / 2, failed=None)
        return state

    @staticmethod
    def _forget(state: dict[str, Any], f: float, g: Tensor) -> None:
        """After a failed search: begin again, or wait for another loss if this was the beginning."""
        state["failed"] = f if state["fresh"] else None
        state["H"].zero_().fill_diagonal_(1.0)
        state.update(fresh=True, former=f + float(g.norm()) / 2)


def _evaluated(closure: Callable[[], Tensor]) -> Tensor:
    with torch.enable_grad():
        loss = closure()
    if loss is None:
        raise InputError("SSBroyden compares losses along a line, so the closure must return the loss.")
    return torch.as_tensor(loss).detach()


def _gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


def _put(tensors: Sequence[Tensor], x: Tensor) -> None:
    for p, part in zip(tensors, x.split([p.numel() for p in tensors]), strict=True):
        p.copy_(part.view_as(p))
